"""Crop, squash or letterbox: which way to make pictures square holds out best (METHOD 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import choose_pooling
from hgprompt_edge.fit.algorithm import Progress
from hgprompt_edge.fit.choice import CONFIDENCE, Proof
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.best_head import HeadKind
from hgprompt_edge.images.preprocess import RULES, Preprocessing
from hgprompt_edge.maths.paired import Paired, paired

Load = Callable[[Preprocessing], Task]
"""Reads the task for a preprocessing, the same images for each."""


@dataclass(frozen=True)
class Tried:
    """A way to make pictures square and what held-out images say of it.

    Attributes
    ----------
    rule
        A key of `RULES`.
    accuracy, log_loss
        Cross-fitted over training and validation images, without a prompt; NaN where no image can
        be held out.
    change, proof
        Against the backbone's own rule; None for that one.
    """

    rule: str
    accuracy: float
    log_loss: float
    change: Paired | None = None
    proof: Proof | None = None

    @property
    def is_better(self) -> bool:
        """Whether it is better beyond chance; the two that are tried share the risk of an error."""
        return self.proof is not None and self.proof.exceeds(1 - (1 - CONFIDENCE) / 2)


@dataclass(frozen=True)
class ResizeChoice:
    """All ways that were tried, the backbone's own first, and the one that is kept.

    Attributes
    ----------
    images
        Held-out images that every way could read.
    """

    tried: tuple[Tried, ...]
    kept: Tried
    images: int


@dataclass(frozen=True)
class _HeldOut:
    """By the name of an image: its log-loss, and the share of looks at it that are right."""

    losses: dict[str, float]
    right: dict[str, float]

    def rows(self, names: list[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Losses and right of those images, `[n]` each."""
        both = ([found[name] for name in names] for found in (self.losses, self.right))
        losses, right = map(np.array, both)
        return losses, right


def choose_resize(
    backbone: Backbone,
    load: Load,
    *,
    head: HeadKind = "lda",
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> ResizeChoice:
    """Try all ways without a prompt, each with its best pooling and head; one must prove better.

    The backbone's own rule stays unless another one has a lower cross-fitted log-loss beyond
    chance and an accuracy that is not lower (`choice.Proof`). Images of one rule are in memory at
    a time.

    Parameters
    ----------
    load
        Called once for each rule; its test part is not looked at.

    Raises
    ------
    UserError
        As of `load`.
    """
    mode = backbone.preprocessing.crop_mode
    names = sorted(RULES, key=lambda name: RULES[name] != mode)  # stable: only its own comes first
    found: dict[str, _HeldOut] = {}
    for done, name in enumerate(names):
        if progress:
            progress("resize rules", done, len(names))
        candidate = backbone.with_rule(name)
        task = load(candidate.preprocessing)
        found[name] = _hold_out(FeatureStore(candidate, enabled=cache), task, head, seed)
    if progress:
        progress("resize rules", len(names), len(names))
    seen = [
        name for name in found[names[0]].losses if all(name in f.losses for f in found.values())
    ]
    own, own_right = found[names[0]].rows(seen)
    tried = [_measured(names[0], own, own_right)]
    for name in names[1:]:
        losses, right = found[name].rows(seen)
        fall, count = own - losses, len(seen)
        error = float(fall.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf
        gain = float(fall.mean()) if count else math.nan
        change = paired(own_right, right)
        proof = Proof(gain, error, change.change / 100, count)
        tried.append(_measured(name, losses, right, change, proof))
    better = [each for each in tried if each.is_better]
    kept = min(better, key=lambda each: each.log_loss) if better else tried[0]
    return ResizeChoice(tuple(tried), kept, len(seen))


def _measured(
    rule: str,
    losses: npt.NDArray[np.float64],
    right: npt.NDArray[np.float64],
    change: Paired | None = None,
    proof: Proof | None = None,
) -> Tried:
    accuracy, loss = (float(a.mean()) if len(a) else math.nan for a in (right, losses))
    return Tried(rule, accuracy, loss, change, proof)


def _hold_out(store: FeatureStore, task: Task, head: HeadKind, seed: int) -> _HeldOut:
    """Log-loss and share of right looks of each image, under heads that have not seen it."""
    store = store.with_pooling(choose_pooling(store, task, seed).name)
    judge = Judge(store, task, head, seed)
    choice = judge.head_choice(None)
    labels = torch.from_numpy(judge.labels)
    right, looks = torch.zeros(len(labels), dtype=torch.float64), torch.zeros(len(labels))
    for rows, logits in choice.held_out:
        right[rows] += (logits.argmax(1) == labels[rows]).double()
        looks[rows] += 1
    shown = [*task.train.names, *task.validation.names]
    scored = [(name, row) for row, name in enumerate(shown) if choice.losses[row].isfinite()]
    return _HeldOut(
        {name: float(choice.losses[row]) for name, row in scored},
        {name: float(right[row] / looks[row]) for name, row in scored},
    )
