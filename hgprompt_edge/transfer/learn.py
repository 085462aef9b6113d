"""Learn the weights: features of each source, J on cached features, exact steps (METHOD 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.prompts import Floats, PromptBank, mix, on_basis, source_shares
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.alignment import (
    Alignment,
    common_head,
    cosine_alignment,
    head_alignment,
    prompt_alignment,
)
from hgprompt_edge.transfer.cached import Climb, climb
from hgprompt_edge.transfer.descend import Descent, descend
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.log_loss import LogLoss
from hgprompt_edge.transfer.objective import Objective, Terms, make_objective
from hgprompt_edge.transfer.refine import ExactObjective, Refined, refine, starting_points
from hgprompt_edge.vit.best_head import lda_choices
from hgprompt_edge.vit.heads import Labels, cross_fitted_log_loss

Space = Literal["head", "prompt", "cosine"]
Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class FirstStage:
    """What is maximised, on which features, and where the climb on cached features ended."""

    features: Tensor
    uniform: Tensor
    objective: Objective
    climbed: Climb


@dataclass(frozen=True)
class Learned:
    """What was maximised, where each stage ended, and the mix that was taken.

    Attributes
    ----------
    descended
        The exact steps; None where none were asked for.
    weights
        The learned mix over the bank's basis: `[M, L]` where it is that of the exact steps, else
        `[M]`.
    features
        `[n, D]` of the training images under it.
    log_loss, log_loss_uniform
        Cross-fitted on the training images under it and under the uniform mix, in nats; None where
        no class has two images, so that none can be held out.
    shrinkage
        Of the LDA behind these, one for all mixes; None: Ledoit-Wolf's of each.
    taken
        What held out best: `exact` steps, `objective` (where J ended), `uniform`, or the index of a
        source.
    """

    objective: Objective
    climbed: Climb
    descended: Descent | None
    weights: npt.NDArray[np.float64]
    features: Tensor
    log_loss: float | None
    log_loss_uniform: float | None
    shrinkage: float | None
    taken: str | int

    @property
    def terms(self) -> Terms:
        """J, H and R of the learned mix; R at the sources' shares of it."""
        return self._terms(self.weights, self.features)

    @property
    def history(self) -> list[dict[str, Any]]:
        """`stage` (`cached` or `exact`), `J`, `H`, `R` of each step; of exact ones `log_loss`."""
        rows = [{"stage": "cached", **asdict(terms)} for terms in self.climbed.path]
        for weights, features, loss in self.descended.path if self.descended else ():
            terms = asdict(self._terms(weights.numpy(), features))
            rows.append({"stage": "exact", **terms, "log_loss": loss})
        return rows

    def _terms(self, weights: npt.NDArray[np.float64], features: Tensor) -> Terms:
        # The start has no gradients of its own: the conflict is among the sources.
        shares = source_shares(weights)[: len(self.climbed.weights)]
        return self.objective.terms(features, torch.from_numpy(shares / shares.sum()))


def learn_weights(
    store: FeatureStore,
    task: Task,
    bank: PromptBank,
    *,
    lam: float,
    steps: int,
    refine_steps: int,
    space: Space = "head",
    seed: int = 0,
    report: Progress,
) -> Learned:
    """Learn a mix of the bank's prompts on the training images (METHOD 5).

    J (METHOD eq. 5) is maximised on cached features with one weight a source. The exact steps go
    down the cross-fitted log-loss of the head with one weight for each source and layer, and for
    the untrained start where the bank holds it. Where they end, where J ended, the uniform mix and
    each source: what has the lowest log-loss was learned. Where no image can be held out, as no
    class has two, where J ended.

    Parameters
    ----------
    lam
        `lambda`, the price of gradient conflict.
    steps, refine_steps
        Most steps on cached features, and exactly through the backbone.
    space
        Where gradients are compared.
    """
    pixels, labels, classes = task.train.pixels, task.train.labels, len(task.classes)
    tokens, basis = bank.tokens, bank.basis_tokens
    first = maximise_cached(
        store, task, tokens, lam=lam, steps=steps, space=space, seed=seed, report=report
    )
    equal, climbed = uniform_weights(len(tokens)), first.climbed.weights.numpy()
    ends: list[tuple[str | int, npt.NDArray[np.float64], Tensor]] = [
        ("objective", climbed, store.features(pixels, mix(tokens, climbed))),
        ("uniform", equal, first.uniform),
        *zip(range(len(tokens)), np.eye(len(tokens)), first.features, strict=True),
    ]
    rho = common_shrinkage(first.features, labels, classes, seed)
    losses = [cross_fitted_log_loss(f, labels, classes, seed, rho) for _, _, f in ends]
    held_out = bool(np.isfinite(losses[0]))
    descended = None
    if refine_steps and len(basis) > 1 and held_out:
        loss = LogLoss.at(first.uniform, labels, classes, seed, rho)
        descended = descend(
            store, pixels, basis, loss, refine_steps, lambda *done: report("exact steps", *done)
        )
        ends.append(("exact", descended.weights.numpy(), descended.features))
        losses.append(cross_fitted_log_loss(descended.features, labels, classes, seed, rho))
    best = int(np.argmin(losses)) if held_out else 0
    taken, weights, features = ends[best]
    return Learned(
        first.objective,
        first.climbed,
        descended,
        on_basis(weights, len(basis)),
        features,
        losses[best] if held_out else None,
        losses[1] if held_out else None,
        rho,
        taken,
    )


def common_shrinkage(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0
) -> float | None:
    """One shrinkage of the LDA for all mixes of sources with features `[N, n, D]`.

    That of the source with the lowest cross-fitted log-loss, each at its best. Given a shrinkage of
    its own, a mix can win by that rather than by its features.
    """
    best = (
        min(lda_choices(source, labels, num_classes, seeds=(seed,)), key=lambda c: c.log_loss)
        for source in features
    )
    return min(best, key=lambda choice: choice.log_loss).strength


def maximise_cached(
    store: FeatureStore,
    task: Task,
    tokens: Floats,
    *,
    lam: float,
    steps: int,
    space: Space = "head",
    seed: int = 0,
    report: Progress,
) -> FirstStage:
    """Maximise J (METHOD eq. 5) over the mixes of `tokens [N, L, T, D]` on cached features."""
    pixels, labels = task.train.pixels, task.train.labels
    features = source_features(store, task, tokens)
    uniform = store.features(pixels, mix(tokens, uniform_weights(len(tokens))))
    alignment = align(store, task, tokens, features, space, seed, report)
    objective = make_objective(uniform, labels, alignment, lam, seed)
    climbed = climb(features, objective, steps)
    report("weights", 1, 1)
    return FirstStage(features, uniform, objective, climbed)


def maximise_exactly(
    store: FeatureStore,
    task: Task,
    tokens: Floats,
    first: FirstStage,
    steps: int,
    report: Progress,
) -> Refined:
    """Go on from `maximise_cached` by at most so many exact steps of J: where J itself ends.

    `fit` takes other exact steps, which go down the log-loss: this is what it is compared with.
    """
    exact = ExactObjective(store, task.train.pixels, tokens, first.objective)
    starts = starting_points(first.features, first.objective, first.climbed.weights)
    return refine(exact, starts, steps, lambda *done: report("exact steps", *done))


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
