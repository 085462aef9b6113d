"""`HGPrompt`: learn how to mix the source prompts of a bank for a task."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from hgprompt_edge.bundle import Bundle, Row
from hgprompt_edge.prompts import Floats, PromptBank, effective_sources, mix, on_basis
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.assemble import make_bundle
from hgprompt_edge.transfer.checks import check_bank, check_validation, leave_out_family
from hgprompt_edge.transfer.choice import Candidate, Judge, never_worse
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.hscore import noise_floor
from hgprompt_edge.transfer.learn import Learned, Progress, Space, learn_weights, uniform_weights
from hgprompt_edge.transfer.pooling import Pooling, choose_pooling
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.best_head import HeadKind
from hgprompt_edge.vit.heads import Head

LAMBDA = 0.003
"""R is 1 at uniform and 0 at vertices whatever its absolute size, and the mixes of one bank differ
by some hundredths in H / H_scale: from 0.01 on, one source took all where a mix had scored better.
"""


class HGPrompt:
    """Mix source prompts so that the target's features separate and the sources agree.

    Maximises `J = H / H_scale - lambda R` over weights on the simplex (METHOD eq. 5) on cached
    features, then goes down the cross-fitted log-loss of the head through the frozen backbone, with
    a weight for each source and layer, and for the untrained prompt that the sources started from
    where the bank holds it. No prompt, the best source, the uniform mix and the learned mix are
    compared on held-out images, and the best is kept if it gains enough over no prompt
    (`choice.never_worse`).

    Parameters
    ----------
    lam
        `lambda`, the price of gradient conflict.
    steps
        Most steps on cached features.
    refine
        Exact steps through the backbone. 0: none, and one weight a source.
    space
        Where gradients are compared: `head`, `prompt` (slower) or `cosine`.
    head
        Classifiers on the features that are tried: `lda`, `logistic` or, of both, `auto`.
    seed
        Of the permutations behind the noise floor, of folds and of the probe images.
    cache
        Keep features on disk, so that an interrupted or repeated fit does not compute them again.
    keep_sources
        Put the source prompts into the bundle, for mixing on the device.

    Attributes
    ----------
    weights_ : ndarray [M, L] or [M] float64
        The learned mix of the bank's `basis`, chosen or not: one weight for each prompt and layer,
        or for each prompt where the exact steps did not hold out best.
    choice_ : str
        Row of the table that was kept: not always the one with the lowest log-loss.
    pooling_ : Pooling
        What all heads see, chosen without a prompt: class token, mean of the patch tokens, both.
    best_source_ : str
        The source that is best on held-out images.
    left_out_ : tuple of str
        Sources of the task's own family.
    table_ : tuple of Row
        No prompt, best source, uniform, learned.
    head_ : Head
        The best one for the chosen row, fitted on training and validation images.
    objective_ : dict
        H with its noise floor, R, cross-fitted log-loss, lambda, rho, steps, effective number of
        sources.
    history_ : list of dict
        `stage` (`cached` or `exact`), `J`, `H` and `R` of each step, of exact ones `log_loss`.
    bundle_ : Bundle
        All of it, ready for `write_bundle`.

    Examples
    --------
    >>> bank = read_bank("tiny")  # doctest: +SKIP
    >>> backbone = load_backbone(bank.backbone)  # doctest: +SKIP
    >>> task = load_task("digits", backbone.preprocessing)  # doctest: +SKIP
    >>> HGPrompt(seed=0).fit(bank, backbone, task).choice_  # doctest: +SKIP
    'learned'
    """

    weights_: npt.NDArray[np.float64]
    choice_: str
    pooling_: Pooling
    best_source_: str
    left_out_: tuple[str, ...]
    table_: tuple[Row, ...]
    head_: Head
    objective_: dict[str, Any]
    history_: list[dict[str, Any]]
    bundle_: Bundle

    def __init__(
        self,
        *,
        lam: float = LAMBDA,
        steps: int = 300,
        refine: int = 8,
        space: Space = "head",
        head: HeadKind = "auto",
        seed: int = 0,
        cache: bool = True,
        keep_sources: bool = True,
    ) -> None:
        _check_choice("space", space, get_args(Space))
        _check_choice("head", head, get_args(HeadKind))
        if not (np.isfinite(lam) and lam >= 0):
            raise ValueError(f"The 'lam' must be finite and not negative. Got {lam} instead.")
        if steps < 0 or refine < 0:
            raise ValueError(f"'steps' and 'refine' must be >= 0. Got {steps}, {refine} instead.")
        self.lam, self.steps, self.refine = lam, steps, refine
        self.space, self.head, self.seed = space, head, seed
        self.cache, self.keep_sources = cache, keep_sources

    def fit(
        self, bank: PromptBank, backbone: Backbone, task: Task, progress: Progress | None = None
    ) -> HGPrompt:
        """Learn the weights, choose, fit the head.

        Sources of the task's own family are left out. Images are normalised as those that the
        bank was trained on, for no prompt, too. They run as the backbone's `compute` says;
        what is kept has its features in float32. Interrupted, it leaves the features it has
        computed in the cache, so that the same call goes on from there.

        Raises
        ------
        UserError
            The bank was made for another backbone, holds no source of another family than the
            task's, or the task has no validation images.
        """
        report = progress or _silent
        check_bank(bank, backbone)
        check_validation(task)
        bank, self.left_out_ = leave_out_family(bank, task)
        backbone = backbone.normalized(bank.normalization)
        store = FeatureStore(backbone, enabled=self.cache)
        self.pooling_ = choose_pooling(store, task, self.seed)
        store = store.with_pooling(self.pooling_.name)
        backbone = store.backbone
        _extract(store, task, bank.tokens, report)
        learned = learn_weights(
            store,
            task,
            bank,
            lam=self.lam,
            steps=self.steps,
            refine_steps=self.refine,
            space=self.space,
            seed=self.seed,
            report=report,
        )
        self.weights_ = learned.weights
        self.history_ = learned.history
        judge = Judge(store, task, self.head, self.seed)
        self._choose(judge, judge.exact(), bank, report)
        self.objective_ = self._summary(bank, learned)
        self.bundle_ = make_bundle(
            backbone,
            task,
            bank,
            self._chosen,
            self.weights_,
            self.head_,
            self.table_,
            self.objective_,
            self.seed,
            self.keep_sources,
        )
        return self

    def _choose(self, judge: Judge, exact: Judge, bank: PromptBank, report: Progress) -> None:
        """Make the never-worse table; the test part is touched after the choice (METHOD 6).

        The `exact` judge, in float32, fits and tests the head of what is kept.
        """
        basis, count = bank.basis_tokens, len(bank.prompts)
        sources = [
            Candidate("best_source", source, on_basis(vertex, len(basis)))
            for source, vertex in zip(bank.tokens, np.eye(count), strict=True)
        ]
        best = judge.best_source(sources)
        self.best_source_ = bank.names[best]
        uniform = on_basis(uniform_weights(count), len(basis))
        candidates = (
            Candidate("none", None, np.zeros(len(basis))),
            sources[best],
            Candidate("uniform", mix(basis, uniform), uniform),
            Candidate("learned", mix(basis, self.weights_), self.weights_),
        )
        rows = [judge.measure(candidate) for candidate in candidates]
        chosen = never_worse(rows, judge.images)
        self._chosen = candidates[chosen]
        self.choice_ = rows[chosen].method
        self.head_ = exact.final_head(self._chosen)
        for index, candidate in enumerate(candidates):
            # The learned mix may be one of the others: equal prompts have equal figures.
            if np.array_equal(candidate.weights, self._chosen.weights):
                rows[index] = exact.on_test(rows[index], candidate, self.head_)
            else:
                rows[index] = judge.on_test(rows[index], candidate)
            report("test images", index + 1, len(candidates))
        self.table_ = tuple(rows)

    def _summary(self, bank: PromptBank, learned: Learned) -> dict[str, Any]:
        objective = learned.objective
        taken = learned.taken
        floor = noise_floor(learned.features, objective.labels, objective.shrinkage, self.seed)
        return {
            **asdict(learned.terms),
            "floor": floor,
            "H_scale": objective.h_scale,
            "lambda": self.lam,
            "shrinkage": objective.shrinkage,
            "space": self.space,
            "head": self.head,
            "pooling": asdict(self.pooling_),
            "steps": learned.climbed.steps,
            "refine_steps": learned.descended.best if learned.descended else 0,
            "log_loss": learned.log_loss,
            "log_loss_uniform": learned.log_loss_uniform,
            "lda_shrinkage": learned.shrinkage,
            "effective_sources": effective_sources(self.weights_[: len(bank.prompts)]),
            "sources": len(bank.prompts),
            "taken": bank.names[taken] if isinstance(taken, int) else taken,
            "best_source": self.best_source_,
        }


def _extract(store: FeatureStore, task: Task, tokens: Floats, report: Progress) -> None:
    """Put the features of the sources, of their uniform mix and of no prompt into the store."""
    prompts = [*tokens, mix(tokens, uniform_weights(len(tokens))), None]
    for done, prompt in enumerate(prompts):
        report("features", done, len(prompts))
        store.features(task.train.pixels, prompt)
        store.features(task.validation.pixels, prompt)
    report("features", len(prompts), len(prompts))


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Report to nobody."""


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"The '{name}' must be one of {', '.join(known)}. Got '{value}' instead.")
