"""Seeded, stratified choices: which images are used, which train and which validate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

VALIDATION_SHARE = 0.2
"""Of the training images that are used, this part chooses between candidates."""


def quotas(counts: Indices, total: int, least: Indices, most: Indices) -> Indices:
    """Share `total` out in proportion to `counts`, by largest remainder within bounds.

    Parameters
    ----------
    counts, least, most
        `[K]`; the answer `q` has `least <= q <= most`.
    total
        The sum of the answer, as near as the bounds allow.
    """
    share = counts * (total / max(1, int(counts.sum())))
    quota: Indices = np.clip(np.floor(share).astype(np.int64), least, most)
    while quota.sum() < total and (quota < most).any():
        quota[np.argmax(np.where(quota < most, share - quota, -np.inf))] += 1
    while quota.sum() > total and (quota > least).any():
        quota[np.argmin(np.where(quota > least, share - quota, np.inf))] -= 1
    return quota


def sample(labels: Indices, limit: int, seed: int, least: int = 2) -> Indices:
    """Sorted indices of a stratified sample of at most `limit` of the `labels [n]`.

    Every class keeps at least `least` members where it has them, so that it can both train and
    validate; with more than `limit / least` classes the sample is larger than `limit` for that.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    return _draw(labels, quotas(counts, limit, np.minimum(least, counts), counts), seed)


def split(labels: Indices, seed: int, share: float = VALIDATION_SHARE) -> tuple[Indices, Indices]:
    """Sorted indices `(train, validation)` of a stratified split of the `labels [n]`.

    Each class gives `share` of its members to validation, one at least, and keeps one at least.
    """
    counts = np.bincount(labels)
    most = np.maximum(counts - 1, 0)
    # Of images that can be held out: a large class does not pay for those of which there is one.
    size = round(share * int(counts[counts > 1].sum()))
    quota = quotas(counts, size, np.zeros_like(counts), most)
    # The one of a rare class comes on top: a large class does not pay for many small ones.
    held = _draw(labels, np.maximum(quota, np.minimum(1, most)), seed)
    return np.setdiff1d(np.arange(len(labels)), held), held


def carve_test(
    labels: Indices, *, share: float | None = None, train_per_class: int | None = None
) -> tuple[Indices, Indices]:
    """Sorted indices `(rest, test)` for data without an official test part.

    The test part is a stratified `share` of the `labels [n]`, or all but `train_per_class` of each
    class. Each class keeps at least two members outside of it. The seed is fixed: the test part is
    the same in all runs, so that no run trains on what another one tests.
    """
    counts = np.bincount(labels)
    most = np.maximum(counts - 2, 0)
    if train_per_class is not None:
        quota = np.clip(counts - train_per_class, 0, most)
    else:
        size = round((share or 0.0) * len(labels))
        quota = quotas(counts, size, np.zeros_like(counts), most)
    test = _draw(labels, quota, seed=0)
    return np.setdiff1d(np.arange(len(labels)), test), test


def _draw(labels: Indices, quota: Indices, seed: int) -> Indices:
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:size] for label, size in enumerate(quota)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def split_groups(
    labels: Indices, groups: Indices, seed: int, share: float = VALIDATION_SHARE
) -> tuple[Indices, Indices]:
    """Do as `split`, with all members of a group on one side.

    Parameters
    ----------
    groups
        `[n]`, the number of each member's group. A group may have members of several classes.

    Returns
    -------
    `(train, validation)`. Sizes are as near to those of `split` as groups allow; each class of two
    groups gives one and keeps one, unless a group that it shares with another class is needed
    there. With groups of one member the sizes are those of `split`.
    """
    counts = np.bincount(labels)
    _, held = split(labels, seed, share)
    quota = np.bincount(labels[held], minlength=len(counts))
    held = _draw_groups(labels, groups, quota, seed, keep=1)
    return np.setdiff1d(np.arange(len(labels)), held), held


def carve_test_groups(
    labels: Indices,
    groups: Indices,
    *,
    share: float | None = None,
    train_per_class: int | None = None,
) -> tuple[Indices, Indices]:
    """Do as `carve_test`, with all members of a group on one side: `(rest, test)`.

    Each class keeps at least two groups outside of the test part where it has them, one to train
    and one to validate.
    """
    counts = np.bincount(labels)
    _, test = carve_test(labels, share=share, train_per_class=train_per_class)
    quota = np.bincount(labels[test], minlength=len(counts))
    held = _draw_groups(labels, groups, quota, seed=0, keep=2)
    return np.setdiff1d(np.arange(len(labels)), held), held


def _draw_groups(labels: Indices, groups: Indices, quota: Indices, seed: int, keep: int) -> Indices:
    """Sorted members of groups that fill the `quota [K]`; each class keeps `keep` groups.

    In random order each group is taken that fits into what is left of the quotas. A class that
    nothing was taken of then gives its smallest group, though that be larger than its quota.
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    classes = [np.unique(labels[rows], return_counts=True) for rows in members]
    left = quota.copy()
    outside = np.bincount(np.concatenate([kinds for kinds, _ in classes]), minlength=len(quota))
    taken: set[int] = set()

    def take(index: int) -> None:
        kinds, sizes = classes[index]
        left[kinds] -= sizes
        outside[kinds] -= 1
        taken.add(index)

    shuffled = np.random.default_rng(seed).permutation(len(members))
    for index in shuffled:
        kinds, sizes = classes[index]
        if (sizes <= left[kinds]).all() and (outside[kinds] > keep).all():
            take(int(index))
    small_first = sorted(shuffled, key=lambda index: len(members[index]))
    for label in np.flatnonzero((quota > 0) & (left == quota)):
        for index in small_first:
            kinds = classes[index][0]
            if index not in taken and label in kinds and (outside[kinds] > keep).all():
                take(int(index))
                break
    chosen = [members[index] for index in sorted(taken)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
