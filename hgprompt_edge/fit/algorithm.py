"""The method: maximise `J = H_d / (K - 1) - lambda R` over the mixing weights (METHOD 5).

From near the best source, through the frozen backbone, with one weight for each prompt and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.alignment import Alignment, common_head, head_alignment
from hgprompt_edge.fit.objective import Objective, Terms, make_objective
from hgprompt_edge.heads.heads import Labels
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix, source_shares
from hgprompt_edge.prompts.prompt import Floats

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all); 0 in all: nobody knows how many."""

LAMBDA = 0.003
"""The price of gradient conflict; see METHOD 4 for what it does."""
STEPS = 14
LEARNING_RATE = 0.3
"""About the change of a logit of the mixing weights in a step."""
START_SHARE = 0.75
"""Weight of the best source at the start. Equal weights lose most of what the sources know, and a
vertex has no gradient towards the others."""


@dataclass(frozen=True)
class Step:
    """One point of the ascent.

    Attributes
    ----------
    weights
        `[M, L]` float64, the columns sum to 1.
    features
        `[n, D]` float32 of the training images under the mix.
    """

    weights: npt.NDArray[np.float64]
    features: Tensor
    terms: Terms


@dataclass(frozen=True)
class Learned:
    """What was maximised, from where, and how it went.

    Attributes
    ----------
    scores
        `H_d / (K - 1)` of each prompt of the bank's basis, `[M]`.
    path
        The start and each step.
    """

    objective: Objective
    scores: tuple[float, ...]
    path: tuple[Step, ...]

    @property
    def best(self) -> int:
        """The step with the largest J; the first of equal ones."""
        values = [step.terms.J for step in self.path]
        return values.index(max(values))

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Of the best step, `[M, L]`."""
        return self.path[self.best].weights

    @property
    def terms(self) -> Terms:
        """Of the best step."""
        return self.path[self.best].terms

    @property
    def history(self) -> list[dict[str, Any]]:
        """`J`, `H_d`, `R` and `floor` of each step."""
        return [asdict(step.terms) for step in self.path]


def learn_weights(
    store: FeatureStore,
    task: Task,
    bank: PromptBank,
    start: int,
    *,
    lam: float,
    steps: int = STEPS,
    seed: int = 0,
    report: Progress,
) -> Learned:
    """Learn mixing weights of the bank's prompts on the training images (METHOD 5).

    Parameters
    ----------
    start
        Index of the source that the ascent begins near: the best one, see `choice.best_source`.
    lam
        `lambda`, the price of gradient conflict.
    steps
        Each is a forward and a backward pass of all training images.
    seed
        Of the common head behind R.
    """
    pixels, labels = task.train.pixels, task.train.labels
    features = basis_features(store, task, bank)
    sources = features[: len(bank.prompts)]
    alignment = align(sources, labels, len(task.classes), seed)
    objective = make_objective(store.features(pixels, None), labels, alignment, lam)
    with torch.no_grad():
        scores = tuple(float(objective.score(found)) for found in features)
    path = ascend(store, task, bank.basis_tokens, objective, start, steps, report)
    return Learned(objective, scores, path)


def ascend(
    store: FeatureStore,
    task: Task,
    tokens: Floats,
    objective: Objective,
    start: int,
    steps: int,
    report: Progress,
) -> tuple[Step, ...]:
    """Adam on `mix_logits [M, L]`, `a = softmax(mix_logits)` over the prompts of each layer.

    A step runs the images forward, takes `dJ / df` in closed form, and pulls it back to the folded
    prompt in micro-batches: `dJ / da_il = <dJ/dP[l], P_i[l]>` (METHOD 5).

    Parameters
    ----------
    tokens
        What is mixed, `[M, L, T, D]`.
    """
    count = len(objective.alignment.gram)
    basis = torch.from_numpy(tokens).double()
    mix_logits = starting_weights(len(tokens), tokens.shape[1], start).log().requires_grad_(True)
    optimizer = torch.optim.Adam([mix_logits], lr=LEARNING_RATE, betas=(0.9, 0.95))
    steps = steps if len(tokens) > 1 else 0  # a softmax of one has nothing to learn
    path = []
    for step in range(steps + 1):
        weights = mix_logits.softmax(0)
        prompt = mix(tokens, weights.detach().numpy())
        last = step == steps
        if last:
            features = store.features(task.train.pixels, prompt)
        else:
            features, pull_back = store.linearized(task.train.pixels, prompt)
        shares = _source_shares(weights, count)
        terms = objective.terms(features, shares.detach())
        path.append(Step(weights.detach().numpy(), features, terms))
        report("weights", step, max(1, steps))
        if last:
            break
        slope = torch.einsum(
            "mltd,ltd->ml", basis, pull_back(objective.feature_gradient(features)).double()
        )
        gain = (slope * weights).sum() - objective.lam * objective.alignment.conflict(shares)
        optimizer.zero_grad()
        (-gain).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    report("weights", 1, 1)
    return tuple(path)


def starting_weights(count: int, layers: int, best: int) -> Tensor:
    """`[M, L]` float64: `START_SHARE` for one prompt, the rest in equal parts for the others."""
    if count == 1:
        return torch.ones(1, layers, dtype=torch.float64)
    weights = torch.full((count, layers), (1 - START_SHARE) / (count - 1), dtype=torch.float64)
    weights[best] = START_SHARE
    return weights


def basis_features(store: FeatureStore, task: Task, bank: PromptBank) -> Tensor:
    """Features `[M, n, D]` of the training images under each prompt of the bank's basis."""
    return torch.stack([store.features(task.train.pixels, each) for each in bank.basis_tokens])


def align(features: Tensor, labels: Labels, num_classes: int, seed: int) -> Alignment:
    """Conflict of sources with features `[N, n, D]` as a function of their shares (METHOD 4)."""
    return head_alignment(features, labels, common_head(features, labels, num_classes, seed))


def uniform_weights(count: int) -> npt.NDArray[np.float64]:
    """Return the mix `[N]` that takes all sources alike."""
    return np.full(count, 1 / count)


def shares_of_sources(weights: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """Shares `[N]` of the sources among themselves, of weights `[M]` or `[M, L]` of the basis."""
    shares = source_shares(weights)[:count]
    total = float(shares.sum())
    return shares / total if total > 0 else shares


def _source_shares(weights: Tensor, count: int) -> Tensor:
    # The neutral prompt has no gradients of its own: the conflict is among the sources.
    shares = weights.mean(1)[:count]
    return shares / shares.sum()
