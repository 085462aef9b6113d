"""The paper's last step: the folded mix is where the target's own prompt starts (METHOD 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.artifacts.bundle import Bundle, Row, check_one_prompt
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.assemble import token_logits
from hgprompt_edge.fit.checks import check_batch, check_same_images
from hgprompt_edge.fit.choice import Proof, prove
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.prompts.prompt import Floats
from hgprompt_edge.training.prompt_tuning import PromptTrainer, Recipe, Trained

STEPS, BATCH_SIZE, PER_CLASS, LEARNING_RATE = 60, 160, 4, 1e-2
"""Of `tune`, where nothing else is asked for; a batch has at least `PER_CLASS` images a class."""


@dataclass(frozen=True)
class Tuning:
    """What tuning came to.

    Attributes
    ----------
    bundle
        With the row `tuned` in its table; with the tuned prompt in force where `proof` holds.
    trained
        The tuned prompt, whatever was kept.
    proof
        The tuned prompt against what the bundle kept before.
    kept
        Whether the tuned prompt is in force now.
    """

    bundle: Bundle
    trained: Trained
    proof: Proof
    kept: bool


def tune(
    bundle: Bundle,
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    *,
    fresh: bool = False,
    state: Path | None = None,
    report: Callable[[int, int], None] | None = None,
    resumed: Callable[[], None] | None = None,
) -> Tuning:
    """Train the bundle's prompt on the task; the bundle that comes back has one more row.

    The tuned prompt takes the place of what was kept only if validation images, none of which
    trained it or chose its epoch, show that it is better (`choice.Proof`). Condition prompts and
    what devices learned are of the prompt before and do not outlive it.

    Parameters
    ----------
    recipe
        Its `mode`, `tokens` and `flips` are overruled by the bundle and the task, and the last
        epoch is kept: validation is to judge, so it must not choose.
    fresh
        The bundle has only just been fitted: the gain that `fit` asks of a prompt is enough
        (`Proof.pays`), and no proof is needed.
    state
        File that an interrupted training resumes from; removed at the end by the caller.
    resumed
        Called where the training goes on from that file.

    Raises
    ------
    UserError
        The bundle belongs to another backbone or other images, holds nothing to start from, or the
        task has more classes than a batch has images.
    """
    check_one_prompt(bundle, "tune")
    check_same_images(bundle, task)
    backbone = as_fitted(bundle, backbone)
    start = starting_prompt(bundle)
    recipe = replace(recipe, keep_last=True)
    trained = train_from(start, backbone, task, recipe, state, report, resumed)
    exact = FeatureStore(backbone.in_precision("float32"))
    judge = Judge(exact, task, bundle.objective.get("head", "lda"), bundle.seed)
    weights = bundle.weights if bundle.prompt is not None else bundle.learned_weights
    before = Candidate(bundle.choice, bundle.prompt, bundle.weights.astype(np.float64))
    tuned = Candidate(TUNED, trained.tokens, weights.astype(np.float64))
    proof = prove(judge, before, tuned)
    kept = proof.pays if fresh else proof.holds
    if not kept and bundle.choice == TUNED:
        # The one row `tuned` of the table stays that of the prompt in force.
        return Tuning(bundle, trained, proof, kept)
    (head,) = judge.final_heads(tuned)
    row = judge.on_test(judge.on_validation(tuned), tuned, (head,))
    table = (*(_as_compared(r, judge, before) for r in bundle.table if r.method != TUNED), row)
    if not kept:
        return Tuning(replace(bundle, table=table), trained, proof, kept)
    head = head.as_float32()
    replaced = replace(
        _without_the_old_prompts(bundle),
        table=table,
        choice=TUNED,
        prompt=trained.tokens,
        weights=weights,
        head=head,
        clean=judge.clean(tuned),
        reference=judge.reference(tuned),
        probe_logits=token_logits(backbone, bundle.probe_images, trained.tokens, head),
    )
    return Tuning(replaced, trained, proof, kept)


def tuning_recipe(
    task: Task,
    seed: int,
    *,
    steps: int = STEPS,
    batch_size: int | None = None,
    learning_rate: float = LEARNING_RATE,
) -> Recipe:
    """How `tune` trains: so many steps at least, in whole epochs.

    Parameters
    ----------
    batch_size
        None: `usual_batch`.

    Raises
    ------
    UserError
        The task has more classes than a batch has images.
    """
    batch_size = batch_size or usual_batch(len(task.classes))
    check_batch(task, batch_size)
    return Recipe(
        epochs=epochs_for(steps, len(task.train), batch_size),
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        keep_last=True,
    )


def train_from(
    start: Floats | None,
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    state: Path | None = None,
    report: Callable[[int, int], None] | None = None,
    resumed: Callable[[], None] | None = None,
) -> Trained:
    """Train a prompt for `task` from `start [L, T, D]`; None: from scratch, as VPT does.

    Raises
    ------
    UserError
        The task has more classes than a batch has images.
    """
    check_batch(task, recipe.batch_size)
    if start is not None:
        mode = "deep" if len(start) == backbone.depth else "shallow"
        recipe = replace(recipe, mode=mode, tokens=start.shape[1])
    part = (task.train.pixels, task.train.labels)
    return PromptTrainer(
        backbone,
        replace(recipe, flips=recipe.flips and task.flips),
        len(task.classes),
        lambda _: part,
        part,
        (task.validation.pixels, task.validation.labels),
        state,
        start,
        task.digest,
    ).run(report, resumed)


def usual_batch(classes: int, least: int = BATCH_SIZE) -> int:
    """Images a step: enough that each of the four folds can have one of each class."""
    return max(least, PER_CLASS * classes)


def epochs_for(steps: int, images: int, batch_size: int) -> int:
    """Epochs over so many images that make at least `steps` optimiser steps."""
    return math.ceil(steps / max(1, images // batch_size))


def starting_prompt(bundle: Bundle) -> Floats | None:
    """Folded prompt `[L, T, D]` of a bundle; the learned mix where no prompt was chosen.

    None for a bundle that was fitted without prompts: training starts from scratch.

    Raises
    ------
    UserError
        No prompt was chosen and the bundle does not hold its sources.
    """
    if bundle.prompt is not None:
        return bundle.prompt
    if not bundle.sources:
        return None
    if bundle.source_tokens is None:
        raise UserError(
            f"the bundle of {bundle.task} holds neither a prompt nor its sources, so there is "
            "nothing to start from; run `hgedge fit` with `keep_sources=True`"
        )
    return mix(bundle.source_tokens.astype(np.float32), bundle.learned_weights.astype(np.float64))


def _without_the_old_prompts(bundle: Bundle) -> Bundle:
    """Leave out what was trained or learned under the prompt that goes."""
    return replace(
        bundle,
        objective={key: value for key, value in bundle.objective.items() if key != "merged"},
        initial=None,
        conditions=(),
        condition_tokens=None,
    )


def _as_compared(row: Row, judge: Judge, kept: Candidate) -> Row:
    """Give the row of what was kept the float32 figures that the tuned prompt is held against."""
    if row.method != kept.method:
        return row
    found = judge.on_validation(kept)
    return replace(row, val_accuracy=found.val_accuracy, val_log_loss=found.val_log_loss)
