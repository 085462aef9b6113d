"""Train a prompt, without labels, that undoes what a condition does to the features (METHOD 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import block_rows, model_input
from hgprompt_edge.backbones.passes import in_parts
from hgprompt_edge.data.conditions import CONDITIONS, training_corruption
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.maths.head import Head
from hgprompt_edge.training.descent import Descent

Pixels = npt.NDArray[np.uint8]
Tokens = npt.NDArray[np.float32]

VALIDATION_IMAGES = 200
MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class ConditionRecipe:
    """How a condition prompt is trained.

    Attributes
    ----------
    epochs, batch_size, learning_rate, warmup
        AdamW without weight decay, cosine schedule, `warmup` as a share of all steps.
    features, predictions, blocks
        Weights of the three terms: one minus the cosine of the centred features, KL of the head's
        predictions, squared distance of the rows after each block in units of their variance.
    clean
        Share of a batch that stays as it is, so that the prompt does little harm in good light.
    average
        Decay of the running average of the prompt, which is what is validated and kept.
    """

    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 3e-2
    warmup: float = 0.05
    features: float = 1.0
    predictions: float = 1.0
    blocks: float = 0.1
    clean: float = 0.1
    average: float = 0.95
    validate_every: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """Clean images and what the initial prompt makes of them.

    Attributes
    ----------
    pixels
        `[n, S, S, 3]` uint8.
    features, rows
        `[n, D]`, and `[n, L, D]` after each block.
    """

    pixels: Pixels
    features: Tensor
    rows: Tensor

    def subset(self, rows: npt.NDArray[np.int64] | slice) -> Seen:
        """Those images."""
        return Seen(self.pixels[rows], self.features[rows], self.rows[rows])

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Restored:
    """A condition prompt `[L, T, D]` float32, the epoch it is of, and the losses on the way.

    `history` has one dict an evaluation: `epoch`, `loss` (training) and `val_loss`.
    """

    tokens: Tokens
    epoch: int
    history: tuple[dict[str, float], ...]


class ConditionTrainer(Descent):
    """Trains one condition prompt; its state goes to a file, so that a kill costs little.

    It trains and evaluates in the backbone's precision.

    Parameters
    ----------
    condition
        One of `tasks.conditions.CONDITIONS`.
    start
        Tokens `[L, T, D]` to start from.
    head
        Whose predictions are to stay.
    train, validation
        What trains and what chooses the epoch.
    state
        File for resuming; None: none is kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: ConditionRecipe,
        condition: str,
        start: Tokens,
        head: Head,
        train: Seen,
        validation: Seen,
        state: Path | None = None,
    ) -> None:
        super().__init__(recipe, torch.from_numpy(start), state)
        self.backbone, self.recipe, self.condition = backbone, recipe, condition
        self.train, self.validation = train, validation.subset(slice(VALIDATION_IMAGES))
        self.head = head.as_float32()
        self.centre = train.features.mean(0)
        self.spread = train.rows.var(0) + MIN_VARIANCE

    def run(self, report: Callable[[int, int], None] | None = None) -> Restored:
        """Train to the end of the recipe, from the state file where there is one."""
        self._load_state()
        if not self.history:
            self._evaluate(float("nan"))
        while self.epoch < self.recipe.epochs:
            if report:
                report(self.epoch, self.recipe.epochs)
            loss = self._train_epoch()
            self.epoch += 1
            if self.epoch % self.recipe.validate_every == 0 or self.epoch == self.recipe.epochs:
                self._evaluate(loss)
                self._save_state()
        if report:
            report(self.recipe.epochs, self.recipe.epochs)
        return Restored(self.best.numpy(), self.best_epoch, tuple(self.history))

    def corrupted(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Pixels `[n, S, S, 3]` as the condition would make them."""
        return training_corruption(pixels, self.condition, rng, self.backbone.preprocessing.fill)

    def _train_epoch(self) -> float:
        # All randomness comes from (seed, condition, epoch): a resumed run equals another.
        seeds = [self.recipe.seed, CONDITIONS.index(self.condition), self.epoch]
        rng = np.random.default_rng(seeds)
        order = rng.permutation(len(self.train))
        batches = max(1, len(order) // self.recipe.batch_size)
        losses = []
        for rows in np.array_split(order, batches):
            clean = self.train.subset(rows)
            pixels = clean.pixels.copy()
            changed = slice(round(self.recipe.clean * len(rows)), None)
            pixels[changed] = self.corrupted(pixels[changed], rng)
            losses.append(self._descend(pixels, clean, batches * self.recipe.epochs))
        return float(np.mean(losses))

    def _descend(self, pixels: Pixels, clean: Seen, total: int) -> float:
        """Take one of so many steps in all, and return the loss before it."""
        found = self._losses(pixels, clean, self.prompt.detach(), gradient=True)
        losses, gradients = zip(*found, strict=True)
        self.take_step(torch.stack(gradients).sum(0).div(len(pixels)), total)
        return math.fsum(losses) / len(pixels)

    def _losses(
        self, pixels: Pixels, clean: Seen, prompt: Tensor, *, gradient: bool
    ) -> list[tuple[float, Tensor]]:
        """Loss of each part of the images, summed, and its gradient `[L, T, D]` float64."""

        def loss(model: VisionTransformer, part: slice) -> tuple[float, Tensor]:
            with torch.set_grad_enabled(gradient):
                leaf = prompt.clone().requires_grad_(gradient)
                value = self._loss(model, pixels[part], clean.subset(part), leaf).sum()
                if not gradient:
                    return float(value), torch.empty(0)
                (slope,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), slope.double()

        return in_parts(self.backbone, len(pixels), loss)

    def _loss(
        self, model: VisionTransformer, pixels: Pixels, clean: Seen, prompt: Tensor
    ) -> Tensor:
        """Distance `[n]` of the images' features from those of their clean versions."""
        recipe = self.recipe
        features, rows = _rows(model, self.backbone, pixels, prompt)
        cosine = functional.cosine_similarity(
            features - self.centre, clean.features - self.centre, dim=1
        )
        wanted = logits_of(self.head, clean.features).log_softmax(1)
        found = logits_of(self.head, features).log_softmax(1)
        divergence = (wanted.exp() * (wanted - found)).sum(1)
        distance = ((rows - clean.rows).square() / self.spread).mean((1, 2))
        return (
            recipe.features * (1 - cosine)
            + recipe.predictions * divergence
            + recipe.blocks * distance
        )

    def _evaluate(self, loss: float) -> None:
        rng = np.random.default_rng([self.recipe.seed, CONDITIONS.index(self.condition)])
        pixels = self.corrupted(self.validation.pixels, rng)
        found = self._losses(pixels, self.validation, self.averaged, gradient=False)
        value = math.fsum(part for part, _ in found) / len(pixels)
        self.note({"epoch": float(self.epoch), "loss": loss, "val_loss": value}, by="val_loss")

    def _anchors(self) -> dict[str, Tensor]:
        return {"start": self.start, "target": self.train.features}

    def _of(self) -> dict[str, Any]:
        return {
            **asdict(self.recipe),
            "precision": self.backbone.compute.precision,
            "condition": self.condition,
            "backbone": self.backbone.sha256,
        }


def seen_under(backbone: Backbone, pixels: Pixels, initial: Tokens | None) -> Seen:
    """Show clean images to the backbone under a prompt `[L, T, D]`; None: no prompt."""
    prompt = None if initial is None else torch.from_numpy(initial)

    def see(model: VisionTransformer, part: slice) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return _rows(model, backbone, pixels[part], prompt)

    features, rows = zip(*in_parts(backbone, len(pixels), see), strict=True)
    return Seen(pixels, torch.cat(features), torch.cat(rows))


def _rows(
    model: VisionTransformer, backbone: Backbone, pixels: Pixels, prompt: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`block_rows` of pixels `[n, S, S, 3]`, float32 on the CPU."""
    x = model_input(model, pixels, backbone.preprocessing)
    features, rows = block_rows(model, x, None if prompt is None else prompt.to(x))
    return features.float().cpu(), rows.float().cpu()
