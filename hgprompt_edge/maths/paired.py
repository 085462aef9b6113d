"""How much worse one model is than another on the same images, and whether these are enough to say.

Accuracies of two models on the same images differ only by the images on which one of them is right:
`lost`, which only the first had right, and `won`, which only the second has right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z = 1.6448536269514722
"""Each bound holds in 95 of 100 cases. A decision uses one of them: at most this, or at least."""
MOST = 10_000_000
"""Images beyond which none of us would wait for a decision."""


@dataclass(frozen=True)
class Paired:
    """The change in accuracy from one model to another on the same images.

    Attributes
    ----------
    images
        How many.
    lost, won
        Images that the first or the second model alone has right. Parts of images, where one counts
        as the mean of several looks at it: the interval is then too wide rather than too narrow.
    """

    images: int
    lost: float
    won: float

    @property
    def change(self) -> float:
        """Of accuracy, in points; 0 without images."""
        return 100 * (self.won - self.lost) / max(self.images, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the change, in points; each holds in 95 of 100 cases."""
        low, high = score_interval(self.images, self.won, self.lost)
        return 100 * low, 100 * high

    def __str__(self) -> str:
        """As in tables: `-0.4 (-1.1 to +0.3)`."""
        low, high = self.interval
        return f"{self.change:+.1f} ({low:+.1f} to {high:+.1f})"

    def needed(self, limit: float) -> int | None:
        """About how many images decide on which side of `limit` points the change lies.

        With the shares of lost and won images that were found here; None: more than `MOST`.
        """
        if not self.images:
            return None

        def decides(images: int) -> bool:
            scale = images / self.images
            low, high = score_interval(images, scale * self.won, scale * self.lost)
            return not 100 * low <= limit <= 100 * high

        if not decides(MOST):
            return None
        low, high = self.images, MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high


def paired(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Paired:
    """Compare how right two models are on the same images, `[n]` each in 0 .. 1."""
    change = second.astype(np.float64) - first.astype(np.float64)
    return Paired(len(change), float(-change[change < 0].sum()), float(change[change > 0].sum()))


def score_interval(images: float, more: float, less: float, z: float = Z) -> tuple[float, float]:
    """Tango's asymptotic score interval for a difference of paired proportions, `more - less`.

    Parameters
    ----------
    images
        How many pairs.
    more, less
        Pairs that count for the difference and against it.
    z
        Quantile of the normal distribution for each bound.

    Returns
    -------
    Bounds in -1 .. 1; these themselves where there are no pairs.

    References
    ----------
    T. Tango (1998), Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design, Statistics in Medicine 17, 891-908. Recommended, for few pairs too, by
    Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33, 2850-2875.
    """
    if images <= 0:
        return -1.0, 1.0
    found = (more - less) / images

    def score(difference: float) -> float:
        """How far off `found` is from a difference, in standard errors under that difference."""
        # The share of pairs that count against it is the larger root of a quadratic equation.
        linear = -more - less + (2 * images - more + less) * difference
        constant = -less * difference * (1 - difference)
        root = math.sqrt(max(linear**2 - 8 * images * constant, 0.0))
        share = (root - linear) / (4 * images)
        variance = (2 * share + difference * (1 - difference)) / images
        if variance <= 0:
            return math.copysign(math.inf, found - difference) if found != difference else 0.0
        return (found - difference) / math.sqrt(variance)

    return _crossing(score, z, -1.0, found), _crossing(score, -z, found, 1.0)


def _crossing(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling score passes a level between two differences."""
    if score(low) <= level:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2
