"""Intervals of proportions: of one, and of the mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""The interval holds the true value in 95 of 100 cases, half of the rest on each side."""


@dataclass(frozen=True)
class Proportion:
    """A proportion with its 95 % interval, all in 0 .. 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As in tables: `79.3 % (76.0 to 82.2)`."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def wilson(count: float, total: int) -> Proportion:
    """Return `count / total` with Wilson's score interval.

    Raises
    ------
    ValueError
        `total` is not positive, or `count` is not between 0 and `total`.

    References
    ----------
    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference,
    Journal of the American Statistical Association 22, 209-212.
    """
    if total <= 0 or not 0 <= count <= total:
        raise ValueError(f"'count' must be in 0 .. 'total', which is positive; got {count}/{total}")
    share, scale = count / total, 1 + Z**2 / total
    middle = (share + Z**2 / (2 * total)) / scale
    reach = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2)) / scale
    # Rounding must not push a bound past the proportion itself: 0 of n and n of n touch theirs.
    return Proportion(
        share, max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))
    )


def mean_of_proportions(parts: Sequence[tuple[float, int]]) -> Proportion:
    """Return the mean of independent proportions `(count, total)` with its interval.

    The distances from each proportion to the bounds of its Wilson interval are added in squares
    (MOVER). A class of few images, all of them right, so keeps its share of the doubt; a resampling
    of its images would give it none. Of one part it is `wilson`.

    Raises
    ------
    ValueError
        No parts, or as of `wilson`.

    References
    ----------
    G. Y. Zou, W. Huang and X. Zhang (2009), A note on confidence interval estimation for a linear
    function of binomial proportions, Computational Statistics and Data Analysis 53, 1080-1085.
    """
    if not parts:
        raise ValueError("'parts' must not be empty.")
    found = [wilson(count, total) for count, total in parts]
    mean = sum(part.value for part in found) / len(found)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in found)) / len(found)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in found)) / len(found)
    return Proportion(mean, max(0.0, mean - below), min(1.0, mean + above))
