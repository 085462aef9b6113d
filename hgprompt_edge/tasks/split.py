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
