"""Run the methods on one task and say what each is worth, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.compare.contest import Budget, Contest, Done
from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import choose_pooling
from hgprompt_edge.fit.algorithm import Progress
from hgprompt_edge.fit.checks import check_bank, check_validation, leave_out_family
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.maths.proportions import wilson
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import effective_sources, source_shares

SHIPPED = {"hgprompt_guarded", "tune_guarded"}
"""Rows that are what `fit` ships without and with tuning, measured in float32 as there."""


@dataclass(frozen=True)
class Result:
    """One method on one task.

    Attributes
    ----------
    val_accuracy
        Of a head fitted on the training part.
    accuracy, low, high
        On the test part, of a head fitted on training and validation images, and its 95 %
        interval (Wilson's); None without a test part.
    correct
        `[n]` bool: which test images it gets right, for paired comparisons.
    weights
        `[M]` of the mix over the bank's basis, means over the layers where each has its own; zeros
        where there is none.
    image_passes
        Forward passes of single images that the method itself needed, a backward pass as two;
        fitting the head and testing, the same for all, are left out.
    inference_passes
        Passes for each image on the device.
    seconds
        Wall time of the method itself, with the features of the sources at hand.
    """

    method: str
    val_accuracy: float
    accuracy: float | None
    low: float | None
    high: float | None
    correct: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float64]
    effective_sources: float
    image_passes: int
    inference_passes: int
    seconds: float


def compare(
    bank: PromptBank,
    backbone: Backbone,
    task: Task,
    *,
    methods: Sequence[str] = tuple(METHODS),
    budget: Budget | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> tuple[Contest, tuple[Result, ...]]:
    """Run `methods` on the sources of other families than the task's.

    All with the pooling that is best without a prompt, and each with its own best head.

    Raises
    ------
    UserError
        As `HGPrompt.fit`.
    """
    contest = prepare(bank, backbone, task, budget=budget, seed=seed, cache=cache)
    results = []
    for index, method in enumerate(methods):
        if progress:
            progress(method, index, len(methods))
        results.append(measure(contest, method, contest.run(method)))
        if progress:
            progress(method, index + 1, len(methods))
    return contest, tuple(results)


def prepare(
    bank: PromptBank,
    backbone: Backbone,
    task: Task,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    cache: bool = True,
) -> Contest:
    """Make what methods run on: sources of other families, their features, the best pooling.

    Raises
    ------
    UserError
        As `HGPrompt.fit`.
    """
    check_bank(bank, backbone)
    check_validation(task)
    bank, _ = leave_out_family(bank, task)
    store = FeatureStore(backbone.normalized(bank.normalization), enabled=cache)
    store = store.with_pooling(choose_pooling(store, task, seed).name)
    judge = Judge(store, task, seed=seed)
    contest = Contest(store, task, bank, judge, budget or Budget(), METHODS, seed)
    for source in contest.tokens:
        store.features(task.train.pixels, source)
    return contest


def measure(contest: Contest, method: str, done: Done) -> Result:
    """Accuracy of a plan on validation and test images, and its cost.

    What `fit` would ship is measured in float32, as `fit` does.
    """
    task, candidate = contest.task, done.plan.candidate
    judge = contest.judge.exact() if method in SHIPPED else contest.judge
    row = judge.on_validation(candidate)
    correct = np.zeros(0, dtype=bool)
    if len(task.test):
        correct = judge.correct(candidate, judge.final_heads(candidate), task.test)
    accuracy, low, high = accuracy_of(correct)
    weights = np.mean([source_shares(part.weights) for part in candidate.parts], axis=0)
    shares = np.abs(weights[: len(contest.bank.prompts)])
    return Result(
        method,
        row.val_accuracy,
        accuracy,
        low,
        high,
        correct,
        weights,
        effective_sources(shares) if shares.any() else 0.0,
        done.image_passes,
        len(candidate.parts),
        done.seconds,
    )


def accuracy_of(
    correct: npt.NDArray[np.bool_],
) -> tuple[float | None, float | None, float | None]:
    """Accuracy over `correct [n]` and its 95 % interval, as `fit` gives it; None without images."""
    if not len(correct):
        return None, None, None
    found = wilson(int(correct.sum()), len(correct))
    return found.value, found.low, found.high
