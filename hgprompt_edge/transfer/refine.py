"""Second stage: exact steps of J through the ViT, in two passes (METHOD 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.prompts import mix
from hgprompt_edge.transfer.features import FeatureStore, Pixels
from hgprompt_edge.transfer.hscore import h_score
from hgprompt_edge.transfer.objective import Objective, Terms

FIRST_STEP = 1.0
"""Largest change of a logit in the first step."""
HALVINGS = 3
INTERIOR = 0.02
"""Share of uniform that a step mixes in: at a vertex no other source could gain weight."""


@dataclass(frozen=True)
class Refined:
    """Where the second stage ended.

    Attributes
    ----------
    weights
        `[N]` float64.
    features
        `[n, D]` float32 of the mix, exact.
    path
        J, H and R at the start and after each step that was taken.
    """

    weights: Tensor
    features: Tensor
    path: tuple[Terms, ...]

    @property
    def steps(self) -> int:
        """Steps that raised J."""
        return len(self.path) - 1


class ExactObjective:
    """J of the mix itself: its prompt is folded and runs through the ViT.

    Parameters
    ----------
    tokens
        The sources, `[N, L, T, D]`.
    pixels
        Training images `[n, S, S, 3]`.
    """

    def __init__(
        self,
        store: FeatureStore,
        pixels: Pixels,
        tokens: npt.NDArray[np.float32],
        objective: Objective,
    ) -> None:
        self.store, self.pixels, self.tokens = store, pixels, tokens
        self.objective = objective

    def evaluate(self, weights: Tensor) -> tuple[Tensor, Terms]:
        """Pass one: features `[n, D]` of the mix with `weights [N]`, and its terms."""
        features = self.store.features(self.pixels, mix(self.tokens, weights.numpy()))
        return features, self.objective.terms(features, weights)

    def gradient(self, weights: Tensor, features: Tensor) -> Tensor:
        """Pass two: `dJ / da [N]` float64 at the mix whose features are known.

        `dJ / da_i = <dJ/dP, P_i> - lambda dR / da_i`.
        """
        prompt = mix(self.tokens, weights.numpy())
        slope = self.objective.feature_gradient(features)
        pulled = self.store.pull_back(self.pixels, prompt, slope).double()
        inner = torch.from_numpy(self.tokens).double().flatten(1) @ pulled.flatten()
        conflict = self.objective.alignment.gradient(weights.double())
        return inner - self.objective.lam * conflict


def refine(
    exact: ExactObjective,
    candidates: list[Tensor],
    steps: int,
    report: Callable[[int, int], None] | None = None,
) -> Refined:
    """Climb the exact J from the best of the `candidates`, weights `[N]` each.

    The first stage sees an approximation, so its result has to beat the others in truth. A step
    moves `theta = log a` along `dJ / da`, less its mean under `a`, scaled so that the largest
    entry is the step's size; one that does not raise J is halved, then dropped.
    """
    weights, (features, terms) = _best(exact, candidates)
    path, size = [terms], FIRST_STEP
    for step in range(steps):
        slope = exact.gradient(weights, features)
        slope = slope - weights @ slope
        largest = float(slope.abs().max())
        if largest == 0:
            break
        taken = False
        for _ in range(HALVINGS + 1):
            moved = _step(weights, size / largest * slope)
            new_features, new_terms = exact.evaluate(moved)
            if new_terms.J > terms.J:
                weights, features, terms = moved, new_features, new_terms
                path.append(terms)
                taken = True
                break
            size /= 2
        if report is not None:
            report(step + 1, steps)
        if not taken:
            break
    if report is not None and steps:
        report(steps, steps)
    return Refined(weights, features, tuple(path))


def starting_points(features: Tensor, objective: Objective, cached: Tensor) -> list[Tensor]:
    """Weights `[N]` that the exact stage may start from: uniform, `cached`, the best source.

    `features [N, n, D]` of the sources are exact at vertices, so finding the best costs no pass;
    `cached` is where the first stage ended.
    """
    count = len(features)
    labels, shrinkage = objective.labels, objective.shrinkage
    scores = torch.stack([h_score(source, labels, shrinkage) for source in features])
    vertex = torch.zeros(count, dtype=torch.float64)
    vertex[scores.argmax()] = 1.0
    return [torch.full((count,), 1 / count, dtype=torch.float64), cached, vertex]


def _best(exact: ExactObjective, candidates: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Terms]]:
    """Find the candidate with the largest J; the first of equal ones."""
    found = [exact.evaluate(weights) for weights in candidates]
    values = [terms.J for _, terms in found]
    top = max(values)
    first = next(i for i, value in enumerate(values) if value >= top - 1e-9 * abs(top))
    return candidates[first], found[first]


def _step(weights: Tensor, change: Tensor) -> Tensor:
    inside = (1 - INTERIOR) * weights + INTERIOR / len(weights)
    return (inside.log() + change).softmax(0)
