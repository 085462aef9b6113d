"""From image files to their most probable classes, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import BatchMemoryError
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, read_image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FALSE_ALARMS = 0.05
"""Share of a task's own images that are called unknown, unless told otherwise."""
NO_PROBABILITIES = "the model gives no probabilities for it; export the model again"
"""Why an image has no class: its logits are NaN or infinite."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes
    ----------
    labels
        `(class, probability)`, most probable first; empty for an image with an error.
    error
        Why it cannot be read, or `NO_PROBABILITIES`; else None.
    task
        Which task of a device folder; empty for a model file, and for what cannot be read.
    share_beyond
        Share of the task's own images that look as foreign as this one; None: not known.
    unknown
        Whether it looks too foreign, or no class is probable enough; None: not known.
    """

    path: Path
    labels: tuple[tuple[str, float], ...]
    error: str | None = None
    task: str = ""
    share_beyond: float | None = None
    unknown: bool | None = None


@dataclass(frozen=True)
class Limits:
    """When an image is called unknown.

    Attributes
    ----------
    false_alarms
        It looks more foreign than all but this share of the task's own images.
    min_confidence
        Its most probable class is less probable; 0: never.
    """

    false_alarms: float = FALSE_ALARMS
    min_confidence: float = 0.0


@dataclass(frozen=True)
class Way:
    """One of the ways in which each image is classified.

    Attributes
    ----------
    judge
        Gives for pixels `[n, S, S, 3]` what `Predictor.judge` does.
    classes
        Names of the `K`.
    task
        As of `Prediction`.
    """

    judge: Callable[[Pixels], tuple[Floats, Floats | None]]
    classes: Sequence[str]
    task: str = ""


def predict_files(
    ways: Sequence[Way],
    preprocessing: Preprocessing,
    paths: Iterable[Path],
    top: int,
    batch_size: int,
    limits: Limits | None = None,
) -> Iterator[tuple[Prediction, ...]]:
    """Classify image files in one or several ways, each image decoded once.

    For each image as many predictions as there are ways; one, of no task, for what cannot be read.
    Otherwise as `Predictor.predict_paths`.
    """
    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        try:
            images = [_read(path, preprocessing) for path in batch]
            readable = [image for image in images if not isinstance(image, str)]
            pixels = np.stack(readable) if readable else None
            found = [() if pixels is None else _rows(way.judge(pixels)) for way in ways]
        except MemoryError as error:
            raise BatchMemoryError(batch_size, len(batch)) from error
        rows = zip(*found, strict=True)
        for path, image in zip(batch, images, strict=True):
            if isinstance(image, str):
                yield (Prediction(path, (), image),)
                continue
            pairs = zip(ways, next(rows), strict=True)
            yield tuple(_prediction(path, way, row, top, limits or Limits()) for way, row in pairs)


def _read(path: Path, preprocessing: Preprocessing) -> Pixels | str:
    try:
        return read_image(path, preprocessing)
    except UnreadableImageError as error:
        return error.reason


def _rows(judged: tuple[Floats, Floats | None]) -> Iterator[tuple[Floats, float | None]]:
    """Probabilities and share of each image."""
    probabilities, shares = judged
    known = repeat(None) if shares is None else map(float, shares)
    return zip(probabilities, known, strict=False)


def _prediction(
    path: Path, way: Way, judged: tuple[Floats, float | None], top: int, limits: Limits
) -> Prediction:
    row, share = judged
    if not np.isfinite(row).all():
        return Prediction(path, (), NO_PROBABILITIES, way.task)
    unknown = None if share is None else share <= limits.false_alarms
    if limits.min_confidence > 0:
        unknown = bool(unknown) or float(row.max()) < limits.min_confidence
    return Prediction(path, _first(row, way.classes, top), None, way.task, share, unknown)


def _first(row: Floats, classes: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((classes[index], float(row[index])) for index in order)
