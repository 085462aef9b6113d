"""Adam on the logits of the mix, within a budget of steps and seconds: numpy alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.gradient import Doubles
from hgprompt_edge.adapt.losses import Judge
from hgprompt_edge.errors import UserError
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.simplex import smoothed, through_softmax
from hgprompt_edge.maths.softmax import softmax

HEADS = ("none", "bias", "weights")
HALVINGS = 5
"""So often the rate is halved after a loss that became NaN or infinite; then it is given up."""
PATIENCE, IMPROVEMENT = 5, 1e-3
"""Stop when that many steps together have improved the loss by less, relative to it."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How to descend.

    Attributes
    ----------
    steps
        Of one descent at most.
    seconds
        That all of the learning may take; None: no limit. What judges it takes a few passes more.
    rate
        Adam's step on the logits of the mix.
    proximal
        `tau` of METHOD 7, in nats of loss a nat of KL divergence from the initial mix.
    head
        What of the head moves, too: `none`, `bias` or `weights`.
    anchor
        Nats of loss for each time that the features are as far from those of clean images as under
        the initial mix.
    head_rate, head_decay
        Adam's step on the head, and the weight of its squared distance from where it started.
    """

    steps: int = 30
    seconds: float | None = None
    rate: float = 0.3
    proximal: float = 0.02
    head: str = "none"
    anchor: float = 1.0
    head_rate: float = 0.02
    head_decay: float = 0.05


@dataclass(frozen=True)
class Point:
    """Logits of a mix `[M]` and a head."""

    mix_logits: Doubles
    head: Head

    @property
    def mix(self) -> Doubles:
        """Weights `[M]`."""
        return softmax(self.mix_logits)


@dataclass(frozen=True)
class Descent:
    """Where it ended, after how many steps, and the loss before each."""

    point: Point
    steps: int
    losses: tuple[float, ...]


def start_at(weights: Doubles, head: Head) -> Point:
    """Begin at a mix, away from the vertices: the softmax has no gradient there."""
    return Point(np.log(smoothed(weights)), head)


def average(points: Sequence[Point]) -> Point:
    """Mean of logits and heads."""
    first = points[0].head
    moved = [_float32(point.head.weight - first.weight) for point in points]
    shifts = [_float32(point.head.bias - first.bias) for point in points]
    head = Head(first.weight + np.mean(moved, axis=0), first.bias + np.mean(shifts, axis=0))
    return Point(np.mean([point.mix_logits for point in points], axis=0), head)


def descend(
    judge: Judge,
    start: Point,
    initial: Doubles,
    settings: Settings,
    report: Report | None = None,
    deadline: float = math.inf,
) -> Descent:
    """Minimise `judge + tau KL(a || a_0)` from `start`; return the best point seen.

    `deadline` is a time of `time.monotonic`; no step begins after it.

    Raises
    ------
    UserError
        The loss or its gradient became NaN or infinite however small the steps are.
    """
    prior = smoothed(initial)
    adam, point, best = _Adam(settings, start), start, (math.inf, start)
    losses: list[float] = []
    halvings = 0
    while len(losses) < settings.steps and time.monotonic() < deadline:
        slope = judge(point.mix, point.head)
        loss = slope.loss + settings.proximal * divergence(point.mix, prior)
        gradient = _gradient(slope.d_mix, point.mix, prior, settings.proximal)
        if not (math.isfinite(loss) and np.isfinite(gradient).all()):
            halvings += 1
            if halvings > HALVINGS or not losses:
                raise UserError(
                    f"the loss or its gradient became NaN or infinite, even after {halvings - 1} "
                    "halvings of the rate; the weights stay as they were; check the images and the "
                    "model file"
                )
            adam.halve()
            point = best[1]
            continue
        losses.append(loss)
        if loss < best[0]:
            best = loss, point
        if _has_settled(losses):
            break
        point = adam.step(point, gradient, slope.d_weight, slope.d_bias)
        if report is not None:
            report(len(losses), settings.steps)
    return Descent(best[1], len(losses), tuple(losses))


def deadline_of(seconds: float | None) -> float:
    """When a budget of seconds ends, on a clock that does not jump."""
    return math.inf if seconds is None else time.monotonic() + seconds


def share_of(deadline: float, parts: int) -> float:
    """When the first of so many parts ends, into which the time until `deadline` is divided."""
    now = time.monotonic()
    return now + (deadline - now) / parts


def divergence(a: Doubles, prior: Doubles) -> float:
    """KL divergence of a mix from another one without zeros, in nats."""
    return float(np.sum(a * (np.log(np.maximum(a, 1e-300)) - np.log(prior))))


def _gradient(d_mix: Doubles, a: Doubles, prior: Doubles, proximal: float) -> Doubles:
    """Gradient of the logits, that of the KL divergence included."""
    d_kl = np.log(np.maximum(a, 1e-300)) - np.log(prior) + 1
    return through_softmax(d_mix + proximal * d_kl, a)


def _has_settled(losses: Sequence[float]) -> bool:
    if len(losses) <= PATIENCE:
        return False
    before, now = min(losses[:-PATIENCE]), min(losses[-PATIENCE:])
    return before - now < IMPROVEMENT * abs(before)


class _Adam:
    """Adam (Kingma and Ba 2015) on the logits of the mix and, if asked, the head."""

    def __init__(self, settings: Settings, start: Point) -> None:
        self.settings, self.start, self.count, self.scale = settings, start, 0, 1.0
        self.moments: dict[str, tuple[Doubles, Doubles]] = {}

    def halve(self) -> None:
        """Go on at half the rate, without memory of what led astray."""
        self.scale /= 2
        self.count, self.moments = 0, {}

    def step(
        self, point: Point, d_mix_logits: Doubles, d_weight: Doubles, d_bias: Doubles
    ) -> Point:
        self.count += 1
        rate, decay = self.settings.head_rate, self.settings.head_decay
        head, first = point.head, self.start.head
        if self.settings.head != "none":
            slope = d_bias + decay * (head.bias - first.bias)
            head = replace(head, bias=_float32(head.bias - self._move("bias", slope, rate)))
        if self.settings.head == "weights":
            slope = d_weight + decay * (head.weight - first.weight)
            head = replace(head, weight=_float32(head.weight - self._move("weight", slope, rate)))
        return Point(
            point.mix_logits - self._move("mix_logits", d_mix_logits, self.settings.rate), head
        )

    def _move(self, name: str, gradient: Doubles, rate: float) -> Doubles:
        first, second = self.moments.get(name, (np.zeros_like(gradient), np.zeros_like(gradient)))
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        self.moments[name] = first, second
        mean, spread = first / (1 - 0.9**self.count), second / (1 - 0.99**self.count)
        move: Doubles = self.scale * rate * mean / (np.sqrt(spread) + 1e-8)
        return move


def _float32(x: npt.NDArray[np.floating[Any]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return x.astype(np.float32)
