"""Visual prompt tuning for the head that is used later: a closed-form LDA, cross-fitted.

A linear head trained by gradient descent flatters a prompt; what counts is the closed-form head
on the prompted features. So each batch is cut into folds, the LDA of the other folds scores each
fold, and the log-loss is differentiated through the solve (Bertinetto et al. 2019, "Meta-learning
with differentiable closed-form solvers", for the idea). Prompt: VPT (Jia et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.backbones.linearize import Inputs, Linearized
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.heads.heads import accuracy, cross_fitted_logits, log_loss, logits_of
from hgprompt_edge.prompts.prompt import DEEP
from hgprompt_edge.training.augment import Augmentation
from hgprompt_edge.training.descent import Descent
from hgprompt_edge.training.neutral_prompt import neutral_tokens

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Draw = Callable[[int], tuple[Pixels, Labels]]
"""Training images of an epoch: the same array each time, or fresh ones without end."""

SCALES = tuple(0.01 * 1.25**step for step in range(27))
"""Inverse temperatures from 0.01 to 3.3."""


@dataclass(frozen=True)
class Recipe:
    """How a prompt is trained.

    Attributes
    ----------
    tokens
        Prompt tokens a layer.
    epochs, batch_size, learning_rate, warmup
        AdamW without weight decay, cosine schedule, `warmup` as a share of all steps. A batch
        needs at least as many images as there are classes.
    folds
        Parts of a batch, each with a share of every class; each is scored by the LDA of the others.
    min_crop
        Smallest area of a random crop, as a share of the image.
    clean
        Share of a batch that stays as it is, since the head is fitted on such images.
    jitter
        Brightness, contrast and saturation vary by this much.
    average
        Decay of the running average of the prompt, which is what is validated and kept.
    keep_last
        Keep the last epoch rather than the best by validation: for data whose validation images
        are near-duplicates of training images (frames of one video), where validation lies.
    """

    tokens: int = 50
    mode: str = DEEP
    epochs: int = 120
    batch_size: int = 400
    learning_rate: float = 1e-2
    warmup: float = 0.05
    folds: int = 4
    min_crop: float = 0.6
    clean: float = 0.25
    jitter: float = 0.3
    flips: bool = True
    average: float = 0.98
    validate_every: int = 5
    init_seed: int = 0
    seed: int = 0
    keep_last: bool = False


@dataclass(frozen=True)
class Trained:
    """The best prompt by validation and how it was reached.

    Attributes
    ----------
    tokens
        `[L, T, D]` float32.
    start
        What it was trained from, `[L, T, D]` float32.
    epoch
        Epochs of training behind it; 0 is the start itself.
    history
        One dict an evaluation: `epoch`, `loss` (training), `val_accuracy`, `val_log_loss`.
    """

    tokens: npt.NDArray[np.float32]
    start: npt.NDArray[np.float32]
    epoch: int
    history: tuple[dict[str, float], ...]
    seconds: float


class PromptTrainer(Descent):
    """Trains one prompt; its state goes to a file every few epochs, so a kill costs little.

    It trains and evaluates in the backbone's precision.

    Parameters
    ----------
    draw
        Training images `[n, S, S, 3]` uint8 and labels `[n]` for an epoch.
    head_images
        Images and labels on which the validated head is fitted.
    validation
        Images and labels that choose the epoch.
    state
        File for resuming; None: none is kept.
    start
        Tokens `[L, T, D]` to start from; None: the neutral start of the recipe's `init_seed`.
    images
        Digest of all images above: a state of others is not gone on from.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        num_classes: int,
        draw: Draw,
        head_images: tuple[Pixels, Labels],
        validation: tuple[Pixels, Labels],
        state: Path | None = None,
        start: npt.NDArray[np.float32] | None = None,
        images: str = "",
    ) -> None:
        tokens = (
            neutral_tokens(backbone, recipe.tokens, recipe.mode, recipe.init_seed)
            if start is None
            else torch.from_numpy(start)
        )
        super().__init__(recipe, tokens, state)
        self.backbone, self.recipe, self.num_classes = backbone, recipe, num_classes
        self.draw, self.head_images, self.validation = draw, head_images, validation
        self.images = images

    def run(
        self,
        report: Callable[[int, int], None] | None = None,
        resumed: Callable[[], None] | None = None,
    ) -> Trained:
        """Train to the end of the recipe, from the state file where there is one.

        Calls `resumed` where it goes on from that file.
        """
        began = time.perf_counter()
        if self._load_state() and resumed:
            resumed()
        if self.epoch == 0 and not self.history and not self.recipe.keep_last:
            self._evaluate(float("nan"))
        while self.epoch < self.recipe.epochs:
            loss = self._train_epoch()
            self.epoch += 1
            last = self.epoch == self.recipe.epochs
            if last or self.epoch % self.recipe.validate_every == 0:
                if last or not self.recipe.keep_last:  # else nothing is chosen by it
                    self._evaluate(loss)
                self._save_state()
            if report:
                report(self.epoch, self.recipe.epochs)
        if self.recipe.keep_last:
            self.best, self.best_epoch = self.averaged.clone(), self.epoch
        return Trained(
            tokens=self.best.numpy().astype(np.float32),
            start=self.start.numpy().astype(np.float32),
            epoch=self.best_epoch,
            history=tuple(self.history),
            seconds=time.perf_counter() - began,
        )

    def _train_epoch(self) -> float:
        # All randomness comes from (seed, epoch): a resumed run equals an uninterrupted one.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        pixels, labels = self.draw(self.epoch)
        order = torch.randperm(len(labels), generator=generator).numpy()
        batches = max(1, len(labels) // self.recipe.batch_size)
        losses = []
        for rows in np.array_split(order, batches):
            inputs = self._inputs(pixels[rows], generator)
            batch = Linearized(self.backbone, inputs, len(rows), self.prompt.detach())
            loss, slope = self._loss(batch.features, torch.from_numpy(labels[rows]))
            self.take_step(batch.pull(slope), batches * self.recipe.epochs)
            losses.append(loss)
        return float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")

    def _loss(self, features: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Cross-fitted log-loss of the LDA on a batch's features `[n, D]`, and its gradient."""
        features = features.requires_grad_(True)
        # An image whose class has no other image in the batch cannot be scored: it is left out.
        logits, held_out = cross_fitted_logits(
            features, labels, self.num_classes, folds=self.recipe.folds
        )
        if not len(held_out):
            return float("nan"), torch.zeros_like(features)
        loss = functional.cross_entropy(logits * best_scale(logits, held_out), held_out)
        (slope,) = torch.autograd.grad(loss, features)
        return float(loss.detach()), slope

    def _inputs(self, pixels: Pixels, generator: torch.Generator) -> Inputs:
        """Augment a batch `[n, S, S, 3]`, part by part; its first images stay as they are."""
        recipe, preprocessing = self.recipe, self.backbone.preprocessing
        clean = round(recipe.clean * len(pixels))
        augment = Augmentation.draw(
            len(pixels) - clean, recipe.min_crop, recipe.flips, recipe.jitter, generator
        )

        def inputs(part: slice) -> Tensor:
            device = self.backbone.compute.device
            images = torch.from_numpy(pixels[part]).to(device).permute(0, 3, 1, 2) / 255
            mean, std = (
                torch.tensor(value, device=device)[:, None, None]
                for value in (preprocessing.mean, preprocessing.std)
            )
            kept = max(0, min(clean, part.stop) - part.start)
            if kept < len(images):
                first = part.start + kept - clean
                changed = slice(first, first + len(images) - kept)
                images = torch.cat([images[:kept], augment(images[kept:], changed)])
            return (images - mean) / std

        return inputs

    def _evaluate(self, loss: float) -> None:
        features, held_out = (
            extract_features(self.backbone, pixels, self.averaged)
            for pixels in (self.head_images[0], self.validation[0])
        )
        labels, seed = self.head_images[1], self.recipe.seed
        head = fit_head(features, labels, self.num_classes, seed, "lda")
        logits = logits_of(head, held_out)
        row = {
            "epoch": float(self.epoch),
            "loss": loss,
            "val_accuracy": accuracy(logits, self.validation[1]),
            "val_log_loss": log_loss(logits, self.validation[1]),
        }
        # Accuracy on 200 images is coarse; the log-loss sees small steps.
        self.note(row, by="val_log_loss")

    def _of(self) -> dict[str, Any]:
        return {
            **asdict(self.recipe),
            "precision": self.backbone.compute.precision,
            "backbone": self.backbone.sha256,
            "pooling": self.backbone.pooling,
            "preprocessing": self.backbone.preprocessing.to_json(),
            "images": self.images,
        }


@torch.no_grad()
def best_scale(logits: Tensor, labels: Tensor) -> float:
    """Return the inverse temperature with the lowest log-loss of `logits [n, K]`.

    A few images a class make LDA far too confident; without this the loss of a batch lies above
    chance and its gradient is that of a handful of outliers.
    """
    losses = [functional.cross_entropy(logits * scale, labels) for scale in SCALES]
    return SCALES[int(torch.stack(losses).argmin())]
