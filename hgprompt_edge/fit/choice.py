"""Which way to use the sources is kept, and what may replace it later (METHOD 6).

One rule for `fit` and `compare`: no prompt, the best single source, the uniform mix, the learned
mix and, where asked for, several folded prompts, each with its own best head; held-out images
decide. What would replace that, as a tuned prompt does, must prove that it is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from hgprompt_edge.artifacts.bundle import Row
from hgprompt_edge.artifacts.folded import MAX_FOLDED
from hgprompt_edge.features.cached import digest
from hgprompt_edge.fit.algorithm import uniform_weights
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.heads.best_head import averaged_losses
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix, on_basis

MIN_GAIN, SELECTION = 2.0, 3.0
"""Nats over all held-out images that a prompt must gain over no prompt: prior odds of exp(2), and
more the more sources there are to choose from, since the best of many gains by chance: with
permuted labels the best of 16 up to 8 nats in 36 draws (METHOD 6)."""

CONFIDENCE = 0.95
"""One-sided, of the proof that what replaces something that works is better."""


def least_gain(sources: int) -> float:
    """Nats that a prompt must gain where one of so many sources, or a mix of them, was chosen."""
    return MIN_GAIN + SELECTION * math.log(sources)


@dataclass(frozen=True)
class Decision:
    """The table and which of its rows is kept.

    Attributes
    ----------
    candidates, rows
        No prompt, best source, uniform, learned and, where asked for, folded.
    kept
        Index of the row that is shipped.
    pool
        What several folded prompts are taken from, first the best way to use one.
    """

    candidates: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    kept: int
    pool: tuple[Candidate, ...]

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
    best = best_source(judge, bank)
    candidates = [
        none,
        sources[best],
        Candidate("uniform", mix(basis, uniform), uniform),
        Candidate("learned", mix(basis, weights), weights),
    ]
    rows = [judge.measure(candidate) for candidate in candidates]
    kept = never_worse(rows, judge.images, len(judge.task.validation), len(sources))
    single = candidates[kept]
    pool = _distinct([single, none, *sources, candidates[-1]])
    if folded > 1:
        several = fold_more(judge, pool, folded)
        if several.more:
            candidates.append(several)
            rows.append(judge.measure(several))
            if _gain(rows[kept], rows[-1]) > 0:
                kept = len(rows) - 1
    return Decision(tuple(candidates), tuple(rows), kept, tuple(pool))


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out prompts that equal an earlier one: averaged with it, they only cost time."""
    found: dict[str, Candidate] = {}
    for each in candidates:
        found.setdefault(digest(each.tokens), each)
    return list(found.values())


def with_more_prompts(judge: Judge, decision: Decision, folded: int) -> dict[int, Row]:
    """Rows of more folded prompts than `folded` that hold out better than what is kept.

    By the number of prompts. They need no pass of an image: the features of all sources are there.
    """
    several = fold_more(judge, decision.pool, MAX_FOLDED)
    found = {}
    for count in range(folded + 1, 1 + len(several.parts)):
        row = judge.measure(replace(several, more=several.more[: count - 1]))
        if _gain(decision.rows[decision.kept], row) > 0:
            found[count] = row
    return found


def source_candidates(bank: PromptBank) -> list[Candidate]:
    """Each source of the bank, used without the others."""
    size = len(bank.basis)
    return [
        Candidate("best_source", source, on_basis(vertex, size))
        for source, vertex in zip(bank.tokens, np.eye(len(bank.prompts)), strict=True)
    ]


def best_source(judge: Judge, bank: PromptBank) -> int:
    """Index of the source with the lowest cross-fitted log-loss.

    By validation where no image can be held out.
    """
    sources = source_candidates(bank)
    losses = [judge.head_choice(source.tokens).log_loss for source in sources]
    if np.isfinite(losses).all():
        return int(np.argmin(losses))
    return choose([judge.measure(source) for source in sources])


def fold_more(judge: Judge, pool: Sequence[Candidate], most: int) -> Candidate:
    """Add prompts to the first of the pool, `most` in all, whose average holds out best.

    Greedy by the cross-fitted log-loss of the averaged probabilities. None is left out because it
    adds little: with few images an average is better than any choice from it (METHOD 6). Where no
    image can be held out nothing is added.
    """
    choices = [judge.head_choice(candidate.tokens) for candidate in pool]

    def loss(rows: Sequence[int]) -> float:
        return float(averaged_losses([choices[row] for row in rows], judge.labels).nanmean())

    taken = [0]
    if math.isfinite(loss(taken)):
        while len(taken) < min(most, len(pool)):
            others = [row for row in range(len(pool)) if row not in taken]
            taken.append(min(others, key=lambda row: loss([*taken, row])))
    return replace(pool[0], method="folded", more=tuple(pool[row] for row in taken[1:]))


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
        gain = images * _gain(rows[0], rows[best])
    else:
        gain = validation * (rows[0].val_log_loss - rows[best].val_log_loss)
    return best if gain > least_gain(sources) else 0


def _gain(before: Row, after: Row) -> float:
    """By how many nats an image the cross-fitted log-loss falls."""
    return (before.cross_log_loss or 0.0) - (after.cross_log_loss or 0.0)


@dataclass(frozen=True)
class Proof:
    """What held-out images say of what would replace something that works.

    Attributes
    ----------
    gain
        Mean fall of the log-loss, in nats an image.
    error
        Standard error of the paired difference behind it; infinite for a single image.
    accuracy_gain
        Change of the accuracy, in [-1, 1].
    images
        How many were compared.
    covered
        Whether they are of at least half of the classes that were trained on: those of one class
        speak for whatever says that class more often.
    """

    gain: float
    error: float
    accuracy_gain: float
    images: int
    covered: bool = True

    @property
    def holds(self) -> bool:
        """Whether log-loss falls beyond chance, by Student's t, and accuracy does not fall."""
        return self.exceeds(CONFIDENCE)

    @property
    def pays(self) -> bool:
        """Whether it is enough where nothing is in use yet: the gain that `fit` asks of a prompt.

        `MIN_GAIN` over all images together, so that a handful of them decides nothing by chance.
        """
        enough = self.images * self.gain > MIN_GAIN
        return self.covered and enough and self.accuracy_gain >= 0

    def exceeds(self, confidence: float) -> bool:
        """Whether it holds at another one-sided confidence."""
        if not self.covered or self.images < 2 or self.accuracy_gain < 0:
            return False
        return self.gain > float(student.ppf(confidence, self.images - 1)) * self.error


def prove(judge: Judge, works: Candidate, instead: Candidate) -> Proof:
    """Compare two candidates image by image on validation, under heads that have not seen it.

    Honest only where no validation image trained or chose `instead`. That they helped to choose
    what `works` can only favour it.
    """
    labels = judge.task.validation.labels
    found = [judge.held_out(candidate) for candidate in (works, instead)]
    before, after = (-np.log(each[np.arange(len(labels)), labels]) for each in found)
    right = [float(np.mean(each.argmax(1) == labels)) for each in found]
    fall, count = before - after, len(labels)
    error = float(fall.std(ddof=1) / np.sqrt(count)) if count > 1 else math.inf
    seen, trained = (
        len(np.unique(part.labels)) for part in (judge.task.validation, judge.task.train)
    )
    covered = 2 * seen >= trained
    return Proof(float(fall.mean()), error, right[1] - right[0], count, covered)
