"""Which pictures are copies: equal pixels, or hashes that differ in few bits, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hgprompt_edge.images.picture_hash import FLAT, HASH_BYTES, Bytes, Hashes

NEAR_BITS = 40
"""Pictures whose hashes differ in at most as many of the 256 bits are near-copies. Unrelated
photographs differ in 80 or more, but signs and hands, all alike, in 46 and more. docs/copies.md has
what this finds and what it takes for a copy."""

DRAWN_BITS = 20
"""The same if one of them has a plain ground. Different spots, or guitars, drawn at the same place
differ in 26 and more; drawings that were saved again, resized or mirrored in up to 14."""

ROWS, COLUMNS = 512, 4096
"""Distances of a block are 8 MB of float32."""

Indices = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """Pairs of one block: places in the first and in the second set, and bits that differ, `[p]`.

    In order of the first place, then of the second.
    """

    first: Indices
    second: Indices
    bits: Indices


def near_pairs(queries: Hashes, others: Hashes, limit: int = NEAR_BITS) -> Iterator[Pairs]:
    """Find the pairs of two sets that look alike, mirrored or not; pictures without a look do not.

    Memory does not grow with the number of pairs: they come in blocks.
    """
    rows, columns = _with_look(queries), _with_look(others)
    for top in range(0, len(rows), ROWS):
        some = rows[top : top + ROWS]
        straight, mirrored = _signs(queries.looks[some]), _signs(queries.mirrored[some])
        for left in range(0, len(columns), COLUMNS):
            found = _near(straight, mirrored, others, some, columns[left : left + COLUMNS], limit)
            yield _judged(found, queries, others)


def near_pairs_within(hashes: Hashes, limit: int = NEAR_BITS) -> Iterator[Pairs]:
    """Find the pairs of one set that look alike, each once: the first place is the lower one."""
    rows = _with_look(hashes)
    for top in range(0, len(rows), ROWS):
        some = rows[top : top + ROWS]
        straight, mirrored = _signs(hashes.looks[some]), _signs(hashes.mirrored[some])
        for left in range(top, len(rows), COLUMNS):
            found = _near(straight, mirrored, hashes, some, rows[left : left + COLUMNS], limit)
            once = found.first < found.second
            yield _judged(Pairs(*(array[once] for array in found)), hashes, hashes)


def _near(
    straight: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.float32],
    others: Hashes,
    rows: Indices,
    columns: Indices,
    limit: int,
) -> Pairs:
    """Pairs of a block. Signs of -1 and 1 make their product the bits that agree less the rest."""
    looks = _signs(others.looks[columns]).T
    agree = np.maximum(straight @ looks, mirrored @ looks)
    first, second = np.nonzero(agree >= 8 * HASH_BYTES - 2 * limit)
    bits = (8 * HASH_BYTES - agree[first, second].astype(np.int64)) // 2
    return Pairs(rows[first], columns[second], bits)


def _judged(found: Pairs, queries: Hashes, others: Hashes) -> Pairs:
    """Leave out pairs on a plain ground that differ in too many bits for that."""
    drawn = queries.plain[found.first] | others.plain[found.second]
    near = ~drawn | (found.bits <= DRAWN_BITS)
    return Pairs(*(array[near] for array in found))


def _signs(looks: Bytes) -> npt.NDArray[np.float32]:
    return np.unpackbits(looks, axis=1).astype(np.float32) * 2 - 1


def _with_look(hashes: Hashes) -> Indices:
    return np.flatnonzero(hashes.looks.any(axis=1))


def same_pixels(hashes: Hashes, kind: Indices) -> tuple[Indices, Indices]:
    """Find pictures of equal pixels and different `kind [n]`: places of the first and the later.

    Of a picture that is there many times the first one is paired with each later one.
    """
    real = np.flatnonzero(hashes.digests != FLAT)
    _, first, group = np.unique(hashes.digests[real], return_index=True, return_inverse=True)
    earlier = real[first][group.reshape(-1)]
    other = kind[earlier] != kind[real]
    return earlier[other], real[other]
