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


def wilson(count: float, total: float) -> Proportion:
    """Return `count / total` with Wilson's score interval.

    Raises
    ------
    ValueError
        `total` is not positive, or `count` is not between 0 and `total`.

    References
    ----------
    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference,
    J. Am. Stat. Assoc. 22, 209-212.
    """
    if total <= 0 or not 0 <= count <= total:
        raise ValueError(f"'count' must be in 0 .. 'total', which is positive; got {count}/{total}")
    share, scale = count / total, 1 + Z**2 / total
    middle = (share + Z**2 / (2 * total)) / scale
    reach = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2)) / scale
    # Of none or all right one bound is the proportion itself, which rounding must not pass.
    low, high = min(share, middle - reach), max(share, middle + reach)
    return Proportion(share, max(0.0, low), min(1.0, high))


def mean_of_proportions(parts: Sequence[tuple[int, int]]) -> Proportion:
    """Return the mean of independent proportions `(count, total)` with its interval.

    Wilson's interval for the effective number of images: as many as would give a single proportion
    of this size the variance of the mean, `K^2 / sum(1 / total)` of K parts, where all have the
    same. Where they differ and the totals are equal, the variance is smaller, and the interval too
    wide rather than too narrow. It can be too narrow where a part with a handful of images is much
    worse than the others. A bootstrap within each part would call parts of few images, all of them
    right, certain.

    Raises
    ------
    ValueError
        No parts, or as of `wilson`.

    References
    ----------
    For effective numbers: E. L. Korn and B. I. Graubard (1998), Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data, Survey
    Methodology 24, 193-201.
    """
    if not parts:
        raise ValueError("'parts' must not be empty.")
    mean = sum(wilson(count, total).value for count, total in parts) / len(parts)
    effective = len(parts) ** 2 / sum(1 / total for _, total in parts)
    return wilson(min(1.0, mean) * effective, effective)
