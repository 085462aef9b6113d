"""How well features separate the classes: the H-score less its own noise floor (METHOD 3).

Bao et al. 2019, "An information-theoretic approach to transferability in task transfer learning";
the shrinkage is that of Ibrahim et al. 2022, "Newer is not always better". Everything is float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.heads import Labels

IMAGES_PER_DIRECTION = 20
"""As many images for each feature halve the shrinkage, see `shrinkage_for`."""


def shrinkage_for(images: int, width: int) -> float:
    """`rho` of METHOD eq. 3 for so many images and features: `D / (D + 20 n)`.

    It looks at no label and at no prompt, so that it is the same for all that are compared:
    0.05 for 400 images of 384 features, more for fewer. A shrinkage of its own for each candidate,
    such as Ledoit-Wolf's, lets one win by that rather than by its features.
    """
    return width / (width + IMAGES_PER_DIRECTION * images)


def h_score(features: Tensor, labels: Labels, shrinkage: float) -> Tensor:
    """H-score of features `[n, D]` with labels `[n]`: a float64 scalar (METHOD eq. 3).

    `tr(Sigma_r^-1 Sigma_B)`: at `rho = 0` the sum of the squared canonical correlations of
    features and classes, between 0 and `K - 1`. Differentiable with respect to the features; the
    shrinkage `rho` is a constant.
    """
    centred = _centre(features)
    scatter = class_scatter(centred, labels)
    factor = torch.linalg.cholesky(shrunk_covariance(_covariance(centred), shrinkage))
    whitened: Tensor = torch.linalg.solve_triangular(factor, scatter, upper=False)
    return whitened.square().sum()


def noise_floor(features: Tensor, labels: Labels, shrinkage: float) -> Tensor:
    """Mean H-score of features `[n, D]` over all orders of the labels `[n]`, in closed form.

    `(K - 1) / (n - 1) tr(Sigma_r^-1 Sigma)`, `K` the classes present (METHOD 3). Differentiable.
    """
    covariance = _covariance(_centre(features))
    factor = torch.linalg.cholesky(shrunk_covariance(covariance, shrinkage))
    trace = torch.cholesky_solve(covariance, factor).diagonal().sum()
    return _floor_share(labels) * trace


def debiased_h_score(features: Tensor, labels: Labels, shrinkage: float) -> Tensor:
    """H-score of features `[n, D]` with labels `[n]` less its noise floor: a float64 scalar.

    `H_d = tr(Sigma_r^-1 (Sigma_B - (K - 1) / (n - 1) Sigma))` (METHOD eq. 4): its mean over all
    orders of the labels is zero, so that features which fill more directions gain nothing by that.
    Differentiable with respect to the features.
    """
    centred = _centre(features)
    scatter = class_scatter(centred, labels)
    covariance = _covariance(centred)
    factor = torch.linalg.cholesky(shrunk_covariance(covariance, shrinkage))
    whitened = torch.linalg.solve_triangular(factor, scatter, upper=False)
    trace = torch.cholesky_solve(covariance, factor).diagonal().sum()
    score: Tensor = whitened.square().sum() - _floor_share(labels) * trace
    return score


def classes_present(labels: Labels) -> int:
    """How many classes have a row."""
    return len(np.unique(np.asarray(labels)))


def class_scatter(centred: Tensor, labels: Labels) -> Tensor:
    """Square root of the between-class covariance: `[D, K]` of centred rows `[n, D]`.

    Column `c` is `sqrt(p_c) mu_c`, so `Sigma_B` is this times its transpose.
    """
    y = torch.as_tensor(labels, device=centred.device).long()
    onehot = functional.one_hot(y).to(centred)  # [n, K]
    counts = onehot.sum(0)
    # sqrt(p_c) / n_c = 1 / sqrt(n n_c); a class without rows adds nothing.
    return centred.mT @ onehot / (len(y) * counts.clamp(min=1)).sqrt()


def shrunk_covariance(covariance: Tensor, shrinkage: float) -> Tensor:
    """`(1 - rho) Sigma + rho (tr Sigma / D) I` for a covariance `[D, D]` (METHOD 3)."""
    width = covariance.shape[-1]
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    target = covariance.diagonal().mean()
    # The last terms are rounding noise; they matter to features that are constant.
    return (1 - shrinkage) * covariance + ((shrinkage + 1e-14) * target + 1e-30) * identity


def _floor_share(labels: Labels) -> float:
    return (classes_present(labels) - 1) / max(1, len(labels) - 1)


def _covariance(centred: Tensor) -> Tensor:
    return centred.T @ centred / len(centred)


def _centre(features: Tensor) -> Tensor:
    x = features.double()
    return x - x.mean(0)
