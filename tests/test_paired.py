"""The interval of a paired difference, against published figures, a grid and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.maths.paired import Paired, Z, paired, score_interval


def test_published_figures() -> None:
    """Airway hyper-responsiveness of 21 children, Fagerland, Lydersen and Laake (2014)."""
    assert score_interval(21, 1, 7, z=1.959964) == pytest.approx((-0.517, -0.026), abs=5e-4)


def best_likelihood(images: int, more: int, less: int, difference: float) -> tuple[float, float]:
    """Shares of both kinds of pairs with this difference that explain the counts best, by grid."""
    less_share = np.linspace(max(0.0, -difference), (1 - difference) / 2, 200_001)
    more_share = less_share + difference
    with np.errstate(divide="ignore", invalid="ignore"):
        log = sum(
            count * np.log(share) if count else 0 * share
            for count, share in (
                (more, more_share),
                (less, less_share),
                (images - more - less, 1 - more_share - less_share),
            )
        )
    best = int(np.nanargmax(log))
    return float(more_share[best]), float(less_share[best])


@pytest.mark.parametrize("counts", [(30, 5, 2), (30, 0, 4), (200, 9, 3), (12, 3, 9)])
def test_bounds_are_where_the_score_is_one_quantile(counts: tuple[int, int, int]) -> None:
    """At each bound the variance is that of the best explanation with that difference."""
    images, more, less = counts
    for bound, sign in zip(score_interval(images, more, less), (1, -1), strict=True):
        above, below = best_likelihood(images, more, less, bound)
        error = math.sqrt((above + below - (above - below) ** 2) / images)
        assert ((more - less) / images - bound) / error == pytest.approx(sign * Z, rel=2e-3)


def test_nothing_lost_and_nothing_won() -> None:
    low, high = score_interval(100, 0, 0)
    assert high == -low == pytest.approx(Z**2 / (100 + Z**2), rel=1e-4)
    assert score_interval(0, 0, 0) == (-1, 1)
    assert score_interval(5, 5, 0)[1] == 1
    assert score_interval(5, 0, 5)[0] == -1


@pytest.mark.parametrize("shares", [(0.1, 0.05), (0.02, 0.02), (0.2, 0.02)])
def test_each_bound_holds_as_often_as_it_says(shares: tuple[float, float]) -> None:
    """All outcomes of forty pairs by their probability."""
    images, (won, lost) = 40, shares
    below = above = 0.0
    for more, less in itertools.product(range(16), range(12)):
        rest = images - more - less
        ways = math.comb(images, more) * math.comb(images - more, less)
        probability = ways * won**more * lost**less * (1 - won - lost) ** rest
        if probability < 1e-9:
            continue
        low, high = score_interval(images, more, less)
        below += probability * (low > won - lost)
        above += probability * (high < won - lost)
    assert max(below, above) < 0.07, "not 0.05 to the point: counts are whole numbers"


@given(st.integers(1, 400), st.data())
@settings(max_examples=50, deadline=None)
def test_interval_holds_the_difference_and_mirrors(images: int, data: st.DataObject) -> None:
    more = data.draw(st.integers(0, images))
    less = data.draw(st.integers(0, images - more))
    low, high = score_interval(images, more, less)
    assert -1 <= low <= (more - less) / images <= high <= 1
    assert score_interval(images, less, more) == pytest.approx((-high, -low), abs=1e-9)
    wider = score_interval(images, more, less, 2 * Z)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


def test_pairs_of_two_models() -> None:
    first, second = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 1, 0, 0.0])
    found = paired(first, second)
    assert (found.images, found.lost, found.won) == (5, 2, 1)
    assert found.change == pytest.approx(-20)
    low, high = found.interval
    assert str(found) == f"-20.0 ({low:+.1f} to {high:+.1f})"
    assert str(Paired(100, 0, 0)).startswith("+0.0 (")


def test_several_looks_at_an_image_are_no_more_images() -> None:
    """The interval of means of three looks is at least that of their normal distribution."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 300, 3)).mean(axis=2)
    found, change = paired(first, second), second - first
    error = change.std() / math.sqrt(len(change))
    low, high = found.interval
    assert high - low > 2 * 1.6 * 100 * error


def test_how_many_images_decide() -> None:
    found = Paired(200, 3, 2)
    needed = found.needed(-1)
    assert needed is not None
    scale = needed / 200
    low, _ = Paired(needed, 3 * scale, 2 * scale).interval
    fewer = (needed - 2) / 200
    assert low > -1 > Paired(needed - 2, 3 * fewer, 2 * fewer).interval[0]
    assert Paired(200, 4, 2).needed(-1) is None, "it is at the bound itself"
    assert Paired(0, 0, 0).needed(-1) is None
    worse = Paired(200, 8, 2).needed(-1)
    assert worse is not None
    assert Paired(worse, 0.04 * worse, 0.01 * worse).interval[1] < -1
