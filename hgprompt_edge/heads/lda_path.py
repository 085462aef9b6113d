"""LDA heads of every shrinkage from one eigendecomposition, at about the price of one head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.heads import (
    Labels,
    as_labels,
    ledoit_wolf_shrinkage,
    row_space,
    standardise,
)


class LdaPath:
    """The heads that `heads.lda` would fit on the same rows, whatever the shrinkage.

    In the eigenvectors of the within-class covariance `S` of the standardised features the shrunk
    covariance `(1 - rho) S + rho (tr S / D) I` is diagonal for every `rho`, so that a head costs
    a division. Friedman (1989), "Regularized Discriminant Analysis".

    Parameters
    ----------
    features
        `[n, D]`.
    labels
        `[n]`.

    Attributes
    ----------
    ledoit_wolf
        The shrinkage that `heads.lda` takes where none is given.
    """

    def __init__(self, features: Tensor, labels: Labels, num_classes: int) -> None:
        x, y = features.detach().double(), as_labels(labels, features)
        z, self._mean, self._std = standardise(x)
        onehot = functional.one_hot(y, num_classes).to(z)  # [n, K]
        counts = onehot.sum(0)
        means = onehot.T @ z / counts.clamp(min=1)[:, None]  # [K, D]
        residuals = z - means[y]
        basis = row_space(z)  # [D, R]
        within = residuals @ basis
        variance, axes = torch.linalg.eigh(within.T @ within / len(z))
        self._variance = variance.clamp(min=0)  # [R]
        self._target = residuals.square().sum() / residuals.numel()
        self.ledoit_wolf = ledoit_wolf_shrinkage(
            residuals, int((counts > 0).sum()), self._target, self._variance.square().sum()
        )
        if float(self._target) < 1e-12:  # no class varies: the nearest mean wins
            self._variance, self._target = torch.ones_like(variance), torch.ones_like(self._target)
        self._axes = basis @ axes  # [D, R]
        self._means = means @ self._axes  # [K, R]
        self._prior = counts.clamp(min=1).log() - np.log(len(z))

    def project(self, features: Tensor) -> Tensor:
        """Rows `[m, D]` in the eigenvectors, `[m, R]` float64, for `logits`."""
        z = (features.detach().double() - self._mean) / self._std
        projected: Tensor = z @ self._axes
        return projected

    def logits(self, projected: Tensor, shrinkages: Sequence[float | None]) -> Tensor:
        """Logits `[S, m, K]` of projected rows `[m, R]`; None: Ledoit-Wolf's shrinkage.

        Not calibrated; classes without rows are not sunk.
        """
        values = [self.ledoit_wolf if rho is None else rho for rho in shrinkages]
        rho = torch.tensor(values, dtype=torch.float64)[:, None, None]
        weight = self._means / ((1 - rho) * self._variance + (rho + 1e-14) * self._target)
        bias = self._prior - 0.5 * (weight * self._means).sum(-1)  # [S, K]
        logits: Tensor = projected @ weight.mT + bias[:, None]
        return logits
