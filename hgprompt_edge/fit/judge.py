"""Ways to use the sources, and the judge of them by held-out and test images (METHOD 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.artifacts.bundle import Row
from hgprompt_edge.backbones.last_norm import before_affine
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.grouping import copy_groups
from hgprompt_edge.features.cached import FeatureStore, Tokens, digest
from hgprompt_edge.heads.best_head import HeadChoice, HeadKind, averaged_losses, choose_head
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.maths.feature_statistics import FeatureStatistics, measure_statistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.reference import Reference, fit_reference
from hgprompt_edge.maths.softmax import log_mean_softmax


@dataclass(frozen=True)
class Candidate:
    """One way to use the sources.

    Attributes
    ----------
    method
        The row of the table that it is, a key of `ROW_TITLES`.
    tokens
        The folded prompt `[L, T, D]` float32; None: no prompt.
    weights
        `[M]` or `[M, L]` float64 over the bank's basis; all zero without a prompt.
    more
        Further folded prompts, whose probabilities are averaged with this one's.
    """

    method: str
    tokens: Tokens | None
    weights: npt.NDArray[np.float64]
    more: tuple[Candidate, ...] = ()

    @property
    def parts(self) -> tuple[Candidate, ...]:
        """Each of the prompts that run at inference."""
        return replace(self, more=()), *self.more


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
    kind: HeadKind = "lda"
    seed: int = 0
    _chosen: dict[tuple[int, str], HeadChoice] = field(default_factory=dict, compare=False)

    @property
    def images(self) -> int:
        """How many images the cross-fitted log-loss is over."""
        return len(self.task.train) + len(self.task.validation)

    def exact(self) -> Judge:
        """Return the same judge of features in float32, which chooses its heads anew."""
        return replace(self, store=self.store.in_precision("float32"), _chosen={})

    def measure(self, candidate: Candidate) -> Row:
        """All that held-out images say of a candidate: validation and the cross-fitted log-loss.

        The latter is over all images that may choose, each scored by heads that have not seen it:
        five times as many as validation. None where no image can be held out.
        """
        choices = [self.head_choice(part.tokens) for part in candidate.parts]
        crossed = float(averaged_losses(choices, self.labels).nanmean())
        return replace(
            self.on_validation(candidate),
            cross_log_loss=crossed if np.isfinite(crossed) else None,
            head=", ".join(choice.name for choice in choices),
        )

    def on_validation(self, candidate: Candidate) -> Row:
        """Accuracy and log-loss on validation of heads fitted on the training part."""
        heads = self._training_heads(candidate)
        found = self._score(candidate, heads, self.task.validation)
        return Row(candidate.method, *found, head=", ".join(head.name for head in heads))

    def held_out(self, candidate: Candidate) -> npt.NDArray[np.float64]:
        """Probabilities `[n, K]` of the validation images, by heads fitted on the training part."""
        heads = self._training_heads(candidate)
        found: npt.NDArray[np.float64] = self._probabilities(
            candidate, heads, self.task.validation
        ).numpy()
        return found

    def training_head(self, tokens: Tokens | None) -> Head:
        """Head chosen and fitted on the training images only: validation images can judge it."""
        return self._head(tokens, (self.task.train,))

    def final_heads(self, candidate: Candidate) -> list[Head]:
        """Head of each part, on training and validation images together."""
        return [self._head(part.tokens, self._both) for part in candidate.parts]

    def on_test(self, row: Row, candidate: Candidate, heads: Sequence[Head] | None = None) -> Row:
        """Complete the row with the test accuracy of its final heads, if there is a test part.

        `heads` are these, where they have been fitted before.
        """
        test = self.task.test
        if not len(test):
            return row
        heads = heads or self.final_heads(candidate)
        return replace(row, test_accuracy=self._score(candidate, heads, test)[0])

    def head_choice(self, tokens: Tokens | None) -> HeadChoice:
        """Head chosen on all images that may choose, with what it holds out of them."""
        return self._choice(tokens, self._both)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Of all images that may choose, `[n]`."""
        return self._labels(self._both)

    def correct(
        self, candidate: Candidate, heads: Sequence[Head], images: Images
    ) -> npt.NDArray[np.bool_]:
        """Which of the images `[n]` are classified right."""
        found = self._probabilities(candidate, heads, images)
        right: npt.NDArray[np.bool_] = (found.argmax(1) == torch.from_numpy(images.labels)).numpy()
        return right

    def clean(self, candidate: Candidate) -> FeatureStatistics:
        """Statistics of what a device sees on clean images, by which it judges a shift.

        Of the features `[n, D]` of the training images; of validation images where the prompt was
        trained on those. Of several folded prompts of the logarithm of the averaged probabilities
        `[n, K]` of validation images under heads that have not seen them.
        """
        task, images = self.task, self.task.train
        if candidate.more:
            images = task.validation
            logits = [
                logits_of(
                    self.training_head(part.tokens),
                    self.store.features(images.pixels, part.tokens),
                ).numpy()
                for part in candidate.parts
            ]
            seen = log_mean_softmax(np.stack(logits))
        else:
            if candidate.method == TUNED:
                images = task.validation
            seen = self.store.features(images.pixels, candidate.tokens).numpy()
        return measure_statistics(seen, images.labels, len(task.classes))

    def reference(self, candidate: Candidate) -> Reference | None:
        """Statistics of the task's own images under a candidate's first prompt.

        Training and validation images; the latter alone where the prompt was trained on the others.
        """
        tuned = candidate.method == TUNED
        parts = (self.task.validation,) if tuned else self._both
        seen = self._features(candidate.tokens, parts).numpy().astype(np.float32)
        features = before_affine(seen, self.store.backbone.model)
        classes, groups = len(self.task.classes), copy_groups(parts)
        return fit_reference(features, self._labels(parts), classes, groups=groups)

    @property
    def _both(self) -> tuple[Images, ...]:
        return self.task.train, self.task.validation

    def _training_heads(self, candidate: Candidate) -> list[Head]:
        return [self.training_head(part.tokens) for part in candidate.parts]

    def _score(
        self, candidate: Candidate, heads: Sequence[Head], images: Images
    ) -> tuple[float, float]:
        """Accuracy and log-loss of the averaged probabilities."""
        found = self._probabilities(candidate, heads, images)
        labels = torch.from_numpy(images.labels)
        accuracy = float((found.argmax(1) == labels).double().mean())
        return accuracy, float(-found[torch.arange(len(labels)), labels].log().mean())

    def _probabilities(self, candidate: Candidate, heads: Sequence[Head], images: Images) -> Tensor:
        """Mean class probabilities `[n, K]` over the parts, each under its own head."""
        found = [
            logits_of(head, self.store.features(images.pixels, part.tokens)).softmax(1)
            for part, head in zip(candidate.parts, heads, strict=True)
        ]
        return torch.stack(found).mean(0).clamp(min=1e-300)

    def _head(self, tokens: Tokens | None, parts: tuple[Images, ...]) -> Head:
        choice = self._choice(tokens, parts)
        return choice.fit(
            self._features(tokens, parts), self._labels(parts), len(self.task.classes)
        )

    def _choice(self, tokens: Tokens | None, parts: tuple[Images, ...]) -> HeadChoice:
        """Choose the head on these parts of the task, once for each prompt."""
        key = len(parts), digest(tokens)
        if key not in self._chosen:
            self._chosen[key] = choose_head(
                self._features(tokens, parts),
                self._labels(parts),
                len(self.task.classes),
                self.seed,
                self.kind,
            )
        return self._chosen[key]

    def _features(self, tokens: Tokens | None, parts: tuple[Images, ...]) -> Tensor:
        return torch.cat([self.store.features(part.pixels, tokens) for part in parts])

    def _labels(self, parts: tuple[Images, ...]) -> npt.NDArray[np.int64]:
        return np.concatenate([part.labels for part in parts])
