"""Samples and splits: disjoint, stratified, seeded, with two of every class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hgprompt_edge.data.split import carve_test, sample, split

labels = st.lists(st.integers(1, 60), min_size=1, max_size=12).flatmap(
    lambda counts: st.permutations(list(np.repeat(np.arange(len(counts)), counts)))
)
seeds = st.integers(0, 2**32)


def counts_of(all_labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.bincount(all_labels[chosen], minlength=all_labels.max() + 1)


@settings(max_examples=80, deadline=None)
@given(labels, seeds)
@example([0, 1, 2, 3] + [4] * 14, 0)  # classes with one image each
def test_split_is_stratified(drawn: list[int], seed: int) -> None:
    y = np.array(drawn)
    train, validation = split(y, seed)
    assert sorted([*train, *validation]) == list(range(len(y)))
    counts, held = np.bincount(y), counts_of(y, validation)
    assert (counts_of(y, train) >= 1).all()
    assert (held[counts > 1] >= 1).all()
    assert (np.abs(held - 0.2 * counts) <= 1).all()
    np.testing.assert_array_equal(split(y, seed)[1], validation)


@settings(max_examples=80, deadline=None)
@given(labels, seeds, st.integers(1, 200))
def test_sample_is_stratified(drawn: list[int], seed: int, limit: int) -> None:
    y = np.array(drawn)
    chosen = sample(y, limit, seed)
    counts = np.bincount(y)
    kept = counts_of(y, chosen)
    assert len(set(chosen)) == len(chosen)
    assert (kept >= np.minimum(2, counts)).all()
    assert len(chosen) <= max(limit, int(np.minimum(2, counts).sum()))
    if limit >= np.minimum(2, counts).sum():
        assert len(chosen) == min(limit, len(y))


@settings(max_examples=60, deadline=None)
@given(labels, st.integers(1, 40))
def test_carved_test_parts(drawn: list[int], train_per_class: int) -> None:
    y = np.array(drawn)
    counts = np.bincount(y)
    for rest, test in (carve_test(y, share=0.2), carve_test(y, train_per_class=train_per_class)):
        assert sorted([*rest, *test]) == list(range(len(y)))
        assert (counts_of(y, rest) >= np.minimum(2, counts)).all()
    np.testing.assert_array_equal(
        counts_of(y, rest), np.minimum(counts, np.maximum(train_per_class, 2))
    )


def test_proportions_are_exact_where_they_can_be() -> None:
    y = np.repeat([0, 1, 2], [600, 300, 100])
    assert np.bincount(y[sample(y, 100, 0)]).tolist() == [60, 30, 10]
    assert np.bincount(y[split(y, 0)[1]]).tolist() == [120, 60, 20]
    assert np.bincount(y[carve_test(y, share=0.1)[1]]).tolist() == [60, 30, 10]


@pytest.mark.parametrize("choose", [lambda y, s: sample(y, 20, s), lambda y, s: split(y, s)[1]])
def test_seeds_differ(choose: object) -> None:
    y = np.repeat([0, 1], 50)
    assert not np.array_equal(choose(y, 0), choose(y, 1))  # type: ignore[operator]
