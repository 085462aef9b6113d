"""`HGPrompt`: learn how to mix the source prompts of a bank for a task."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from hgprompt_edge.artifacts.bundle import Bundle, Row
from hgprompt_edge.artifacts.folded import MAX_FOLDED
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import Pooling, choose_pooling
from hgprompt_edge.fit.algorithm import (
    LAMBDA,
    STEPS,
    Learned,
    Progress,
    learn_weights,
    shares_of_sources,
    uniform_weights,
)
from hgprompt_edge.fit.assemble import make_bundle
from hgprompt_edge.fit.checks import (
    check_bank,
    check_folded,
    check_validation,
    leave_out_family,
)
from hgprompt_edge.fit.choice import Decision, best_source, decide, with_more_prompts
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.best_head import HeadKind
from hgprompt_edge.maths.head import Head
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import effective_sources, mix
from hgprompt_edge.prompts.prompt import SHALLOW, Floats


class HGPrompt(BaseEstimator):  # type: ignore[misc]
    """Mix source prompts so that the target's features separate and the sources agree.

    Maximises `J = H_d / (K - 1) - lambda R` (METHOD eq. 6) through the frozen backbone, from near
    the source with the lowest cross-fitted log-loss, with a weight for each prompt and layer; the
    neutral prompt that the sources started from is one of them where the bank holds it. No prompt,
    the best source, the uniform mix and the learned mix are compared on held-out images, and the
    best is kept if it gains enough over no prompt (`choice.decide`).

    An estimator of scikit-learn as far as parameters go: `get_params`, `set_params` and `clone`
    work, and `fit` checks them. It is fitted on a bank, a backbone and a task.

    Parameters
    ----------
    lam
        `lambda`, the price of gradient conflict.
    steps
        Steps through the backbone, each a forward and a backward pass of the training images.
    folded
        Most folded prompts that may run at inference, 1 to 3; their probabilities are averaged.
    head
        Classifiers on the features that are tried: `lda` or `logistic`.
    seed
        Of folds and of the probe images.
    cache
        Keep features on disk, so that an interrupted or repeated fit does not compute them again.
    keep_sources
        Put the source prompts into the bundle, for mixing on the device.

    Attributes
    ----------
    weights_ : ndarray of shape (n_prompts, n_layers), float64
        The learned mix of the bank's `basis`, kept or not.
    choice_ : str
        Row of the table that was kept: not always the one with the lowest log-loss.
    pooling_ : Pooling
        What all heads see, chosen without a prompt: class token, mean of the patch tokens, both.
    best_source_ : str
        The source that is best on held-out images.
    left_out_ : tuple of str
        Sources of the task's own family.
    table_ : tuple of Row
        No prompt, best source, uniform, learned and, where several prompts hold out better, folded.
    more_prompts_ : dict of int to Row
        More folded prompts that hold out better than what is kept, by their number.
    head_ : Head
        The best one for the kept row, fitted on training and validation images; of several folded
        prompts the first one's.
    objective_ : dict
        J, H_d, R, the noise floor, lambda, rho, steps, the score of each prompt, effective number
        of sources.
    history_ : list of dict
        `J`, `H_d`, `R` and `floor` of each step.
    bundle_ : Bundle
        All of it, ready for `write_bundle`.

    Examples
    --------
    >>> from hgprompt_edge import HGPrompt, load_backbone, load_task, read_bank
    >>> backbone = load_backbone("tiny")
    >>> task = load_task("digits", backbone.preprocessing, limit=60)
    >>> mixer = HGPrompt(steps=1, seed=0).fit(read_bank("tiny"), backbone, task)
    >>> [row.method for row in mixer.table_]
    ['none', 'best_source', 'uniform', 'learned']
    >>> mixer.weights_.shape, mixer.left_out_
    ((8, 8), ('sign-language-digits',))
    """

    weights_: npt.NDArray[np.float64]
    choice_: str
    pooling_: Pooling
    best_source_: str
    left_out_: tuple[str, ...]
    table_: tuple[Row, ...]
    more_prompts_: dict[int, Row]
    head_: Head
    objective_: dict[str, Any]
    history_: list[dict[str, Any]]
    bundle_: Bundle

    def __init__(
        self,
        *,
        lam: float = LAMBDA,
        steps: int = STEPS,
        folded: int = 1,
        head: HeadKind = "lda",
        seed: int = 0,
        cache: bool = True,
        keep_sources: bool = True,
    ) -> None:
        self.lam = lam
        self.steps = steps
        self.folded = folded
        self.head = head
        self.seed = seed
        self.cache = cache
        self.keep_sources = keep_sources

    def fit(
        self, bank: PromptBank, backbone: Backbone, task: Task, progress: Progress | None = None
    ) -> HGPrompt:
        """Learn the weights, choose, fit the head.

        Sources of the task's own family are left out. Images are normalised as those that the
        bank was trained on, for no prompt, too. They run as the backbone's `compute` says, those
        of the final heads and of test images in float32. Interrupted, it leaves the features it has
        computed in the cache, so that the same call goes on from there.

        Raises
        ------
        ValueError
            A parameter is out of its range.
        UserError
            The bank was made for another backbone, holds no source of another family than the
            task's, or the task has no validation images.
        """
        self._check_params()
        report = progress or _silent
        check_bank(bank, backbone)
        check_folded(bank, self.folded)
        check_validation(task)
        bank, self.left_out_ = leave_out_family(bank, task)
        backbone = backbone.normalized(bank.normalization)
        store = FeatureStore(backbone, enabled=self.cache)
        report("pooling", 0, 0)
        self.pooling_ = choose_pooling(store, task, self.seed)
        store = store.with_pooling(self.pooling_.name)
        _extract(store, task, bank, report)
        judge = Judge(store, task, self.head, self.seed)
        report("best source", 0, 0)
        best = best_source(judge, bank)
        self.best_source_ = bank.names[best]
        learned = learn_weights(
            store, task, bank, best, lam=self.lam, steps=self.steps, seed=self.seed, report=report
        )
        self.weights_ = learned.weights
        self.history_ = learned.history
        report("heads", 0, 0)
        decision = decide(judge, bank, self.weights_, self.folded)
        deep = bank.mode != SHALLOW
        self.more_prompts_ = with_more_prompts(judge, decision, self.folded) if deep else {}
        self.choice_ = decision.chosen.method
        exact = judge.exact()
        heads = self._measure(exact, decision, report)
        self.head_ = heads[0]
        self.objective_ = self._summary(bank, learned)
        self.bundle_ = make_bundle(
            store.backbone,
            task,
            bank,
            decision.chosen,
            self.weights_,
            heads,
            self.table_,
            self.objective_,
            self.seed,
            self.keep_sources,
            clean=exact.clean(decision.chosen),
            reference=exact.reference(decision.chosen),
        )
        return self

    def _check_params(self) -> None:
        if self.head not in get_args(HeadKind):
            known = ", ".join(get_args(HeadKind))
            raise ValueError(f"The 'head' must be one of {known}. Got '{self.head}' instead.")
        if not (np.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"The 'lam' must be finite and not negative. Got {self.lam} instead.")
        if self.steps < 0:
            raise ValueError(f"The 'steps' must be >= 0. Got {self.steps} instead.")
        if not 1 <= self.folded <= MAX_FOLDED:
            raise ValueError(f"The 'folded' must be 1 to {MAX_FOLDED}. Got {self.folded} instead.")

    def _measure(self, exact: Judge, decision: Decision, report: Progress) -> list[Head]:
        """Complete the table; the test part is touched after the choice (METHOD 6).

        Every row gets its final heads and its test accuracy in float32, as what is kept will run:
        in bfloat16 a few images of a hundred are classified otherwise.
        """
        rows = list(decision.rows)
        heads = exact.final_heads(decision.chosen)
        for index, candidate in enumerate(decision.candidates):
            given = heads if index == decision.kept else None
            rows[index] = exact.on_test(rows[index], candidate, given)
            report("test images", index + 1, len(rows))
        self.table_ = tuple(rows)
        return heads

    def _summary(self, bank: PromptBank, learned: Learned) -> dict[str, Any]:
        shares = shares_of_sources(self.weights_, len(bank.prompts))
        names = [prompt.name for prompt in bank.basis]
        return {
            **asdict(learned.terms),
            "lambda": self.lam,
            "shrinkage": learned.objective.shrinkage,
            "head": self.head,
            "pooling": asdict(self.pooling_),
            "steps": learned.best,
            "scores": dict(zip(names, learned.scores, strict=True)),
            "effective_sources": effective_sources(shares),
            "sources": len(bank.prompts),
            "best_source": self.best_source_,
        }


def _extract(store: FeatureStore, task: Task, bank: PromptBank, report: Progress) -> None:
    """Put the features of the bank's prompts, of the uniform mix and of no prompt into the store.

    The neutral prompt is no row of the table: only its training images are needed.
    """
    tokens: Floats = bank.tokens
    uniform = mix(tokens, uniform_weights(len(tokens)))
    prompts = [*tokens, uniform, None, *bank.basis_tokens[len(tokens) :]]
    for done, prompt in enumerate(prompts):
        report("features", done, len(prompts))
        store.features(task.train.pixels, prompt)
        if done < len(tokens) + 2:
            store.features(task.validation.pixels, prompt)
    report("features", len(prompts), len(prompts))


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Report to nobody."""
