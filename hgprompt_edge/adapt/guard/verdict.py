"""A verdict on new weights, and the bounds on statistics that several verdicts use."""

from __future__ import annotations

from dataclasses import dataclass

MIN_DISTANCE = 0.1
"""Unlabelled: the images' statistics must be so far from those of clean images, under the initial
weights. A hundred clean images are some 0.02 away by chance."""
MIN_FALL = 0.4
"""And that distance must fall by this share of it: where it does not, the mix has not
found what changed. Both bounds were chosen on validation images, see docs/results/adapt.md."""


@dataclass(frozen=True)
class Verdict:
    """Whether to take over new weights, why, and on what figures."""

    taken: bool
    reason: str
    figures: dict[str, float]


def comes_back(before: float, after: float) -> bool:
    """Whether the distance of the statistics falls by the share that what changed must explain."""
    return after <= (1 - MIN_FALL) * before
