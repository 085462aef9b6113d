"""What adaptation proposes: new weights and a verdict on them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hgprompt_edge.adapt.gradient import Doubles
from hgprompt_edge.adapt.guard.verdict import Verdict
from hgprompt_edge.adapt.optimizer import Point
from hgprompt_edge.maths.head import Head


@dataclass(frozen=True)
class Weights:
    """A mix `[M]` and a head for the model's features."""

    mix: Doubles
    head: Head


@dataclass(frozen=True)
class Proposal:
    """What adaptation came to.

    Attributes
    ----------
    weights
        The new ones; whether to take them over is the verdict's.
    steps, seconds
        What it took, all folds included.
    images
        How many it was learned from.
    """

    weights: Weights
    verdict: Verdict
    steps: int
    seconds: float
    images: int


def propose(point: Point, verdict: Verdict, steps: int, begin: float, images: int) -> Proposal:
    """Propose a point, learned from so many images since `begin` of the monotonic clock."""
    weights = Weights(point.mix, point.head)
    return Proposal(weights, verdict, steps, time.monotonic() - begin, images)
