"""Run models over labelled images: each image is decoded once, and none is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.decode import check_unreadable
from hgprompt_edge.data.labelled import Labelled
from hgprompt_edge.data.parts import Entry
from hgprompt_edge.errors import BatchMemoryError, FileError
from hgprompt_edge.evaluate.classes import match_classes
from hgprompt_edge.evaluate.copies import Copies, find_copies
from hgprompt_edge.evaluate.figures import Figures, measure
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.picture_hash import PictureHash, hash_picture, stack
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, to_array
from hgprompt_edge.maths.paired import score_interval
from hgprompt_edge.maths.proportions import Proportion, Z, wilson
from hgprompt_edge.runtime.predictor import Predictor

Report = Callable[[int, int], None]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Answers:
    """What one model says of each image.

    Attributes
    ----------
    model
        Its file.
    labels
        Places of the images' classes among the model's, of shape (n_images,), int64.
    predicted
        Places of the most probable classes, of shape (n_images,), int64.
    confidence
        Their probabilities, of shape (n_images,), float32.
    """

    model: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each image's class was found, of shape (n_images,)."""
        right: npt.NDArray[np.bool_] = self.labels == self.predicted
        return right

    def mistakes(self, count: int) -> list[int]:
        """Places of the worst mistakes: the wrong class with the largest probability first."""
        wrong = np.flatnonzero(~self.right)
        order = np.argsort(-self.confidence[wrong], kind="stable")
        return [int(place) for place in wrong[order[:count]]]


@dataclass(frozen=True)
class Evaluation:
    """Several models on the same labelled images.

    Attributes
    ----------
    images
        Names of the images that could be read.
    answers, figures
        One for each model.
    unreadable
        Images that could not be read.
    copies
        Those that a model was trained on, and those in two classes.
    """

    images: tuple[str, ...]
    answers: tuple[Answers, ...]
    figures: tuple[Figures, ...]
    unreadable: tuple[LeftOut, ...]
    copies: Copies

    def change(self, place: int) -> Proportion:
        """Accuracy of a model less the first one's, with Tango's 95 % interval, in -1 .. 1."""
        first, second = self.answers[0].right, self.answers[place].right
        won, lost = int((second & ~first).sum()), int((first & ~second).sum())
        low, high = score_interval(len(first), won, lost, Z)
        return Proportion((won - lost) / len(first), low, high)

    def on_new_images(self, place: int) -> Proportion | None:
        """Accuracy of a model on images that are no copies of its training images.

        None where it does not record these, or where no image is left.
        """
        known = self.copies.known[place]
        if known is None:
            return None
        new = np.ones(len(self.images), bool)
        new[[*known.same.tolist(), *known.near.tolist()]] = False
        right = self.answers[place].right[new]
        return wilson(int(right.sum()), len(right)) if len(right) else None


def evaluate(
    predictors: Sequence[Predictor],
    images: Labelled,
    *,
    mapping: Mapping[str, str] | None = None,
    batch_size: int = 16,
    report: Report | None = None,
) -> Evaluation:
    """Run models over labelled images and measure how often they are right.

    Memory does not grow with the number of images, but for some bytes of each.

    Parameters
    ----------
    mapping
        Classes of the data that models know under another name, see `match_classes`. A model that
        has no class of that name, where another one has, goes by the data's own name.
    batch_size
        Images at a time.
    report
        Called with (images done, images in all).

    Raises
    ------
    UserError
        Classes that are not a model's; no image that can be read, or more unreadable images than
        `check_unreadable` takes; a model whose probabilities are not finite; too little memory.
    """
    names = images.classes
    known = {name for predictor in predictors for name in predictor.classes}
    places = [
        match_classes(
            names,
            predictor.classes,
            {
                name: target
                for name, target in (mapping or {}).items()
                if target in predictor.classes or target not in known
            },
            data=images.data,
            model=str(predictor.path),
            named=predictor.assumed is None,
        )
        for predictor in predictors
    ]
    hashes: list[PictureHash] = []
    rows, unreadable, said = _ask(predictors, images.entries, batch_size, hashes, report)
    check_unreadable(unreadable, len(images.entries), images.data)
    if not rows:
        raise FileError(images.data, f"no image can be read ({unreadable[0]}); name other images")
    read = [images.entries[row] for row in rows]
    answers = tuple(
        Answers(
            str(predictor.path),
            predictor.classes,
            np.array([known[entry.label] for entry in read], np.int64),
            predicted,
            confidence,
        )
        for predictor, known, (predicted, confidence) in zip(predictors, places, said, strict=True)
    )
    for each in answers:
        _check_finite(each, read)
    figures = tuple(measure(a.labels, a.predicted, a.confidence, a.classes) for a in answers)
    order = {name: place for place, name in enumerate(names)}
    labels = np.array([order[entry.label] for entry in read], np.int64)
    models = [(predictor.path, predictor.metadata) for predictor in predictors]
    copies = find_copies(stack(hashes), labels, models)
    images_read = tuple(entry.name for entry in read)
    return Evaluation(images_read, answers, figures, tuple(unreadable), copies)


def _ask(
    predictors: Sequence[Predictor],
    entries: Sequence[Entry],
    batch_size: int,
    hashes: list[PictureHash],
    report: Report | None,
) -> tuple[
    list[int],
    list[LeftOut],
    list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]],
]:
    """Return rows that can be read, what cannot, and the class and probability by each model.

    The hashes of those that can be read are appended to `hashes`.
    """
    rules = list(dict.fromkeys(predictor.preprocessing for predictor in predictors))
    predicted = [np.empty(len(entries), np.int64) for _ in predictors]
    confidence = [np.empty(len(entries), np.float32) for _ in predictors]
    rows: list[int] = []
    unreadable: list[LeftOut] = []
    remaining = enumerate(entries)
    while batch := list(islice(remaining, batch_size)):
        try:
            good, pixels = _decode(batch, rules, unreadable, hashes)
            for place, predictor in enumerate(predictors if good else ()):
                probabilities = predictor.probabilities(pixels[predictor.preprocessing])
                here = slice(len(rows), len(rows) + len(good))
                best = probabilities.argmax(axis=1)
                predicted[place][here] = best
                confidence[place][here] = probabilities[np.arange(len(good)), best]
        except MemoryError as error:
            raise BatchMemoryError(batch_size, len(batch)) from error
        rows += good
        if report is not None:
            report(batch[-1][0] + 1, len(entries))
    said = [
        (each[: len(rows)], sure[: len(rows)])
        for each, sure in zip(predicted, confidence, strict=True)
    ]
    return rows, unreadable, said


def _decode(
    batch: Sequence[tuple[int, Entry]],
    rules: Sequence[Preprocessing],
    unreadable: list[LeftOut],
    hashes: list[PictureHash],
) -> tuple[list[int], dict[Preprocessing, Pixels]]:
    """Decode each image once; return the rows of the readable ones and their pixels by rule."""
    rows: list[int] = []
    images: list[list[Pixels]] = []
    for row, entry in batch:
        try:
            arrays, hashed = _read(entry, rules)
            images.append(arrays)
            hashes.append(hashed)
            rows.append(row)
        except UnreadableImageError as error:
            unreadable.append(LeftOut(entry.name, error.reason))
    stacked = zip(*images, strict=True)
    return rows, {rule: np.stack(arrays) for rule, arrays in zip(rules, stacked, strict=False)}


def _read(entry: Entry, rules: Sequence[Preprocessing]) -> tuple[list[Pixels], PictureHash]:
    try:
        image = entry.open()
        arrays = [to_array(image, rule, entry.name) for rule in rules]
        return arrays, hash_picture(image)
    except MemoryError as error:
        reason = "needs more memory than there is here; scale it down first"
        raise UnreadableImageError(entry.name, reason) from error


def _check_finite(answers: Answers, read: Sequence[Entry]) -> None:
    bad = np.flatnonzero(~np.isfinite(answers.confidence))
    if len(bad):
        raise FileError(
            answers.model,
            f"gives no probabilities for {len(bad):,} of {len(read):,} images, such as "
            f"{read[bad[0]].name}; export the model again",
        )
