"""One rule for `fit` and `compare`: which way to use the sources is kept (METHOD 6).

No prompt, the best single source, the uniform mix, the learned mix and, where asked for, several
folded prompts: each with its own best head; held-out images decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.bundle import Row
from hgprompt_edge.prompts import PromptBank, mix, on_basis
from hgprompt_edge.tasks import Images, Task
from hgprompt_edge.transfer.features import FeatureStore, Tokens, digest
from hgprompt_edge.transfer.learn import uniform_weights
from hgprompt_edge.vit.best_head import HeadChoice, HeadKind, averaged_losses, choose_head
from hgprompt_edge.vit.heads import Head

MIN_GAIN, SELECTION = 2.0, 3.0
"""Nats over all held-out images that a prompt must gain over no prompt: prior odds of exp(2), and
more the more sources there are to choose from, since the best of many gains by chance. With
permuted labels the best of 16 gains up to 8 nats (benchmarks/permuted.py)."""


def least_gain(sources: int) -> float:
    """Nats that a prompt must gain where one of so many sources, or a mix of them, was chosen."""
    return MIN_GAIN + SELECTION * math.log(sources)


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
        choices = [self._choice(part.tokens, self._both) for part in candidate.parts]
        crossed = float(averaged_losses(choices, self._labels(self._both)).nanmean())
        return replace(
            self.on_validation(candidate),
            cross_log_loss=crossed if np.isfinite(crossed) else None,
            head=", ".join(choice.name for choice in choices),
        )

    def on_validation(self, candidate: Candidate) -> Row:
        """Accuracy and log-loss on validation of heads fitted on the training part."""
        heads = [self.training_head(part.tokens) for part in candidate.parts]
        found = self._score(candidate, heads, self.task.validation)
        return Row(candidate.method, *found, head=", ".join(head.name for head in heads))

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

    def correct(
        self, candidate: Candidate, heads: Sequence[Head], images: Images
    ) -> npt.NDArray[np.bool_]:
        """Which of the images `[n]` are classified right."""
        found = self._probabilities(candidate, heads, images)
        right: npt.NDArray[np.bool_] = (found.argmax(1) == torch.from_numpy(images.labels)).numpy()
        return right

    def best_source(self, sources: Sequence[Candidate]) -> int:
        """Index of the source with the lowest cross-fitted log-loss.

        By validation where no image can be held out.
        """
        losses = [self._choice(source.tokens, self._both).log_loss for source in sources]
        if np.isfinite(losses).all():
            return int(np.argmin(losses))
        return choose([self.measure(source) for source in sources])

    def fold_more(self, pool: Sequence[Candidate], first: int, most: int) -> Candidate:
        """Add prompts of the pool to its `first` while the average gains `MIN_GAIN` nats by each.

        Greedy by the cross-fitted log-loss of the averaged probabilities, at most `most` in all.
        """
        labels = self._labels(self._both)
        choices = [self._choice(candidate.tokens, self._both) for candidate in pool]

        def loss(rows: Sequence[int]) -> float:
            return float(averaged_losses([choices[row] for row in rows], labels).nanmean())

        taken = [first]
        while len(taken) < most:
            others = [row for row in range(len(pool)) if row not in taken]
            if not others:
                break
            losses = [loss([*taken, row]) for row in others]
            gain = self.images * (loss(taken) - min(losses))
            if not gain > MIN_GAIN:  # nor where no image can be held out
                break
            taken.append(others[int(np.argmin(losses))])
        more = tuple(pool[row] for row in taken[1:])
        return replace(pool[first], method="folded", more=more)

    @property
    def _both(self) -> tuple[Images, ...]:
        return self.task.train, self.task.validation

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
            head.logits(self.store.features(images.pixels, part.tokens)).softmax(1)
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


@dataclass(frozen=True)
class Decision:
    """The table and which of its rows is kept.

    Attributes
    ----------
    candidates, rows
        No prompt, best source, uniform, learned and, where asked for, folded.
    kept
        Index of the row that is shipped.
    best_source
        Index of the source that holds out best.
    """

    candidates: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    kept: int
    best_source: int

    @property
    def chosen(self) -> Candidate:
        """What is shipped."""
        return self.candidates[self.kept]


def decide(
    judge: Judge, bank: PromptBank, weights: npt.NDArray[np.float64], folded: int = 1
) -> Decision:
    """Compare the ways to use the bank and keep the best: the rule of `fit` and of `compare`.

    Parameters
    ----------
    weights
        The learned mix, `[M]` or `[M, L]`.
    folded
        Most prompts that may run at inference.
    """
    basis, sources = bank.basis_tokens, source_candidates(bank)
    none = Candidate("none", None, np.zeros(len(basis)))
    uniform = on_basis(uniform_weights(len(sources)), len(basis))
    best = judge.best_source(sources)
    candidates = [
        none,
        sources[best],
        Candidate("uniform", mix(basis, uniform), uniform),
        Candidate("learned", mix(basis, weights), weights),
    ]
    rows = [judge.measure(candidate) for candidate in candidates]
    given = judge.images, len(judge.task.validation), len(sources)
    if folded > 1:
        kept = never_worse(rows, *given)
        pool = [candidates[kept]]
        pool += [each for each in (none, *sources, candidates[-1]) if each is not candidates[kept]]
        candidates.append(judge.fold_more(pool, 0, folded))
        if candidates[-1].more:
            rows.append(judge.measure(candidates[-1]))
        else:  # no second prompt holds out better
            candidates.pop()
    kept = never_worse(rows, *given)
    return Decision(tuple(candidates), tuple(rows), kept, best)


def source_candidates(bank: PromptBank) -> list[Candidate]:
    """Each source of the bank, used without the others."""
    size = len(bank.basis)
    return [
        Candidate("best_source", source, on_basis(vertex, size))
        for source, vertex in zip(bank.tokens, np.eye(len(bank.prompts)), strict=True)
    ]


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


def never_worse(rows: Sequence[Row], images: int, validation: int, sources: int) -> int:
    """Index of the best row, or 0, no prompt, unless the best gains enough over it.

    Parameters
    ----------
    images, validation
        How many images the cross-fitted log-loss is a mean over, and that of validation, which
        decides where a row has no other.
    sources
        How many there were to choose from, see `least_gain`.
    """
    best = choose(rows)
    if all(row.cross_log_loss is not None for row in rows):
        gain = images * ((rows[0].cross_log_loss or 0.0) - (rows[best].cross_log_loss or 0.0))
    else:
        gain = validation * (rows[0].val_log_loss - rows[best].val_log_loss)
    return best if gain > least_gain(sources) else 0
