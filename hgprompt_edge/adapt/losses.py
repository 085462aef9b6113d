"""What a mix is judged by on a device: with labels, or without.

A `Judge` gives the loss at a mix and a head with its gradients. Where the loss looks at all images
together, those with a graph need a pass forwards before the one that goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hgprompt_edge.adapt.gradient import AdaptGraph, Doubles, Floats, Pixels
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head


@dataclass(frozen=True)
class Slope:
    """A loss and its gradients with respect to the mix `[M]` and the head `[K, D]`, `[K]`."""

    loss: float
    d_mix: Doubles
    d_weight: Doubles
    d_bias: Doubles


LEAST_DISTANCE = 0.1
"""Of statistics, to measure others by: what a few dozen clean images may be away by chance."""

Judge = Callable[[Doubles, Head], Slope]


def cross_entropy_judge(graph: AdaptGraph, images: Pixels, labels: Floats) -> Judge:
    """Mean cross-entropy with `labels [n, K]`."""

    def judge(mix: Doubles, head: Head) -> Slope:
        step = graph(images, labels, mix, head)
        return Slope(float(step.loss.mean()), step.d_mix, step.d_weight, step.d_bias)

    return judge


def anchor_unit(at_initial: Floats, clean: FeatureStatistics, weight: float) -> float:
    """Loss a unit of distance: `weight` for that of the features `[n, D]` at the initial mix.

    A few labelled images can be fitted by mixes under which the features are like nothing that the
    model was fitted on; the statistics need no labels to say so. In this unit the distance weighs
    as much against the proximal term whether a shift is small or large.
    """
    return weight / max(statistics_distance(at_initial, clean)[0], LEAST_DISTANCE)


def anchored_judge(
    graph: AdaptGraph, images: Pixels, labels: Floats, clean: FeatureStatistics, weight: float
) -> Judge:
    """Cross-entropy plus the distance of statistics, see `anchor_unit`.

    The distance's gradient is that of the features of the last step that had any: so a step stays
    one pass.
    """
    before = graph.forward(images, graph.bank.initial).features
    unit = anchor_unit(before, clean, weight)

    def judge(mix: Doubles, head: Head) -> Slope:
        nonlocal before
        _, d_features = statistics_distance(before, clean)
        scaled = (unit * len(images) * d_features).astype(np.float32)
        step = graph(images, labels, mix, head, scaled)
        if np.isfinite(step.features).all():  # else the next step has no gradient, either
            before = step.features
        distance, _ = statistics_distance(step.features, clean)
        loss = float(step.loss.mean()) + unit * distance
        return Slope(loss, step.d_mix, step.d_weight, step.d_bias)

    return judge


def statistics_judge(
    graph: AdaptGraph, images: Pixels, clean: FeatureStatistics, weight: float
) -> Judge:
    """Distance of the features' mean and deviation from those of clean images, see `anchor_unit`.

    The term that keeps label-free adaptation stable in FOA (Niu et al., ICML 2024), on the last
    features alone. Here it is all there is, so that its gradient must be that of the very step.
    """
    blank = np.zeros((len(images), len(graph.head.bias)), np.float32)
    unit = anchor_unit(graph.forward(images, graph.bank.initial).features, clean, weight)

    def judge(mix: Doubles, head: Head) -> Slope:
        features = graph.forward(images, mix).features
        distance, d_features = statistics_distance(features, clean)
        scaled = (unit * len(images) * d_features).astype(np.float32)
        step = graph(images, blank, mix, head, scaled)
        return Slope(unit * distance, step.d_mix, step.d_weight, step.d_bias)

    return judge


def statistics_distance(features: Floats, known: FeatureStatistics) -> tuple[float, Floats]:
    """Squared distance of mean and deviation, in clean deviations, and its gradient `[n, D]`."""
    x = features.astype(np.float64)
    scale = np.sqrt(known.variance.astype(np.float64)) + 1e-6
    centre = x.mean(axis=0)
    deviation = np.sqrt(x.var(axis=0) + 1e-6)
    off_centre, off_scale = (centre - known.mean) / scale, (deviation - scale) / scale
    loss = float((off_centre**2).mean() + (off_scale**2).mean())
    width, count = x.shape[1], len(x)
    gradient = 2 / (width * count) * off_centre / scale
    gradient = gradient + 2 / (width * count) * off_scale / scale * (x - centre) / deviation
    return loss, gradient.astype(np.float32)
