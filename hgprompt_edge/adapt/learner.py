"""Two ways to learn a mix: with the graph of the gradient, or forwards only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.gradient import AdaptGraph, Doubles, Floats, Pixels
from hgprompt_edge.adapt.gradient_check import check_gradient
from hgprompt_edge.adapt.losses import (
    anchor_unit,
    anchored_judge,
    cross_entropy_judge,
    statistics_distance,
    statistics_judge,
)
from hgprompt_edge.adapt.optimizer import (
    Descent,
    Point,
    Report,
    Settings,
    descend,
    divergence,
)
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.simplex import smoothed
from hgprompt_edge.maths.softmax import log_softmax, softmax
from hgprompt_edge.runtime.predictor import Predictor

CHECKED_IMAGES = 8
SPREAD = 1.0
"""First standard deviation of CMA-ES on the logits of the mix."""
BATCH = 16


class Learner(Protocol):
    """Learns a mix from images.

    Attributes
    ----------
    initial
        The mix `[M]` that the model left the server with.
    head
        The model's own.
    settings
        How it descends.
    method
        Its name in the history.
    clean
        Statistics of the features of clean images; None: not known.
    mixes
        Whether there is a mix to learn; else only the head moves.
    """

    initial: Doubles
    head: Head
    settings: Settings
    method: str
    clean: FeatureStatistics | None
    mixes: bool

    def check(self, images: Pixels, start: Point, rng: np.random.Generator) -> None:
        """Refuse to learn where the runtime computes wrongly."""
        ...

    def features(self, images: Pixels, mix: npt.ArrayLike) -> Floats:
        """Features `[n, D]` of `images [n, S, S, 3]`."""
        ...

    def learn(
        self,
        images: Pixels,
        labels: Floats | None,
        start: Point,
        report: Report | None = None,
        deadline: float = math.inf,
    ) -> Descent:
        """Learn from `images` with one-hot `labels [n, K]` or without any, until `deadline`."""
        ...


class GradientLearner:
    """Adam along the gradient that `NAME.adapt.onnx` gives."""

    method, mixes = "gradient", True

    def __init__(self, graph: AdaptGraph, settings: Settings) -> None:
        self._graph, self.settings = graph, settings
        self.initial, self.head = graph.bank.initial.astype(np.float64), graph.head
        self.clean = graph.bank.clean

    def check(self, images: Pixels, start: Point, rng: np.random.Generator) -> None:
        """Hold the runtime's gradient against differences of its loss."""
        rows = rng.choice(len(images), min(len(images), CHECKED_IMAGES), replace=False)
        check_gradient(self._graph, images[rows], start.mix_logits, rng)

    def features(self, images: Pixels, mix: npt.ArrayLike) -> Floats:
        """Features `[n, D]` of `images [n, S, S, 3]`."""
        return self._graph.forward(images, mix).features

    def learn(
        self,
        images: Pixels,
        labels: Floats | None,
        start: Point,
        report: Report | None = None,
        deadline: float = math.inf,
    ) -> Descent:
        """Descend on what is known: labels, statistics of clean images, or both."""
        graph, clean, anchor = self._graph, self.clean, self.settings.anchor
        if labels is None:
            if clean is None:
                raise ValueError("Without labels the statistics of clean images are needed.")
            judge = statistics_judge(graph, images, clean, anchor)
        elif clean is None:
            judge = cross_entropy_judge(graph, images, labels)
        else:
            judge = anchored_judge(graph, images, labels, clean, anchor)
        return descend(judge, start, self.initial, self.settings, report, deadline)


class ForwardLearner:
    """CMA-ES with the model alone: for int8 models, and where there is no graph of the gradient.

    A generation costs some ten passes over the images, as in FOA (Niu et al., ICML 2024), over a
    handful of numbers.
    """

    method, mixes = "cma", True

    def __init__(self, predictor: Predictor, settings: Settings, seed: int = 0) -> None:
        bank = predictor.require_bank()
        self._predictor, self.settings, self._seed = predictor, settings, seed
        self.initial = bank.initial.astype(np.float64)
        self.head = bank.head
        self.clean = bank.clean

    def check(self, images: Pixels, start: Point, rng: np.random.Generator) -> None:
        """There is no gradient to be wrong."""

    def features(self, images: Pixels, mix: npt.ArrayLike) -> Floats:
        """Features `[n, D]` of `images [n, S, S, 3]`."""
        self._predictor.set_weights(mix)
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self._predictor.head_inputs(part) for part in parts])

    def learn(
        self,
        images: Pixels,
        labels: Floats | None,
        start: Point,
        report: Report | None = None,
        deadline: float = math.inf,
    ) -> Descent:
        """Search by the same losses as with the gradient."""
        clean, unit = self.clean, 0.0
        if clean is None and labels is None:
            raise ValueError("Without labels the statistics of clean images are needed.")
        if clean is not None:
            at_initial = self.features(images, self.initial)
            unit = anchor_unit(at_initial, clean, self.settings.anchor)

        def loss(mix_logits: Doubles) -> float:
            features = self.features(images, softmax(mix_logits))
            logits = start.head.logits(features)
            distance = 0.0 if clean is None else unit * statistics_distance(features, clean)[0]
            if labels is not None:
                return float(-(labels * log_softmax(logits)).sum(axis=1).mean()) + distance
            return distance

        return self._search(loss, start, report, deadline)

    def _search(
        self,
        loss: Callable[[Doubles], float],
        start: Point,
        report: Report | None,
        deadline: float,
    ) -> Descent:
        from cmaes import CMA  # takes SciPy where that is installed: not for those without need

        settings, prior = self.settings, smoothed(self.initial)
        search = CMA(mean=start.mix_logits.copy(), sigma=SPREAD, seed=self._seed)
        best = (math.inf, start)
        losses: list[float] = []
        while len(losses) < settings.steps and time.monotonic() < deadline:
            told: list[tuple[Doubles, float]] = []
            while len(told) < search.population_size:
                if told and time.monotonic() >= deadline:
                    return Descent(best[1], len(losses), tuple(losses))
                mix_logits = search.ask()
                value = loss(mix_logits) + settings.proximal * divergence(
                    softmax(mix_logits), prior
                )
                told.append((mix_logits, value if math.isfinite(value) else 1e9))
                if told[-1][1] < best[0]:
                    best = told[-1][1], Point(mix_logits, start.head)
            search.tell(told)
            losses.append(min(value for _, value in told))
            if report is not None:
                report(len(losses), settings.steps)
        return Descent(best[1], len(losses), tuple(losses))
