"""First stage: climb J on cached features, without the ViT (METHOD 5.1).

Features of the mix are approximated by `sum_i a_i f_i`, which is exact at vertices. Their
covariance is then a quadratic form of the weights in the sources' cross-covariances, so that a
step does not depend on the number of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hgprompt_edge.transfer.hscore import class_scatter, h_score, shrunk_covariance
from hgprompt_edge.transfer.objective import Objective, Terms
from hgprompt_edge.vit.heads import Labels

LEARNING_RATE = 0.1
START_WEIGHT = 0.9
"""Weight of source `i` at the start near vertex `i`."""
MAX_VERTEX_STARTS = 32
PRUNE_AT, SURVIVORS = 20, 2
"""After so many steps only the best so many starts go on."""
PATIENCE, TOLERANCE = 20, 1e-4
"""Stop where J has risen by less than this share over so many steps."""
MAX_PRODUCTS_BYTES = 400 << 20


@dataclass(frozen=True)
class Climb:
    """Where the first stage ended.

    Attributes
    ----------
    weights
        `[N]` float64 on the simplex: the best point of all paths.
    path
        J, H and R from the start of the winning path to its best point.
    steps
        Steps taken.
    """

    weights: Tensor
    path: tuple[Terms, ...]
    steps: int


class MixedFeatures:
    """H of `sum_i a_i f_i` and its gradient, for many weights at once.

    Parameters
    ----------
    features
        `[N, n, D]` of the sources.
    labels
        `[n]`.
    shrinkage
        `rho` of METHOD eq. 3.
    """

    def __init__(self, features: Tensor, labels: Labels, shrinkage: float) -> None:
        count, n, width = features.shape
        self.count, self.width, self.shrinkage = count, width, shrinkage
        centred = features.double()
        centred = centred - centred.mean(1, keepdim=True)
        self.scatter = class_scatter(centred, labels).flatten(1)  # [N, D K]
        self.first, self.second = torch.triu_indices(count, count)
        # Cov(f_i, f_k) + Cov(f_k, f_i) for i < k, Cov(f_i, f_i): [N (N + 1) / 2, D D]
        self.products = torch.empty(len(self.first), width * width, dtype=torch.float64)
        row = 0
        for i in range(count):
            products = centred[i].T @ centred[i:] / n
            products[1:] += products[1:].mT.clone()
            self.products[row : row + count - i] = products.flatten(1)
            row += count - i

    def h_scores(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """H `[S]` and `dH / da [S, N]` at weights `[S, N]`, all float64.

        With `M = Sigma_B^(1/2)` and `X = Sigma_r^-1 M`: `dH/dM = 2 X`, `dH/dSigma_r = -X X^T`.
        """
        shape = (len(weights), self.width, -1)
        left, right = weights[:, self.first], weights[:, self.second]
        covariance = (left * right @ self.products).view(shape)
        scatter = (weights @ self.scatter).view(shape)
        factor = torch.linalg.cholesky(shrunk_covariance(covariance, self.shrinkage))
        solved = torch.cholesky_solve(scatter, factor)
        score = (scatter * solved).sum((1, 2))
        slope = (self.shrinkage - 1) * (solved @ solved.mT)
        trace = solved.square().sum((1, 2)) * (self.shrinkage / self.width)
        slope.diagonal(dim1=1, dim2=2).sub_(trace[:, None])
        pair = slope.flatten(1) @ self.products.T
        gradient = 2 * solved.flatten(1) @ self.scatter.T
        gradient.index_add_(1, self.first, pair * right)
        gradient.index_add_(1, self.second, pair * left)
        return score, gradient


class DirectMixedFeatures:
    """The same from the features themselves: slower, for sources whose products do not fit."""

    def __init__(self, features: Tensor, labels: Labels, shrinkage: float) -> None:
        self.features, self.labels, self.shrinkage = features, labels, shrinkage

    def h_scores(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """H `[S]` and `dH / da [S, N]` at weights `[S, N]`, all float64."""
        scores, gradients = [], []
        for row in weights.to(self.features):
            with torch.enable_grad():
                mixed = torch.tensordot(row, self.features, dims=1).double().requires_grad_(True)
                score = h_score(mixed, self.labels, self.shrinkage)
                (slope,) = torch.autograd.grad(score, mixed)
            scores.append(score.detach())
            gradients.append((self.features * slope.to(self.features)).sum((1, 2)).double())
        return torch.stack(scores), torch.stack(gradients)


class _Paths:
    """What each start has seen: every step's terms, and its best weights."""

    def __init__(self, starts: int, count: int) -> None:
        self.terms: list[list[Terms]] = [[] for _ in range(starts)]
        self.best = torch.full((starts,), -torch.inf, dtype=torch.float64)
        self.weights = torch.zeros(starts, count, dtype=torch.float64)

    def add(self, alive: Tensor, weights: Tensor, J: Tensor, H: Tensor, R: Tensor) -> None:
        for start, *values in zip(*(x.tolist() for x in (alive, J, H, R)), strict=True):
            self.terms[start].append(Terms(*values))
        better = self.best[alive] < J
        self.best[alive[better]] = J[better]
        self.weights[alive[better]] = weights[better]

    def result(self, steps: int) -> Climb:
        # Among starts that end equally well the first, uniform, wins.
        top = float(self.best.max())
        winner = int((self.best >= top - 1e-9 * abs(top)).nonzero()[0])
        path = self.terms[winner]
        end = max(range(len(path)), key=lambda i: path[i].J)
        return Climb(self.weights[winner], tuple(path[: end + 1]), steps)


def climb(features: Tensor, objective: Objective, steps: int) -> Climb:
    """Adam on `theta`, `a = softmax(theta)`, from uniform and from near each vertex (METHOD 5.1).

    Parameters
    ----------
    features
        `[N, n, D]` of the sources on the training images.
    steps
        At most so many.
    """
    count, _, width = features.shape
    needed = count * (count + 1) // 2 * width * width * 8
    kind = MixedFeatures if needed <= MAX_PRODUCTS_BYTES else DirectMixedFeatures
    mixed = kind(features, objective.labels, objective.shrinkage)
    theta = start_logits(count)
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    alive = torch.arange(len(theta))
    paths, record = _Paths(len(theta), count), []
    for step in range(steps + 1):
        weights = theta.softmax(1)
        H, slope = mixed.h_scores(weights)
        R = objective.alignment.conflict(weights)
        J = H / objective.h_scale - objective.lam * R
        paths.add(alive, weights, J, H, R)
        record.append(float(paths.best.max()))
        if step == steps or _settled(record):
            break
        slope = slope / objective.h_scale
        slope = slope - objective.lam * objective.alignment.gradient(weights)
        slope = weights * (slope - (weights * slope).sum(1, keepdim=True))
        mean = mean.lerp(slope, 0.1)
        square = square.lerp(slope.square(), 0.01)
        size = (square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-10
        theta = theta + LEARNING_RATE * mean / (1 - 0.9 ** (step + 1)) / size
        if step == PRUNE_AT:
            keep = J.argsort(descending=True, stable=True)[:SURVIVORS]
            alive, theta, mean, square = alive[keep], theta[keep], mean[keep], square[keep]
    return paths.result(step)


def start_logits(count: int) -> Tensor:
    """Return starts `[S, N]` float64: uniform, then near each vertex if there are not too many."""
    uniform = torch.zeros(1, count, dtype=torch.float64)
    if not 1 < count <= MAX_VERTEX_STARTS:
        return uniform
    lead = math.log(START_WEIGHT * (count - 1) / (1 - START_WEIGHT))
    return torch.cat([uniform, lead * torch.eye(count, dtype=torch.float64)])


def _settled(record: list[float]) -> bool:
    """Whether the best J has stopped rising, some time after the starts were pruned."""
    if len(record) <= PRUNE_AT + PATIENCE:
        return False
    return record[-1] - record[-1 - PATIENCE] <= TOLERANCE * abs(record[-1])
