"""Never worse: each way to use the sources with its own best head; held-out images decide.

No prompt, the best single source, the uniform mix, the learned mix (METHOD 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.bundle import Row
from hgprompt_edge.tasks import Images, Task
from hgprompt_edge.transfer.features import FeatureStore, Tokens, digest
from hgprompt_edge.vit.best_head import HeadChoice, HeadKind, choose_head
from hgprompt_edge.vit.heads import Head, accuracy, log_loss

METHODS = ("none", "best_source", "uniform", "learned", "tuned")
"""From the simplest to the most involved; of equals the simpler is chosen."""
MIN_GAIN = 2.0
"""Nats over all images that a prompt must gain: prior odds of exp(2) for no prompt, which a few
images do not outweigh and many do. Chosen on source sets by benchmarks/few_images.py."""


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
    """Chooses and fits heads on a task's features and measures them.

    Attributes
    ----------
    kind
        Which heads are tried, see `choose_head`.
    """

    store: FeatureStore
    task: Task
    kind: HeadKind = "auto"
    seed: int = 0
    _chosen: dict[tuple[str, ...], HeadChoice] = field(default_factory=dict, compare=False)

    @property
    def images(self) -> int:
        """How many images the cross-fitted log-loss is over."""
        return len(self.task.train) + len(self.task.validation)

    def exact(self) -> Judge:
        """Return the same judge of features in float32, which chooses its heads anew."""
        return replace(self, store=self.store.in_precision("float32"), _chosen={})

    def measure(self, candidate: Candidate) -> Row:
        """All that held-out images say of a candidate."""
        return self.cross_validated(self.on_validation(candidate), candidate)

    def on_validation(self, candidate: Candidate) -> Row:
        """Accuracy and log-loss on validation of a head fitted on the training part."""
        held_out = self.task.validation
        head = self.training_head(candidate.tokens)
        logits = head.logits(self.store.features(held_out.pixels, candidate.tokens))
        labels = held_out.labels
        found = accuracy(logits, labels), log_loss(logits, labels)
        return Row(candidate.method, *found, head=head.name)

    def training_head(self, tokens: Tokens | None) -> Head:
        """Head chosen and fitted on the training images alone: validation images can judge it."""
        return self._head(tokens, (self.task.train,))

    def cross_validated(self, row: Row, candidate: Candidate) -> Row:
        """Complete the row with the log-loss over all images that may choose, cross-fitted.

        Each image is scored by a head that has not seen it, as on validation, but there are five
        times as many. Of the head with the lowest, whose name the row gets; unless no image can be
        held out.
        """
        choice = self._choice(candidate.tokens, self._both)
        loss = choice.log_loss if np.isfinite(choice.log_loss) else None
        return replace(row, cross_log_loss=loss, head=choice.name)

    def final_head(self, candidate: Candidate) -> Head:
        """Head on training and validation images together."""
        return self._head(candidate.tokens, self._both)

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

    def best_source(self, sources: Sequence[Candidate]) -> int:
        """Index of the source with the lowest cross-fitted log-loss under its best LDA.

        By validation where no image can be held out. Logistic regression takes too long for each.
        """
        judge = self if self.kind == "lda" else replace(self, kind="lda")
        losses = [judge._choice(source.tokens, judge._both).log_loss for source in sources]
        if np.isfinite(losses).all():
            return int(np.argmin(losses))
        return choose([judge.on_validation(source) for source in sources])

    @property
    def _both(self) -> tuple[Images, ...]:
        return self.task.train, self.task.validation

    def _head(self, tokens: Tokens | None, parts: tuple[Images, ...]) -> Head:
        features, labels = self._data(tokens, parts)
        choice = self._choice(tokens, parts)
        return choice.fit(features, labels, len(self.task.classes))

    def _choice(self, tokens: Tokens | None, parts: tuple[Images, ...]) -> HeadChoice:
        """Choose the head on these parts of the task, once for each prompt."""
        key = (self.kind, str(len(parts)), digest(tokens))
        if key not in self._chosen:
            features, labels = self._data(tokens, parts)
            classes = len(self.task.classes)
            self._chosen[key] = choose_head(features, labels, classes, self.seed, self.kind)
        return self._chosen[key]

    def _data(
        self, tokens: Tokens | None, parts: tuple[Images, ...]
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        features = [self.store.features(part.pixels, tokens) for part in parts]
        return torch.cat(features), np.concatenate([part.labels for part in parts])


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
