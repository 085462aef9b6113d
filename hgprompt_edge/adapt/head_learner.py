"""Adapt a model without prompts: only its head moves, on features that are computed once."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.gradient import Doubles, Floats, Pixels
from hgprompt_edge.adapt.losses import Slope
from hgprompt_edge.adapt.optimizer import Descent, Point, Report, Settings, descend
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.predictor import Predictor

BATCH = 16
STEPS = 300
"""A step costs a matrix product, not a pass through the model."""


class HeadLearner:
    """Moves the bias, or all of the head with a prior at the shipped one.

    The prior is a Gaussian: `Settings.head_decay` / 2 times the squared distance from the shipped
    head, added to the mean cross-entropy. Without labels nothing is learned here; the bias then
    follows the mean of the features, see `Head.following`.

    Parameters
    ----------
    predictor
        Of a model whose bank holds no prompts.
    """

    method, mixes = "head", False

    def __init__(self, predictor: Predictor, bank: Bank, settings: Settings) -> None:
        self._predictor, self._known = predictor, dict[str, Floats]()
        self.settings = replace(settings, steps=max(settings.steps, STEPS))
        self.initial = bank.initial.astype(np.float64)
        self.head, self.clean = bank.head, bank.clean

    def check(self, images: Pixels, start: Point, rng: np.random.Generator) -> None:
        """No runtime computes the gradient, so there is nothing to check."""

    def features(self, images: Pixels, mix: npt.ArrayLike) -> Floats:  # noqa: ARG002
        """Features `[n, D]` of `images [n, S, S, 3]`; each image passes the model once."""
        keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        new = [index for index, key in enumerate(keys) if key not in self._known]
        for start in range(0, len(new), BATCH):
            rows = new[start : start + BATCH]
            for row, found in zip(rows, self._predictor.head_inputs(images[rows]), strict=True):
                self._known[keys[row]] = found
        return np.stack([self._known[key] for key in keys])

    def learn(
        self,
        images: Pixels,
        labels: Floats | None,
        start: Point,
        report: Report | None = None,
        deadline: float = math.inf,
    ) -> Descent:
        """Descend on the cross-entropy with one-hot `labels [n, K]`, from the shipped head."""
        shipped = Point(start.mix_logits, self.head)
        if labels is None:
            return Descent(shipped, 0, ())
        features, still = self.features(images, start.mix), np.zeros(len(start.mix_logits))

        def judge(_: Doubles, head: Head) -> Slope:
            return self._slope(features, labels, head, still)

        return descend(judge, shipped, self.initial, self.settings, report, deadline)

    def _slope(self, features: Floats, labels: Floats, head: Head, still: Doubles) -> Slope:
        log_p = log_softmax(head.logits(features)).astype(np.float64)
        off = (np.exp(log_p) - labels) / len(labels)
        distance = np.sum((head.weight - self.head.weight) ** 2.0)
        distance += np.sum((head.bias - self.head.bias) ** 2.0)
        loss = -(labels * log_p).sum(axis=1).mean() + 0.5 * self.settings.head_decay * distance
        return Slope(float(loss), still, off.T @ features, off.sum(axis=0))
