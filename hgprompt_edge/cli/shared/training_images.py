"""What evaluate says of images that a model was trained on, and of images in two classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.shared.leaks import NO_LIBRARY

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.training_images import TrainingImages
    from hgprompt_edge.data.labelled import Labelled
    from hgprompt_edge.evaluate.run import Evaluation


def notes_on_copies(images: Labelled, found: Evaluation) -> list[str]:
    """Say which images say little: the models were trained on them, or they are in two classes."""
    from hgprompt_edge.evaluate.classes import some
    from hgprompt_edge.images.picture_hash import sees_near_copies

    notes, total, copies = [], len(found.images), found.copies
    for answers, trained, known in zip(found.answers, copies.trained, copies.known, strict=True):
        if trained is None or known is None:
            notes.append(f"{answers.model}: does not record which images it was trained on")
            continue
        kinds = (
            (known.same.tolist(), "was among", "were among", ", pixel for pixel"),
            (known.near.tolist(), "is a near-copy of", "are near-copies of", ""),
        )
        for places, one, several, how in kinds:
            if places:
                names = some([found.images[place] for place in places])
                what = one if len(places) == 1 else several
                notes.append(
                    f"{answers.model}: {len(places):,} of the {total:,} images {what} its training "
                    f"images{how}{_of(trained)} ({names}), so that the accuracy on them says "
                    "little about new images"
                )
        if sees_near_copies() and not trained.near:
            notes.append(
                f"{answers.model}: records no looks of its training images, so that near-copies of "
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

    def names(places: Sequence[int]) -> list[str]:
        return [found.images[place] for place in places]

    return {
        "count": trained.count,
        "recorded": len(trained.digests),
        "same": names(known.same.tolist()),
        "near_copies": names(known.near.tolist()),
    }


def _of(trained: TrainingImages) -> str:
    kept = len(trained.digests)
    return "" if kept == trained.count else f" ({kept:,} of {trained.count:,} are recorded)"
