"""A task as a value: decoded images of named classes in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.files import Array, sha256_arrays
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.picture_hash import Hashes


@dataclass(frozen=True)
class Images:
    """The decoded images of one split.

    Attributes
    ----------
    pixels
        `[n, H, W, 3]` uint8, RGB, after resize and crop.
    labels
        `[n]` int64, indices into the task's classes.
    names
        Where each came from: a path below the data folder, or a split name and a number.
    hashes
        Of the pictures as they were decoded, by which copies are found; None: drawn, not read.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    hashes: Hashes | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Images:
        """Those images, in the order of `indices [m]` (int64)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Images(
            self.pixels[chosen],
            self.labels[chosen],
            tuple(self.names[i] for i in chosen),
            None if self.hashes is None else self.hashes.subset(chosen),
        )


@dataclass(frozen=True)
class Task:
    """What to adapt to.

    Attributes
    ----------
    family
        Tasks of one family never serve each other as source and target; empty: none known.
    train, validation
        At most 1,000 images in all by default, 80 % and 20 %.
    test
        Touched once, at the end; empty where the data has no images to spare.
    flips
        Whether a horizontal flip keeps the class.
    unreadable
        Images that could not be read and were skipped.
    digest
        sha256 over classes and the names, labels and pixels of all splits.
    left_out
        Files that lie with the images and are not read.
    data
        Absolute path of the folder or file that the images lie in, or `hf:ORG/NAME`; empty: none.
    cut_away
        Median over training and validation images of the share of the area that the resize rule
        cuts off, in [0, 1).
    grouped
        Copies were kept on one side of the split (`group_by_hash`).
    """

    name: str
    family: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    flips: bool
    unreadable: tuple[LeftOut, ...]
    digest: str
    left_out: tuple[LeftOut, ...] = ()
    data: str = ""
    cut_away: float = 0.0
    grouped: bool = False


def make_task(
    *,
    name: str,
    family: str,
    classes: tuple[str, ...],
    splits: tuple[Images, Images, Images],
    flips: bool,
    unreadable: tuple[LeftOut, ...] = (),
    left_out: tuple[LeftOut, ...] = (),
) -> Task:
    """Make a task of decoded splits (train, validation, test), with its digest."""
    arrays: dict[str, Array] = {"classes": _text(classes)}
    for key, images in zip(("train", "validation", "test"), splits, strict=True):
        arrays[f"{key}.pixels"] = images.pixels
        arrays[f"{key}.labels"] = images.labels
        arrays[f"{key}.names"] = _text(images.names)
    digest = sha256_arrays(arrays)
    return Task(name, family, classes, *splits, flips, unreadable, digest, left_out)


def images_beyond(task: Task, everything: Task) -> Images:
    """Training images of `everything` that `task`, a sample of the same data, does not use."""
    used = {*task.train.names, *task.validation.names}
    names = everything.train.names + everything.validation.names
    rows = [i for i, name in enumerate(names) if name not in used]
    pixels = np.concatenate([everything.train.pixels, everything.validation.pixels])
    labels = np.concatenate([everything.train.labels, everything.validation.labels])
    return Images(pixels, labels, names).subset(rows)


def _text(strings: Sequence[str]) -> npt.NDArray[np.uint8]:
    # surrogateescape: names of files need not be UTF-8.
    return np.frombuffer("\0".join(strings).encode("utf-8", "surrogateescape"), np.uint8)
