"""Condition prompts: somewhere for a device to go when light, camera or place change (METHOD 7).

A condition prompt is trained without labels. Under it, a corrupted image shall have the features
and the predictions that its clean version has under the factory prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.errors import UserError
from hgprompt_edge.prompts import DEEP, Normalization
from hgprompt_edge.tasks import Task
from hgprompt_edge.tasks.conditions import CONDITIONS, SEVERITIES, corrupt, training_corruption
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import extract_features, features_prefix, normalize
from hgprompt_edge.vit.start import neutral_tokens
from hgprompt_edge.vit.train import fastest_precision

MIN_SCALE = 1e-6

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ConditionRecipe:
    """How condition prompts are trained: AdamW with a cosine schedule."""

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class Worth:
    """Validation accuracy on clean images, on corrupted ones, and on those with the prompt.

    Corrupted as the study does it, over its three severities, which training did not see.
    """

    name: str
    clean: float
    corrupted: float
    prompted: float


def tune_conditions(
    bundle: Bundle,
    backbone: Backbone,
    task: Task,
    names: Sequence[str],
    recipe: ConditionRecipe | None = None,
    report: Report | None = None,
) -> tuple[Bundle, tuple[Worth, ...]]:
    """Train a prompt for each condition and put them into the bundle, for a device's bank.

    Prompts for other conditions that the bundle holds already stay.

    Raises
    ------
    UserError
        An unknown condition, a bundle of another backbone or of other images, or shallow prompts.
    """
    recipe = recipe or ConditionRecipe()
    _check(bundle, backbone, task, names)
    own = bundle.preprocessing
    backbone = backbone.normalized(Normalization(own.mean, own.std))
    student = _Student(bundle, backbone, task.train.pixels, recipe)
    kept = {
        about["name"]: i for i, about in enumerate(bundle.conditions) if about["name"] not in names
    }
    abouts = [bundle.conditions[i] for i in kept.values()]
    tokens = (
        []
        if bundle.condition_tokens is None
        else [bundle.condition_tokens[i] for i in kept.values()]
    )
    worths = []
    for name in names:
        prompt = student.train(name, report)
        tokens.append(prompt.astype(np.float16))
        worths.append(_worth(bundle, backbone, task, name, prompt))
        abouts.append({key: str(value) for key, value in vars(worths[-1]).items()})
    prepared = replace(
        bundle,
        conditions=tuple(abouts),
        condition_tokens=np.stack(tokens),
        clean_mean=student.mean.numpy(),
        clean_var=student.variance.numpy(),
        factory=None,  # a mix over another bank
    )
    return prepared, tuple(worths)


def starting_tokens(bundle: Bundle, backbone: Backbone) -> Floats:
    """Folded prompt `[L, T, D]`; where none was chosen, one that changes nothing yet."""
    if bundle.prompt is not None:
        return bundle.prompt
    if bundle.source_tokens is None:
        raise UserError(
            f"the bundle of {bundle.task} does not hold its sources, so there is nothing for a "
            "device to mix; run `hgedge fit` with --keep-sources"
        )
    tokens: Floats = neutral_tokens(backbone, bundle.source_tokens.shape[2], DEEP, 0).numpy()
    return tokens


class _Student:
    """Trains prompts towards what the factory prompt makes of clean images."""

    def __init__(
        self, bundle: Bundle, backbone: Backbone, pixels: Pixels, recipe: ConditionRecipe
    ) -> None:
        self.backbone, self.pixels, self.recipe = backbone, pixels, recipe
        self.start = starting_tokens(bundle, backbone)
        self.model = copy.deepcopy(backbone.model).to(getattr(torch, fastest_precision()))
        self.weight = torch.tensor(bundle.head_weight)
        self.bias = torch.tensor(bundle.head_bias)
        features = extract_features(backbone, pixels, bundle.prompt)
        self.mean, self.variance = features.mean(0), features.var(0)
        self.scale = self.variance.sqrt().clamp_min(MIN_SCALE)
        self.wanted = self._standard(features)
        self.log_p = self._logits(features).log_softmax(1)

    def train(self, name: str, report: Report | None) -> Floats:
        """Prompt `[L, T, D]` for one condition."""
        recipe, count = self.recipe, len(self.pixels)
        rng = np.random.default_rng([recipe.seed, CONDITIONS.index(name)])
        tokens = torch.tensor(self.start, requires_grad=True)
        optimizer = torch.optim.AdamW([tokens], lr=recipe.learning_rate, weight_decay=0.0)
        batches = -(-count // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * batches)
        for epoch in range(recipe.epochs):
            order = rng.permutation(count)
            corrupted = training_corruption(self.pixels, name, rng)
            for rows in np.array_split(order, batches):
                optimizer.zero_grad()
                loss = self._loss(corrupted[rows], torch.from_numpy(rows), tokens)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            if report is not None:
                report(name, epoch + 1, recipe.epochs)
        return tokens.detach().numpy()

    def _loss(self, pixels: Pixels, rows: Tensor, tokens: Tensor) -> Tensor:
        """`1 - cosine` of standardised features plus the divergence of the predictions."""
        dtype = next(self.model.parameters()).dtype
        x = normalize(torch.from_numpy(pixels), self.backbone.preprocessing).to(dtype)
        features = features_prefix(self.model, x, tokens.to(dtype)).float()
        cosine = functional.cosine_similarity(self._standard(features), self.wanted[rows], dim=1)
        log_p = self._logits(features).log_softmax(1)
        divergence = functional.kl_div(
            log_p, self.log_p[rows], log_target=True, reduction="batchmean"
        )
        return (1 - cosine).mean() + divergence

    def _standard(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def _logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


def _worth(bundle: Bundle, backbone: Backbone, task: Task, name: str, prompt: Floats) -> Worth:
    """Measure on validation images, which no condition prompt has seen.

    The bundle's head has seen them, so levels are high; it is the differences that tell.
    """
    labels = task.validation.labels

    def accuracy(pixels: Pixels, tokens: Floats | None) -> float:
        features = extract_features(backbone, pixels, tokens).numpy()
        logits = features @ bundle.head_weight.T + bundle.head_bias
        return float((logits.argmax(1) == labels).mean())

    shifted = [corrupt(task.validation.pixels, name, severity) for severity in SEVERITIES]
    return Worth(
        name=name,
        clean=accuracy(task.validation.pixels, bundle.prompt),
        corrupted=float(np.mean([accuracy(pixels, bundle.prompt) for pixels in shifted])),
        prompted=float(np.mean([accuracy(pixels, prompt) for pixels in shifted])),
    )


def check_names(names: Sequence[str]) -> None:
    """Refuse conditions that there are no corruptions for, and an empty list."""
    unknown = [name for name in names if name not in CONDITIONS]
    if unknown or not names:
        what = f"unknown condition '{unknown[0]}'" if unknown else "none is named"
        raise UserError(f"--conditions: {what}; choose from {', '.join(CONDITIONS)}")


def _check(bundle: Bundle, backbone: Backbone, task: Task, names: Sequence[str]) -> None:
    check_names(names)
    if bundle.backbone_sha256 != backbone.sha256:
        raise UserError(
            f"the bundle of {bundle.task} was fitted on other weights of {bundle.backbone} "
            f"({bundle.backbone_sha256[:12]}) than these ({backbone.sha256[:12]}); give its own "
            "with --checkpoint"
        )
    if bundle.mode != DEEP:
        raise UserError(
            f"the bundle of {bundle.task} holds shallow prompts; only deep prompts can be mixed on "
            "a device, so only they have condition prompts"
        )
    if bundle.split_digest != task.digest:
        raise UserError(
            f"--data: these are not the images that the bundle of {bundle.task} was fitted on; "
            "name those, or run `hgedge fit` on these first"
        )
