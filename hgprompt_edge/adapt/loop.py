"""Re-learn the mixing weights on a device: learn, hold out, decide (METHOD 7).

Weights are learned from all images, and judged on images that they were not learned from: each fold
of the images is held out once. What comes back is a proposal with a verdict; keeping it is the
history's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hgprompt_edge.adapt.gradient import Floats, Pixels
from hgprompt_edge.adapt.guard.evidence import (
    Expected,
    expect,
    judge_known,
    judge_labels,
    judge_shown,
)
from hgprompt_edge.adapt.guard.labelled import FOLDS, fold_of, judge_labelled
from hgprompt_edge.adapt.guard.measures import Labels
from hgprompt_edge.adapt.guard.unlabelled import judge_bias, judge_clean, judge_unlabelled
from hgprompt_edge.adapt.guard.verdict import Verdict
from hgprompt_edge.adapt.learner import Learner
from hgprompt_edge.adapt.losses import statistics_distance
from hgprompt_edge.adapt.optimizer import Descent, Point, average, deadline_of, share_of, start_at
from hgprompt_edge.adapt.proposal import Proposal, Weights, propose
from hgprompt_edge.adapt.starts import stage_of, starts
from hgprompt_edge.maths.feature_statistics import FeatureStatistics

Report = Callable[[str, int, int], None]


def adapt_labelled(
    learner: Learner,
    images: Pixels,
    labels: Labels,
    current: Weights,
    *,
    expected: Expected | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Proposal:
    """Learn the mix from `images [n, S, S, 3]` with `labels [n]`.

    Nothing is learned from images of fewer than half of the `expected` classes; None: all.

    Raises
    ------
    CheckError
        The runtime's gradient is wrong.
    UserError
        The loss is no number.
    """
    begin, rng = time.monotonic(), np.random.default_rng(seed)
    refused = judge_labels(labels, expected or expect(None, len(learner.head.bias)))
    if refused is not None:
        return Proposal(current, refused, 0, time.monotonic() - begin, len(images))
    deadline = deadline_of(learner.settings.seconds)
    start = _checked_start(learner, images, current, rng)
    rows = np.eye(len(learner.head.bias), dtype=np.float32)[labels]
    folds = fold_of(labels, FOLDS, rng)
    at_initial, before = _features_before(learner, images, current)
    old = current.head.logits(before)
    held_out = old.copy()
    points, losses = starts(learner, images, labels, start, at_initial, deadline, report)
    descents: list[Descent] = []
    for place, fold in enumerate(np.unique(folds)):
        kept, out = folds != fold, folds == fold
        tell = stage_of(report, f"fold {fold + 1} of {FOLDS}")
        best = points[int(losses[:, kept].mean(axis=1).argmin())]
        end = share_of(deadline, FOLDS + 1 - place)
        descents.append(learner.learn(images[kept], rows[kept], best, tell, end))
        point = descents[-1].point
        held_out[out] = point.head.logits(learner.features(images[out], point.mix))
    middle = average([descent.point for descent in descents])
    tell = stage_of(report, "all images")
    descents.append(learner.learn(images, rows, middle, tell, deadline))
    point = descents[-1].point
    after = learner.features(images, point.mix)
    distances = _distances(learner, before, after)
    verdict = judge_labelled(old, held_out, labels, distances, point.head.logits(after))
    steps = sum(descent.steps for descent in descents)
    return propose(point, verdict, steps, begin, len(images))


def adapt_unlabelled(
    learner: Learner,
    images: Pixels,
    current: Weights,
    *,
    expected: Expected | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Proposal:
    """Learn the mix from `images [n, S, S, 3]` alone, where something has changed.

    Nothing is learned where it could not be judged: without statistics of clean images, from too
    few images, or from images of too few of the classes. Nor from images that look as clean ones do
    under the initial weights; a device that has adapted to something that is gone goes back to
    these.

    Parameters
    ----------
    expected
        The classes that the images may show; None: all, and how many clean images the learner's
        statistics are of is not known.

    Raises
    ------
    CheckError
        The runtime's gradient is wrong.
    UserError
        The loss is no number.
    """
    begin = time.monotonic()
    if expected is None:
        expected = expect(learner.clean, len(learner.head.bias))
    verdict = judge_known(expected, len(images))
    if verdict is None:
        before = _features_before(learner, images, current)
        verdict = _judged_before(learner, before, expected)
        if verdict is None:
            proposal = learn_unlabelled(
                learner, images, current, before, expected=expected.places, seed=seed, report=report
            )
            return replace(proposal, seconds=time.monotonic() - begin)
    weights = Weights(learner.initial, learner.head) if verdict.taken else current
    return Proposal(weights, verdict, 0, time.monotonic() - begin, len(images))


def _judged_before(
    learner: Learner, before: tuple[Floats, Floats], expected: Expected
) -> Verdict | None:
    """Judge what the images show before anything is learned; None: there is something to learn."""
    at_initial, at_current = before
    clean = judge_clean(_distance(learner, at_current), _distance(learner, at_initial))
    if clean is not None and not clean.taken:
        return clean
    return judge_shown(learner.head.logits(at_initial), expected) or clean


def learn_unlabelled(
    learner: Learner,
    images: Pixels,
    current: Weights,
    before: tuple[Floats, Floats],
    *,
    expected: Sequence[int] | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Proposal:
    """Learn the mix from `images [n, S, S, 3]` alone and judge it, whatever they look like.

    Where the head's bias moves, too, that of the model's own head follows the features' mean. The
    mix alone is judged by the distance of statistics: a bias takes the mean back whatever the
    images show, of clean images of a few classes, too.

    Parameters
    ----------
    before
        Features `[n, D]` of the images under the initial mix, and under the one in force.
    expected
        Places of the classes that the images may show; None: all.
    """
    begin, deadline = time.monotonic(), deadline_of(learner.settings.seconds)
    origin = _checked_start(learner, images, current, np.random.default_rng(seed))
    points, losses = starts(learner, images, None, origin, before[0], deadline, report)
    start = points[int(losses.mean(axis=1).argmin())]
    descent = learner.learn(images, None, start, stage_of(report, "images"), deadline)
    point, verdict = _judged(learner, images, descent.point, current, before, expected)
    if not verdict.taken and start is not origin:
        # A descent may leave a sound mix for one whose statistics are right and predictions wrong.
        fallback, sound = _judged(learner, images, start, current, before, expected)
        if sound.taken:
            point, verdict = fallback, sound
    return propose(point, verdict, descent.steps, begin, len(images))


def _judged(
    learner: Learner,
    images: Pixels,
    point: Point,
    current: Weights,
    before: tuple[Floats, Floats],
    expected: Sequence[int] | None,
) -> tuple[Point, Verdict]:
    """Judge a point without labels; the head's bias follows its features where it is to move."""
    initial, old = before
    new = learner.features(images, point.mix)
    mean = _known(learner).mean
    if learner.settings.head == "bias":
        point = Point(point.mix_logits, learner.head.following(new, mean))
    logits = learner.head.logits(initial), current.head.logits(old), point.head.logits(new)
    if learner.mixes:
        return point, judge_unlabelled(*logits, _distances(learner, initial, new), expected)
    # What a bias can take back is the shift of the mean: the rest of the distance stays.
    distances = _distance(learner, initial), _distance(learner, new + (mean - new.mean(axis=0)))
    refused = judge_bias(logits[0], distances[0], expected)
    return point, refused or judge_unlabelled(*logits, distances, expected)


def _distances(learner: Learner, before: Floats, after: Floats) -> tuple[float, float] | None:
    """Of the features' statistics from those of clean images, where these are known."""
    if learner.clean is None:
        return None
    return _distance(learner, before), _distance(learner, after)


def _distance(learner: Learner, features: Floats) -> float:
    return statistics_distance(features, _known(learner))[0]


def _known(learner: Learner) -> FeatureStatistics:
    """Statistics of clean images, without which nothing is learned from images without labels."""
    if learner.clean is None:
        raise ValueError("The learner knows no statistics of clean images.")
    return learner.clean


def _checked_start(
    learner: Learner, images: Pixels, current: Weights, rng: np.random.Generator
) -> Point:
    """Where to begin, on a runtime whose gradient has been checked there."""
    start = start_at(current.mix, current.head)
    learner.check(images, start, rng)
    return start


def _features_before(learner: Learner, images: Pixels, current: Weights) -> tuple[Floats, Floats]:
    """Features `[n, D]` under the initial mix and under the one in force, often the same."""
    initial = learner.features(images, learner.initial)
    if np.array_equal(current.mix, learner.initial):
        return initial, initial
    return initial, learner.features(images, current.mix)
