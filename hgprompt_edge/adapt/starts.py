"""Where a descent begins: the loss of the mix has more than one valley."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hgprompt_edge.adapt.gradient import Doubles, Floats, Pixels
from hgprompt_edge.adapt.guard.measures import Labels, log_loss
from hgprompt_edge.adapt.learner import Learner
from hgprompt_edge.adapt.losses import anchor_unit, statistics_distance
from hgprompt_edge.adapt.optimizer import Point, divergence, share_of
from hgprompt_edge.maths.simplex import smoothed

TOWARDS = 0.9
"""How far towards each prompt another start lies."""
STARTS_SHARE = 3
"""One part of so many of a budget of seconds is for finding where to start."""

Report = Callable[[str, int, int], None]


def starts(
    learner: Learner,
    images: Pixels,
    labels: Labels | None,
    start: Point,
    at_initial: Floats,
    deadline: float,
    report: Report | None,
) -> tuple[list[Point], Doubles]:
    """Points to start from, and the loss of each image at each of them, `[S, n]`.

    The loss has more than one valley, and a descent stays in the one it begins in: beside the start
    itself there are points well on the way to each of the prompts, or to as many as there is time
    for. Without labels all images have the same loss, that of their statistics.
    """
    points = [start]
    for corner in np.eye(len(start.mix_logits)):
        points.append(Point(np.log((1 - TOWARDS) * start.mix + TOWARDS * corner), start.head))
    prior, settings, clean = smoothed(learner.initial), learner.settings, learner.clean
    unit = 0.0 if clean is None else anchor_unit(at_initial, clean, settings.anchor)
    end = share_of(deadline, STARTS_SHARE)
    losses: list[Doubles] = []
    for point in points:
        if losses and time.monotonic() >= end:
            break
        features = learner.features(images, point.mix)
        loss = np.zeros(len(images))
        if labels is not None:
            loss = log_loss(point.head.logits(features), labels)
        if clean is not None:
            loss = loss + unit * statistics_distance(features, clean)[0]
        losses.append(loss + settings.proximal * divergence(point.mix, prior))
        if report is not None:
            report("starts", len(losses), len(points))
    return points[: len(losses)], np.stack(losses)


def stage_of(report: Report | None, stage: str) -> Callable[[int, int], None] | None:
    """Report of a stage alone, by (done, total)."""
    if report is None:
        return None
    return lambda done, total: report(stage, done, total)
