"""A source prompt from end to end: train it for a task, measure what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.generated import KINDS, generate
from hgprompt_edge.files import sha256_arrays
from hgprompt_edge.fit.checks import check_batch, check_validation
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.maths.head import Head
from hgprompt_edge.prompts.prompt import DEEP, Prompt
from hgprompt_edge.training.prompt_tuning import Draw, PromptTrainer, Recipe, Trained

Report = Callable[[int, int], None]

GENERATED_TEST_IMAGES = 1000


def train_source(
    backbone: Backbone,
    task: Task,
    recipe: Recipe,
    *,
    more: Images | None = None,
    state: Path | None = None,
    report: Report | None = None,
    resumed: Callable[[], None] | None = None,
) -> tuple[Prompt, Trained]:
    """Train a prompt for `task` and measure it on the test part, beside no prompt.

    Each with its own best head, fitted on training and validation images. The test part is touched
    once, after the epoch was chosen on validation. Both are measured in the backbone's precision,
    as the training is. An epoch passes over as many images as `task.train` has: those, or fresh
    ones for a generated task or where there are `more`.

    Parameters
    ----------
    more
        Further training images of the task's classes: the prompt is trained on all of them, the
        heads are fitted on the task's own, so that figures compare.
    state
        File that an interrupted training resumes from; removed at the end by the caller.
    resumed
        Called where the training goes on from that file.

    Raises
    ------
    UserError
        The task has no validation images, and the recipe does not keep the last epoch; or it has
        more classes than a batch has images.
    """
    check_batch(task, recipe.batch_size)
    if not recipe.keep_last:
        check_validation(task)
    recipe = replace(recipe, flips=recipe.flips and task.flips)
    trained = PromptTrainer(
        backbone,
        recipe,
        len(task.classes),
        _draw(task, more, backbone, recipe),
        (task.train.pixels, task.train.labels),
        (task.validation.pixels, task.validation.labels),
        state,
        images=_digest(task, more),
    ).run(report, resumed)
    task = _with_enough_test(task, backbone)
    head, correct = _judge(backbone, task, trained.tokens)
    _, correct_unprompted = _judge(backbone, task, None)
    details = {
        **asdict(recipe),
        "precision": backbone.compute.precision,
        "resize": backbone.preprocessing.crop_mode,
        "epoch": trained.epoch,
        "seconds": round(trained.seconds),
        "images": None if task.name in KINDS else len(task.train) + (len(more) if more else 0),
        "test_images": len(task.test),
        "test_standard_error": paired_standard_error(correct, correct_unprompted),
        "split_digest": task.digest,
        "history": [
            {key: round(value, 4) for key, value in row.items() if np.isfinite(value)}
            for row in trained.history
        ],
    }
    prompt = replace(
        blank_prompt(backbone, task, recipe),
        tokens=trained.tokens,
        test_accuracy=_mean(correct),
        test_accuracy_unprompted=_mean(correct_unprompted),
        recipe=details,
        head=head.as_float32(),
    )
    return prompt, trained


def blank_prompt(backbone: Backbone, task: Task, recipe: Recipe) -> Prompt:
    """Describe the prompt that `train_source` trains; its tokens `[L, T, D]` are still zeros."""
    layers = backbone.depth if recipe.mode == DEEP else 1
    return Prompt(
        tokens=np.zeros((layers, recipe.tokens, backbone.embed_dim), np.float32),
        name=task.name,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        image_size=backbone.image_size,
        mode=recipe.mode,
        init_seed=recipe.init_seed,
        task=task.name,
        family=task.family,
        classes=task.classes,
    )


def paired_standard_error(
    correct: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]
) -> float | None:
    """Return the standard error of the mean difference of two classifiers on one test part."""
    if len(correct) < 2:
        return None
    difference = correct.astype(np.float64) - reference.astype(np.float64)
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))


def _draw(task: Task, more: Images | None, backbone: Backbone, recipe: Recipe) -> Draw:
    if task.name in KINDS:

        def fresh(epoch: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
            # Seed 0 made the task's own training images.
            seed = 1 + recipe.seed * recipe.epochs + epoch
            images = generate(task.name, len(task.train), backbone.image_size, seed, "train")
            return images.pixels, images.labels

        return fresh
    if more is None or not len(more):
        return lambda _: (task.train.pixels, task.train.labels)
    return draw_from(
        np.concatenate([task.train.pixels, more.pixels]),
        np.concatenate([task.train.labels, more.labels]),
        count=len(task.train),
        seed=recipe.seed,
    )


def draw_from(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], count: int, seed: int
) -> Draw:
    """Draw `count` other images each epoch, in passes: each comes once at most in a pass."""

    def draw(epoch: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        per_pass = len(labels) // count
        order = np.random.default_rng((seed, epoch // per_pass)).permutation(len(labels))
        start = (epoch % per_pass) * count
        rows = order[start : start + count]
        return pixels[rows], labels[rows]

    return draw


def _digest(task: Task, more: Images | None) -> str:
    """Digest of the task's images and of those beyond them that train its prompt."""
    if more is None or not len(more):
        return task.digest
    return f"{task.digest} {sha256_arrays({'pixels': more.pixels, 'labels': more.labels})}"


def _with_enough_test(task: Task, backbone: Backbone) -> Task:
    """Test images of a generated task cost nothing: take enough to see a gain of a point."""
    if task.name not in KINDS:
        return task
    images = generate(task.name, GENERATED_TEST_IMAGES, backbone.image_size, 0, "test")
    return replace(task, test=images)


def _judge(
    backbone: Backbone, task: Task, tokens: npt.NDArray[np.float32] | None
) -> tuple[Head, npt.NDArray[np.bool_]]:
    """Head fitted on training and validation images, and which test images it gets right."""
    train, validation, test = (
        extract_features(backbone, images.pixels, tokens)
        for images in (task.train, task.validation, task.test)
    )
    labels = np.concatenate([task.train.labels, task.validation.labels])
    head = fit_head(torch.cat([train, validation]), labels, len(task.classes))
    if not len(task.test):
        return head, np.zeros(0, dtype=bool)
    return head, logits_of(head, test).argmax(1).numpy() == task.test.labels


def _mean(correct: npt.NDArray[np.bool_]) -> float | None:
    return float(correct.mean()) if len(correct) else None
