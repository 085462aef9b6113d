"""Copies between the parts of a task, and in two of its classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.split import Indices
from hgprompt_edge.data.task import Task
from hgprompt_edge.images.near_pairs import near_pairs_within, same_pixels
from hgprompt_edge.images.picture_hash import join, sees_near_copies

PARTS = ("train", "validation", "test")
NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Copy:
    """An image, and another one of the task that it is a copy of.

    Attributes
    ----------
    part, label
        Of the image; `of_part`, `of_label` of the other one.
    place, of_place
        Where they stand in the images of train, validation and test behind each other.
    bits
        In how many bits what they look like differs, of 256.
    same
        Equal pixels.
    """

    name: str
    part: str
    label: str
    place: int
    of: str
    of_part: str
    of_label: str
    of_place: int
    bits: int
    same: bool


@dataclass(frozen=True)
class Leaks:
    """What `find_leaks` found. An image counts once in each, with its nearest counterpart.

    Attributes
    ----------
    test
        Test images that are copies of training or validation images.
    validation
        Validation images that are copies of training images.
    classes
        Images that are copies of one in another class.
    near
        Whether near-copies were looked for: ImageHash is installed.
    lookless
        How many images show too little to have near-copies.
    """

    test: tuple[Copy, ...]
    validation: tuple[Copy, ...]
    classes: tuple[Copy, ...]
    near: bool
    lookless: int

    def __bool__(self) -> bool:
        return bool(self.test or self.validation or self.classes)


def find_leaks(task: Task) -> Leaks | None:
    """Find images that are copies of images in an earlier part, or in another class.

    Copies have equal pixels, or are near-copies as `near_pairs` says. None where the images were
    drawn rather than read, so that there are no hashes.
    """
    splits = (task.train, task.validation, task.test)
    hashes = [images.hashes for images in splits]
    found = [part for part in hashes if part is not None]
    if len(found) < len(splits):
        return None
    together = join(found)
    part = np.repeat(np.arange(3), [len(images) for images in splits])
    labels = np.concatenate([images.labels for images in splits])
    across, classes = _Nearest(len(part)), _Nearest(len(part))
    for nearest, kind in ((across, part), (classes, labels)):
        earlier, later = same_pixels(together, kind)
        nearest.take(earlier, later, np.full(len(later), -1))
    for earlier, later, bits in near_pairs_within(together):
        across.take_where(part[earlier] != part[later], earlier, later, bits)
        classes.take_where(labels[earlier] != labels[later], earlier, later, bits)
    names = [name for images in splits for name in images.names]

    def copies(nearest: _Nearest, where: npt.NDArray[np.bool_]) -> tuple[Copy, ...]:
        return tuple(
            Copy(
                names[i],
                PARTS[part[i]],
                task.classes[labels[i]],
                int(i),
                names[j],
                PARTS[part[j]],
                task.classes[labels[j]],
                int(j),
                max(0, int(nearest.bits[i])),
                bool(nearest.bits[i] < 0),
            )
            for i in np.flatnonzero(where & (nearest.bits < NONE))
            for j in (nearest.other[i],)
        )

    return Leaks(
        test=copies(across, part == 2),
        validation=copies(across, part == 1),
        classes=copies(classes, np.ones(len(part), bool)),
        near=sees_near_copies(),
        lookless=int((~together.looks.any(axis=1)).sum()),
    )


class _Nearest:
    """For each image the nearest of the images before it that count; -1 bits for equal pixels."""

    def __init__(self, count: int) -> None:
        self.bits: Indices = np.full(count, NONE, np.int64)
        self.other: Indices = np.full(count, -1, np.int64)

    def take(self, earlier: Indices, later: Indices, bits: Indices) -> None:
        order = np.lexsort((earlier, bits, later))
        earlier, later, bits = earlier[order], later[order], bits[order]
        ends = np.flatnonzero(np.diff(later, prepend=-1))
        earlier, later, bits = earlier[ends], later[ends], bits[ends]
        nearer = bits < self.bits[later]
        self.bits[later[nearer]] = bits[nearer]
        self.other[later[nearer]] = earlier[nearer]

    def take_where(
        self, chosen: npt.NDArray[np.bool_], earlier: Indices, later: Indices, bits: Indices
    ) -> None:
        self.take(earlier[chosen], later[chosen], bits[chosen])
