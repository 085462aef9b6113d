"""What evaluate says of images that a model was trained on, and of images in two classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.shared.leaks import NO_LIBRARY
from hgprompt_edge.cli.shared.text import as_interval

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.training_images import Known, TrainingImages
    from hgprompt_edge.data.labelled import Labelled
    from hgprompt_edge.evaluate.run import Evaluation


def notes_on_copies(images: Labelled, found: Evaluation) -> list[str]:
    """Say which images say little: the models were trained on them, or they are in two classes."""
    from hgprompt_edge.errors import some
    from hgprompt_edge.images.picture_hash import sees_near_copies

    notes, copies = [], found.copies
    for places in _alike(found):
        models = ", ".join(found.answers[place].model for place in places)
        trained, known = copies.trained[places[0]], copies.known[places[0]]
        if trained is None or known is None:
            notes.append(f"{models}: does not record which images it was trained on")
            continue
        notes += _known_images(models, found, places, known, _of(trained))
        if sees_near_copies() and not trained.near:
            notes.append(
                f"{models}: records no looks of its training images, so that near-copies of "
                "them were not looked for; fit it again with hgprompt-edge[leaks] installed"
            )
    if any(copies.trained) and not sees_near_copies():
        notes.append(f"{images.data}: {NO_LIBRARY}")
    if len(copies.twice):
        pairs = [f"{found.images[j]} of {found.images[i]}" for i, j in copies.twice.tolist()]
        are = "image is a copy" if len(pairs) == 1 else "images are copies"
        notes.append(
            f"{images.data}: {len(pairs):,} {are}, pixel for pixel, of images of another class "
            f"({some(pairs)}); give each picture one class"
        )
    return notes


def _alike(found: Evaluation) -> list[list[int]]:
    """Group the places of models of which the same is to be said: of one bundle, mostly."""
    groups: dict[object, list[int]] = {}
    for place, (trained, known) in enumerate(
        zip(found.copies.trained, found.copies.known, strict=True)
    ):
        key: object = place
        if trained is not None and known is not None:
            places = (known.same.tolist(), known.near.tolist())
            key = repr((places, trained.count, len(trained.digests), trained.near))
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _known_images(
    models: str, found: Evaluation, places: Sequence[int], known: Known, recorded: str
) -> list[str]:
    """Name the images that models were trained on, and say how accurate they are on the others."""
    from hgprompt_edge.errors import some

    total, notes = len(found.images), []
    kinds = (
        (known.same.tolist(), "was among", "were among", ", pixel for pixel"),
        (known.near.tolist(), "is a near-copy of", "are near-copies of", ""),
    )
    for images, one, several, how in kinds:
        if images:
            names = some([found.images[image] for image in images])
            what = one if len(images) == 1 else several
            notes.append(
                f"{models}: {len(images):,} of the {total:,} images {what} its training "
                f"images{how}{recorded} ({names})"
            )
    if not notes:
        return []
    left = total - len({*known.same.tolist(), *known.near.tolist()})
    accuracies = ", ".join(f"{found.on_new_images(place)}" for place in places)
    notes.append(
        f"{models}: accuracy on the other {left:,} images {accuracies}"
        if left
        else f"{models}: no image is new to it, so that the accuracy says nothing of new images"
    )
    return notes


def known_document(found: Evaluation, place: int) -> dict[str, Any] | None:
    """Return what a JSON document says of a model's training images; None: it does not record them.

    Parameters
    ----------
    place
        Of the model.
    """
    trained, known = found.copies.trained[place], found.copies.known[place]
    if trained is None or known is None:
        return None
    new = found.on_new_images(place)

    def names(places: Sequence[int]) -> list[str]:
        return [found.images[place] for place in places]

    return {
        "count": trained.count,
        "recorded": len(trained.digests),
        "same": names(known.same.tolist()),
        "near_copies": names(known.near.tolist()),
        "accuracy_on_new_images": new and as_interval(new),
    }


def _of(trained: TrainingImages) -> str:
    kept = len(trained.digests)
    return "" if kept == trained.count else f" ({kept:,} of {trained.count:,} are recorded)"
