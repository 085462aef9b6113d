"""Transferability without test data: the cross-fitted log-loss of the head that will be used.

The H-score is measured on the images that it is maximised on, and near `n = D` it rewards features
that fit them. Here each fold is scored by the closed-form head of the other folds (Bertinetto et
al. 2019 differentiate such a head through its solve). It predicts test accuracy best of the scores
that were tried (benchmarks/criteria.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.vit.heads import Labels, calibration_scale, cross_fitted_logits


@dataclass(frozen=True)
class LogLoss:
    """Log-loss in nats of an LDA on features `[n, D]`, each fold scored by the others' head.

    Attributes
    ----------
    labels
        `[n]` int64.
    num_classes
        `K`.
    shrinkage, scale
        Of the LDA, and the inverse temperature of its logits, held fixed: what differs between
        two mixes is then the features. None: Ledoit-Wolf's of each.
    seed
        Of the folds.
    """

    labels: Tensor
    num_classes: int
    shrinkage: float | None
    scale: float
    seed: int

    @classmethod
    def at(
        cls,
        features: Tensor,
        labels: Labels,
        num_classes: int,
        seed: int = 0,
        shrinkage: float | None = None,
    ) -> LogLoss:
        """Fix the temperature at the one that is best for these features `[n, D]`."""
        y = torch.as_tensor(labels).long()
        found = cross_fitted_logits(features.detach(), y, num_classes, seed, shrinkage)
        return cls(y, num_classes, shrinkage, calibration_scale(*found), seed)

    def __call__(self, features: Tensor) -> Tensor:
        """Log-loss of features `[n, D]`: a float64 scalar, differentiable."""
        logits, labels = cross_fitted_logits(
            features, self.labels, self.num_classes, self.seed, self.shrinkage
        )
        return functional.cross_entropy(logits * self.scale, labels)

    def with_gradient(self, features: Tensor) -> tuple[float, Tensor]:
        """Log-loss of features `[n, D]` and its gradient `[n, D]` float64."""
        with torch.enable_grad():
            leaf = features.detach().double().requires_grad_(True)
            value = self(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient
