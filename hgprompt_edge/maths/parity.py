"""When two sets of logits are equal (METHOD 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-4
TOLERANCES = {"fp32": TOLERANCE, "fp16": 1e-2, "int8": 0.5}
"""By precision, relative to the largest logit. Weights in float16 move logits by some 1e-3 of it.
Of int8 accuracy was held against float32; its logits tell a broken model from a rounded one alone.
"""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """Two sets of logits on the same images, compared as METHOD 8 says.

    Attributes
    ----------
    ok
        The difference is within the bound and no decided image changes its class.
    max_abs_diff, bound
        Largest absolute difference (infinite where a logit is not finite), and what it may be:
        `tolerance * max(1, max |logit|)`.
    top1_agreement
        Share of all images with the same predicted class.
    images
        How many there were.
    """

    ok: bool
    max_abs_diff: float
    bound: float
    top1_agreement: float
    images: int

    def __str__(self) -> str:
        same = round(self.top1_agreement * self.images)
        return (
            f"largest difference of the logits {self.max_abs_diff:.2g} (equal up to "
            f"{self.bound:.2g}), same class on {same} of {self.images} images"
        )


def compare(logits: Floats, reference: Floats, tolerance: float = TOLERANCE) -> Comparison:
    """Compare `logits [n, K]` with `reference [n, K]`; numbers that are not finite never pass."""
    if not (np.isfinite(logits).all() and np.isfinite(reference).all()):
        return Comparison(False, math.inf, tolerance, 0.0, len(reference))
    bound = tolerance * max(1.0, float(np.abs(reference).max()))
    difference = float(np.abs(logits.astype(np.float64) - reference).max())
    same = logits.argmax(1) == reference.argmax(1)
    best = np.sort(reference, axis=1)[:, -2:]
    decided = best[:, -1] - best[:, 0] > bound
    ok = difference <= bound and bool(same[decided].all())
    return Comparison(ok, difference, bound, float(same.mean()), len(reference))
