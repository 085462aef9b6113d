"""Copies on one side of the split: images are grouped by their hashes before they are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hgprompt_edge.data.decode import Progress, numbers_of
from hgprompt_edge.data.parts import Entry, Parts
from hgprompt_edge.data.split import Indices, carve_test_groups
from hgprompt_edge.data.task import Images
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.near_pairs import near_pairs_within
from hgprompt_edge.images.picture_hash import (
    FLAT,
    Hashes,
    PictureHash,
    hash_picture,
    join,
    stack,
)
from hgprompt_edge.images.preprocess import UnreadableImageError

UNREADABLE = PictureHash(FLAT)
"""Is a copy of nothing."""


def group_by_hash(parts: Parts, progress: Progress | None = None) -> Parts:
    """Give copies, near-copies among them, one group, and keep each group in one part.

    A test part that was drawn is drawn again, group by group. Of parts that the data came with, the
    test part stays as it is: what is in a group with an image of it no longer trains or validates,
    and what is in a group with a validation image no longer trains; both are named in `left_out`.
    Groups that the images have already are kept together. Decodes every image.

    Raises
    ------
    UserError
        All training images of a class are copies of validation or test images.
    """
    entries = [*parts.train, *parts.validation, *parts.test]
    number = _groups(_hash(entries, progress), [entry.group for entry in entries])
    grouped = _named(entries, number)
    ends = np.cumsum([len(parts.train), len(parts.validation), len(parts.test)])
    train, validation, test = (grouped[a:b] for a, b in zip((0, *ends), ends, strict=False))
    if parts.carve is not None:
        rows = np.r_[: ends[0], ends[1] : ends[2]]
        train, test = _carve(parts, [grouped[i] for i in rows], number[rows])
    held = {"a test image": test, "a validation image": validation}
    left_out: list[LeftOut] = []
    for what, others in held.items():
        taken = {entry.group for entry in others if entry.group}
        for part in [train] if others is validation else [train, validation]:
            left_out += [
                LeftOut(entry.name, f"a copy of {what}") for entry in part if entry.group in taken
            ]
            part[:] = [entry for entry in part if entry.group not in taken]
    _check_left(parts, train)
    return replace(
        parts,
        train=train,
        validation=validation,
        test=test,
        left_out=(*parts.left_out, *left_out),
    )


def _hash(entries: Sequence[Entry], progress: Progress | None) -> Hashes:
    found = []
    for done, entry in enumerate(entries, 1):
        try:
            found.append(hash_picture(entry.open()))
        except UnreadableImageError:  # counted where the images are read to be used
            found.append(UNREADABLE)
        if progress is not None:
            progress(done, len(entries))
    return stack(found)


def copy_groups(parts: Sequence[Images]) -> Indices | None:
    """Give each image of these parts, one behind the other, a number; copies have the same one.

    `[n]` int64. None where the images were drawn rather than read, so that there are no hashes.
    """
    hashes = [part.hashes for part in parts]
    found = [each for each in hashes if each is not None]
    if len(found) < len(parts):
        return None
    together = join(found)
    return _groups(together, [""] * len(together))


def _groups(hashes: Hashes, given: Sequence[str]) -> Indices:
    """Give what equal pixels, a likeness or a given group connect one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(hashes)

    def connect(number: Indices, first: Indices, second: Indices) -> Indices:
        # What is connected already comes in as one edge each, to the first member of its group.
        _, leaders = np.unique(number, return_index=True)
        rows = np.concatenate([first, np.arange(count)])
        columns = np.concatenate([second, leaders[number]])
        graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
        connected: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
        return connected

    number = numbers_of(given)
    real = np.flatnonzero(hashes.digests != FLAT)
    _, first, group = np.unique(hashes.digests[real], return_index=True, return_inverse=True)
    number = connect(number, real, real[first][group.reshape(-1)])
    for pairs in near_pairs_within(hashes):
        if len(pairs.first):
            number = connect(number, pairs.first, pairs.second)
    return number


def _named(entries: Sequence[Entry], number: Indices) -> list[Entry]:
    """Name each group of several by its first image; one image is no group."""
    _, leaders, sizes = np.unique(number, return_index=True, return_counts=True)
    return [
        replace(entry, group=entries[leaders[group]].name if sizes[group] > 1 else "")
        for entry, group in zip(entries, number, strict=True)
    ]


def _carve(
    parts: Parts, entries: Sequence[Entry], number: Indices
) -> tuple[list[Entry], list[Entry]]:
    """Draw the test part again, as it was drawn but group by group: `(train, test)`."""
    assert parts.carve is not None
    index = {label: i for i, label in enumerate(sorted({entry.label for entry in entries}))}
    labels = np.array([index[entry.label] for entry in entries], np.int64)
    rest, test = carve_test_groups(
        labels, number, share=parts.carve.share, train_per_class=parts.carve.train_per_class
    )
    return [entries[i] for i in rest], [entries[i] for i in test]


def _check_left(parts: Parts, train: Sequence[Entry]) -> None:
    lost = {entry.label for entry in parts.train} - {entry.label for entry in train}
    if lost:
        label = min(lost)
        count = sum(entry.label == label for entry in parts.train)
        raise FileError(
            parts.origin,
            f"`group_by_hash`: all {count:,} training images of the class {label} are copies of "
            "validation or test images, so none is left to train on; add others, or leave "
            "`group_by_hash` out",
        )
