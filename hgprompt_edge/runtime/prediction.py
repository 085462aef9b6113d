"""From image files to their most probable classes, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import BatchMemoryError
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, read_image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

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
    """

    path: Path
    labels: tuple[tuple[str, float], ...]
    error: str | None = None


def predict_files(
    probabilities: Callable[[Pixels], Floats],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    paths: Iterable[Path],
    top: int,
    batch_size: int,
) -> Iterator[Prediction]:
    """Do as `Predictor.predict_paths`.

    Parameters
    ----------
    probabilities
        Gives `[n, K]` for pixels `[n, S, S, 3]`.
    """
    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        try:
            images = [_read(path, preprocessing) for path in batch]
            readable = [image for image in images if not isinstance(image, str)]
            rows: Iterator[Floats] = iter(probabilities(np.stack(readable)) if readable else ())
        except MemoryError as error:
            raise BatchMemoryError(batch_size, len(batch)) from error
        for path, image in zip(batch, images, strict=True):
            if isinstance(image, str):
                yield Prediction(path, (), image)
                continue
            row = next(rows)
            if np.isfinite(row).all():
                yield Prediction(path, _first(row, classes, top))
            else:
                yield Prediction(path, (), NO_PROBABILITIES)


def _read(path: Path, preprocessing: Preprocessing) -> Pixels | str:
    try:
        return read_image(path, preprocessing)
    except UnreadableImageError as error:
        return error.reason


def _first(row: Floats, classes: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((classes[index], float(row[index])) for index in order)
