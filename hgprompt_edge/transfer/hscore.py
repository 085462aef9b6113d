"""How well features separate the classes: the H-score with a shrunk covariance (METHOD 3).

Bao et al. 2019, "An information-theoretic approach to transferability in task transfer learning";
the shrinkage is that of Ibrahim et al. 2022, "Newer is not always better". Everything is float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.vit.heads import Labels, ledoit_wolf

PERMUTATIONS = 20


def feature_shrinkage(features: Tensor) -> float:
    """Ledoit-Wolf's `rho` in [0, 1] for the covariance of features `[n, D]`.

    At least 0.01 where there are too few rows to fill the space: chance symmetries can bring the
    estimate to zero, and the covariance is singular then.
    """
    x = features.detach().double()
    n, width = x.shape
    return max(ledoit_wolf(x - x.mean(0)), 0.01 if n <= width else 0.0)


def h_score(features: Tensor, labels: Labels, shrinkage: float) -> Tensor:
    """H-score of features `[n, D]` with labels `[n]`: a float64 scalar (METHOD eq. 3).

    `tr(Sigma_r^-1 Sigma_B)`: at `rho = 0` the sum of the squared canonical correlations of
    features and classes, between 0 and `K - 1`. Differentiable with respect to the features; the
    shrinkage `rho` is a constant.
    """
    centred = _centre(features)
    scatter = class_scatter(centred, labels)
    factor = torch.linalg.cholesky(shrunk_covariance(centred.T @ centred / len(centred), shrinkage))
    whitened: Tensor = torch.linalg.solve_triangular(factor, scatter, upper=False)
    return whitened.square().sum()


def noise_floor(
    features: Tensor, labels: Labels, shrinkage: float, seed: int, permutations: int = PERMUTATIONS
) -> float:
    """Mean H-score of features `[n, D]` under `permutations` random orders of the labels `[n]`."""
    with torch.no_grad():
        centred = _centre(features)
        covariance = centred.T @ centred / len(centred)
        factor = torch.linalg.cholesky(shrunk_covariance(covariance, shrinkage))
        whitened = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
        rng = np.random.default_rng(seed)
        y = torch.as_tensor(labels).long()
        scores = [
            float(class_scatter(whitened, y[rng.permutation(len(y))]).square().sum())
            for _ in range(permutations)
        ]
    return math.fsum(scores) / permutations


def class_scatter(centred: Tensor, labels: Labels) -> Tensor:
    """Square root of the between-class covariance: `[..., D, K]` of centred rows `[..., n, D]`.

    Column `c` is `sqrt(p_c) mu_c`, so `Sigma_B` is this times its transpose.
    """
    y = torch.as_tensor(labels, device=centred.device).long()
    onehot = functional.one_hot(y).to(centred)  # [n, K]
    counts = onehot.sum(0)
    # sqrt(p_c) / n_c = 1 / sqrt(n n_c); a class without rows adds nothing.
    return centred.mT @ onehot / (len(y) * counts.clamp(min=1)).sqrt()


def shrunk_covariance(covariance: Tensor, shrinkage: float) -> Tensor:
    """`(1 - rho) Sigma + rho (tr Sigma / D) I` for covariances `[..., D, D]` (METHOD 3)."""
    width = covariance.shape[-1]
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    target = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # The last terms are rounding noise; they matter to features that are constant.
    return (1 - shrinkage) * covariance + ((shrinkage + 1e-14) * target + 1e-30) * identity


def _centre(features: Tensor) -> Tensor:
    x = features.double()
    return x - x.mean(0)
