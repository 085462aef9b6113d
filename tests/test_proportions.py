"""Intervals of proportions hold what they promise, and agree with those of others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgprompt_edge.maths.proportions import mean_of_proportions, wilson

COUNTS = st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_wilson_is_that_of_scipy(part: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found, (count, total) = wilson(*part), part
    other = stats.binomtest(count, total).proportion_ci(method="wilson")
    assert found.value == count / total
    assert found.low == pytest.approx(other.low, abs=1e-9)
    assert found.high == pytest.approx(other.high, abs=1e-9)


@given(st.lists(COUNTS, min_size=1, max_size=20))
def test_an_interval_lies_around_the_mean(parts: list[tuple[int, int]]) -> None:
    found = mean_of_proportions(parts)
    mean = np.mean([count / total for count, total in parts])
    assert found.value == pytest.approx(mean, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    mirrored = mean_of_proportions([(total - count, total) for count, total in parts])
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-9)


@given(COUNTS, st.integers(1, 50))
def test_equal_parts_are_one_proportion(part: tuple[int, int], parts: int) -> None:
    count, total = part
    found, one = mean_of_proportions([part] * parts), wilson(parts * count, parts * total)
    assert (found.low, found.high) == pytest.approx((one.low, one.high), abs=1e-9)


@pytest.mark.parametrize(
    ("totals", "rates"),
    [
        ([12] * 10, [0.975] * 10),
        ([5] * 81, list(np.linspace(0.05, 0.95, 81))),
        ([*range(1, 51)], [0.8] * 50),
        ([10, 10, 10, 10, 1000], [0.5, 0.5, 0.5, 0.5, 0.99]),
        ([1] * 20, [0.7] * 20),
    ],
)
def test_the_interval_of_a_mean_holds_the_truth(totals: list[int], rates: list[float]) -> None:
    draws = np.random.default_rng(0).binomial(totals, rates, (1000, len(totals)))
    truth, held = np.mean(rates), 0
    for counts in draws:
        found = mean_of_proportions([(int(c), n) for c, n in zip(counts, totals, strict=True)])
        held += found.low <= truth <= found.high
    assert held >= 940  # of 1,000; 950 are promised


@pytest.mark.parametrize("part", [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_proportion_is_refused(part: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="'count' must be in 0"):
        wilson(*part)
    with pytest.raises(ValueError, match="'parts' must not be empty"):
        mean_of_proportions([])
