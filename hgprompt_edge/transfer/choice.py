"""Never worse: one kind of head for all ways to use the sources; held-out images decide (METHOD 6).

No prompt, the best single source, the uniform mix, the learned mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.bundle import Row
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.features import FeatureStore, Tokens
from hgprompt_edge.vit.heads import (
    Head,
    Labels,
    accuracy,
    cross_fitted_log_loss,
    fit_lda,
    fit_logistic,
    log_loss,
)

METHODS = ("none", "best_source", "uniform", "learned", "tuned")
"""From the simplest to the most involved; of equals the simpler is chosen."""
DIVISIONS = 8
"""Divisions into folds over which the cross-fitted log-loss is averaged: with a few images a class
that of one division depends on who is in which fold."""
MIN_GAIN = 2.0
"""Nats over all images that a prompt must gain: prior odds of exp(2) for no prompt, which a few
images do not outweigh and many do. Chosen on source sets by benchmarks/few_images.py."""

FitHead = Callable[[Tensor, Labels, int, int], Head]
HEADS: dict[str, FitHead] = {"lda": fit_lda, "logistic": fit_logistic}


@dataclass(frozen=True)
class Candidate:
    """One way to use the sources.

    Attributes
    ----------
    method
        One of `METHODS`.
    tokens
        The folded prompt `[L, T, D]` float32; None: no prompt.
    weights
        `[N]` or `[N, L]` float64 of the mix; all zero without a prompt.
    """

    method: str
    tokens: Tokens | None
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Fits heads on a task's features and measures them.

    Attributes
    ----------
    head
        A key of `HEADS`.
    """

    store: FeatureStore
    task: Task
    head: str = "lda"
    seed: int = 0

    @property
    def images(self) -> int:
        """How many images the cross-fitted log-loss is over."""
        return len(self.task.train) + len(self.task.validation)

    def on_validation(self, candidate: Candidate) -> Row:
        """Accuracy and log-loss on validation of a head fitted on the training part."""
        held_out = self.task.validation
        head = self.training_head(candidate.tokens)
        logits = head.logits(self.store.features(held_out.pixels, candidate.tokens))
        labels = held_out.labels
        return Row(candidate.method, accuracy(logits, labels), log_loss(logits, labels))

    def training_head(self, tokens: Tokens | None) -> Head:
        """Head on the training images alone, which the validation images can judge."""
        train = self.task.train
        return self._fit(self.store.features(train.pixels, tokens), train.labels)

    def cross_validated(self, row: Row, candidate: Candidate) -> Row:
        """Complete the row with the log-loss over all images that may choose, cross-fitted.

        Each image is scored by a head that has not seen it, as on validation, but there are five
        times as many. The mean over `DIVISIONS` into folds. For the closed-form head; another's
        row stays as it is.
        """
        if self.head != "lda":
            return row
        features, labels = self._both(candidate)
        losses = [
            cross_fitted_log_loss(features, labels, len(self.task.classes), self.seed + division)
            for division in range(DIVISIONS)
        ]
        return replace(row, cross_log_loss=float(np.mean(losses)))

    def final_head(self, candidate: Candidate) -> Head:
        """Head on training and validation images together."""
        return self._fit(*self._both(candidate))

    def on_test(self, row: Row, candidate: Candidate, head: Head | None = None) -> Row:
        """Complete the row with the test accuracy of its final head, if there is a test part.

        `head` is that head, where it has been fitted before.
        """
        test = self.task.test
        if not len(test):
            return row
        head = head or self.final_head(candidate)
        logits = head.logits(self.store.features(test.pixels, candidate.tokens))
        return replace(row, test_accuracy=accuracy(logits, test.labels))

    def _both(self, candidate: Candidate) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Features and labels of training and validation images."""
        parts = (self.task.train, self.task.validation)
        features = [self.store.features(part.pixels, candidate.tokens) for part in parts]
        return torch.cat(features), np.concatenate([part.labels for part in parts])

    def _fit(self, features: Tensor, labels: Labels) -> Head:
        return HEADS[self.head](features, labels, len(self.task.classes), self.seed)


def choose(rows: Sequence[Row]) -> int:
    """Index of the best row: by cross-fitted log-loss where all have it, else by validation's.

    Then accuracy, then the first. Accuracy on some 160 images moves by a point with one or two of
    them, and even their log-loss chose worse than that of all 800.
    """
    crossed = all(row.cross_log_loss is not None for row in rows)

    def key(index: int) -> tuple[float, float, int]:
        row = rows[index]
        loss = row.cross_log_loss if crossed else row.val_log_loss
        return (row.val_log_loss if loss is None else loss, -row.val_accuracy, index)

    return min(range(len(rows)), key=key)


def never_worse(rows: Sequence[Row], images: int) -> int:
    """Index of the best row, or 0, no prompt, unless the best gains enough over all `images`.

    The gain is that in cross-fitted log-loss, which is a mean over these images; rows without it
    are chosen from by `choose` alone.
    """
    best = choose(rows)
    none, found = rows[0].cross_log_loss, rows[best].cross_log_loss
    if none is None or found is None or (none - found) * images > MIN_GAIN:
        return best
    return 0
