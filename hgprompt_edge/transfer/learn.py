"""Learn the weights: features of each source, cached warm start, exact refinement (METHOD 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.prompts import Floats, mix
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.alignment import (
    Alignment,
    common_head,
    cosine_alignment,
    head_alignment,
    prompt_alignment,
)
from hgprompt_edge.transfer.cached import Climb, climb
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.objective import Objective, Terms, make_objective
from hgprompt_edge.transfer.refine import ExactObjective, Refined, refine, starting_points
from hgprompt_edge.vit.heads import cross_fitted_log_loss

Space = Literal["head", "prompt", "cosine"]
Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class Learned:
    """What was maximised, where each stage ended, and the mix that was taken.

    Attributes
    ----------
    weights
        The learned mix, `[N]`.
    features
        `[n, D]` of the training images under it.
    taken
        What held out best: `objective` (where J ended), `uniform`, or the index of a source.
    """

    objective: Objective
    climbed: Climb
    refined: Refined
    weights: npt.NDArray[np.float64]
    features: Tensor
    taken: str | int

    @property
    def terms(self) -> Terms:
        """J, H and R of the learned mix."""
        return self.objective.terms(self.features, torch.from_numpy(self.weights))

    @property
    def history(self) -> list[dict[str, Any]]:
        """`stage` (`cached` or `exact`), `J`, `H` and `R` of each step."""

        def rows(stage: str, path: tuple[Terms, ...]) -> list[dict[str, Any]]:
            return [{"stage": stage, **asdict(terms)} for terms in path]

        return rows("cached", self.climbed.path) + rows("exact", self.refined.path)


def learn_weights(
    store: FeatureStore,
    task: Task,
    tokens: Floats,
    *,
    lam: float,
    steps: int,
    refine_steps: int,
    space: Space = "head",
    seed: int = 0,
    report: Progress,
) -> Learned:
    """Maximise J (METHOD eq. 5) over the mixes of `tokens [N, L, T, D]` on the training images.

    J rewards features that fit the images it is measured on. So the mix that it ends at has to
    beat the uniform one and each source, whose exact features are known, in the cross-fitted
    log-loss of the head on the same images; the best of them is what was learned (METHOD 5.4).

    Parameters
    ----------
    lam
        `lambda`, the price of gradient conflict.
    steps, refine_steps
        Most steps on cached features, and exactly through the backbone.
    space
        Where gradients are compared.
    """
    pixels, labels = task.train.pixels, task.train.labels
    features = source_features(store, task, tokens)
    uniform = store.features(pixels, mix(tokens, uniform_weights(len(tokens))))
    alignment = align(store, task, tokens, features, space, seed, report)
    objective = make_objective(uniform, labels, alignment, lam, seed)
    climbed = climb(features, objective, steps)
    report("weights", 1, 1)
    exact = ExactObjective(store, pixels, tokens, objective)
    starts = starting_points(features, objective, climbed.weights)
    refined = refine(exact, starts, refine_steps, lambda *done: report("exact steps", *done))
    ends = [(refined.weights.numpy(), refined.features), (uniform_weights(len(tokens)), uniform)]
    ends += list(zip(np.eye(len(tokens)), features, strict=True))
    losses = [cross_fitted_log_loss(f, labels, len(task.classes), seed) for _, f in ends]
    best = int(np.argmin(losses))
    names: list[str | int] = ["objective", "uniform", *range(len(tokens))]
    return Learned(objective, climbed, refined, *ends[best], names[best])


def source_features(store: FeatureStore, task: Task, tokens: Floats) -> Tensor:
    """Features `[N, n, D]` of the training images under each of the sources."""
    return torch.stack([store.features(task.train.pixels, source) for source in tokens])


def align(
    store: FeatureStore,
    task: Task,
    tokens: Floats,
    features: Tensor,
    space: Space,
    seed: int,
    report: Progress,
) -> Alignment:
    """Conflict of the sources as a function of their weights (METHOD 4)."""
    labels = task.train.labels
    head = common_head(features, labels, len(task.classes), seed)
    if space == "head":
        return head_alignment(features, labels, head)
    if space == "cosine":
        return cosine_alignment(features, labels, head)
    variances = []
    for done, source in enumerate(tokens):
        report("gradients", done, len(tokens))
        variances.append(store.gradient_variance(task.train.pixels, labels, source, head))
    report("gradients", len(tokens), len(tokens))
    return prompt_alignment(variances)


def uniform_weights(count: int) -> npt.NDArray[np.float64]:
    """Return the mix `[N]` that takes all sources alike."""
    return np.full(count, 1 / count)
