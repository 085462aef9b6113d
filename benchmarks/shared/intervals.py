"""95 % intervals by bootstrap over the units of a study: families, sets, or tasks and shifts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap(gains: Sequence[float], sizes: Sequence[float] | None = None) -> tuple[float, float]:
    """Percentile interval of the mean gain of a unit, units drawn with replacement.

    Parameters
    ----------
    gains
        One number for each unit.
    sizes
        Of the same length: the interval is that of the sum of gains by the sum of sizes.
    """
    above = np.asarray(gains, np.float64)
    below = np.ones(len(above)) if sizes is None else np.asarray(sizes, np.float64)
    picks = np.random.default_rng(0).integers(0, len(above), (RESAMPLES, len(above)))
    drawn = above[picks].sum(1) / below[picks].sum(1)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)
