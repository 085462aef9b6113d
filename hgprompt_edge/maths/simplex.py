"""A mix as a point of the simplex: kept off its vertices, and the gradient through its softmax."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def through_softmax(d_mix: Doubles, a: Doubles) -> Doubles:
    """Gradient of the logits from that of the mix: `a (d - a . d)`."""
    return a * (d_mix - a @ d_mix)


def smoothed(a: npt.ArrayLike, floor: float = 0.05) -> Doubles:
    """`(1 - floor) a + floor / M`: away from the vertices, where a softmax has no gradient."""
    a = np.asarray(a, np.float64)
    return cast("Doubles", (1 - floor) * a / a.sum() + floor / len(a))
