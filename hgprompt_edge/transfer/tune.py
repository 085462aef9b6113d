"""The paper's last step: the folded mix is where the target's own prompt starts (METHOD 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge.bundle import Bundle, check_one_prompt
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts import Floats, mix
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.assemble import token_logits
from hgprompt_edge.transfer.checks import check_same_images
from hgprompt_edge.transfer.choice import choose
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.judge import Candidate, Judge
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.fitted import as_fitted
from hgprompt_edge.vit.train import PromptTrainer, Recipe, Trained

TUNED = "tuned"


def tune(
    bundle: Bundle,
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    *,
    state: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, Trained]:
    """Train the bundle's prompt on the task; the bundle that comes back has one more row.

    The new row is chosen if validation prefers it to the bundle's own choice; else that stays.
    Condition prompts, clean statistics and what devices learned are of the prompt before and do not
    outlive it.

    Parameters
    ----------
    recipe
        Its `mode`, `tokens` and `flips` are overruled by the bundle and the task.
    state
        File that an interrupted training resumes from; removed at the end by the caller.

    Raises
    ------
    UserError
        The bundle belongs to another backbone or other images, or holds nothing to start from.
    """
    check_one_prompt(bundle, "tune")
    check_same_images(bundle, task)
    backbone = as_fitted(bundle, backbone)
    start = starting_prompt(bundle)
    trained = train_from(start, backbone, task, recipe, state=state, report=report)
    exact = FeatureStore(backbone.in_precision("float32"))
    judge = Judge(exact, task, bundle.objective.get("head", "lda"), bundle.seed)
    weights = bundle.weights if bundle.prompt is not None else bundle.learned_weights
    candidate = Candidate(TUNED, trained.tokens, weights.astype(np.float64))
    row = judge.on_validation(candidate)
    (head,) = judge.final_heads(candidate)
    row = judge.on_test(row, candidate, (head,))
    # The prompt has seen the training images, so validation alone can compare it.
    kept = next(r for r in bundle.table if r.method == bundle.choice)
    table = (*(r for r in bundle.table if r.method != TUNED), row)
    if choose([kept, row]) == 0:
        # Where the prompt in force was tuned before, the table's one row `tuned` stays that one's.
        return bundle if bundle.choice == TUNED else replace(bundle, table=table), trained
    weight, bias = head.weight.float().numpy(), head.bias.float().numpy()
    tuned = replace(
        _without_the_old_prompts(bundle),
        table=table,
        choice=TUNED,
        prompt=trained.tokens,
        weights=weights,
        head_weight=weight,
        head_bias=bias,
        probe_logits=token_logits(backbone, bundle.probe_images, trained.tokens, weight, bias),
    )
    return tuned, trained


def train_from(
    start: Floats | None,
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    *,
    state: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a prompt for `task` from `start [L, T, D]`; None: from scratch, as VPT does."""
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
    ).run(report)


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
            "nothing to start from; run `hgedge fit` with --keep-sources"
        )
    return mix(bundle.source_tokens.astype(np.float32), bundle.learned_weights.astype(np.float64))


def _without_the_old_prompts(bundle: Bundle) -> Bundle:
    """Leave out what was trained or learned under the prompt that goes."""
    return replace(
        bundle,
        objective={key: value for key, value in bundle.objective.items() if key != "merged"},
        factory=None,
        conditions=(),
        condition_tokens=None,
        clean_mean=None,
        clean_var=None,
    )
