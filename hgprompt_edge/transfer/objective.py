"""What is maximised: transferability less conflict (METHOD eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hgprompt_edge.transfer.alignment import Alignment
from hgprompt_edge.transfer.hscore import feature_shrinkage, h_score, noise_floor
from hgprompt_edge.vit.heads import Labels


@dataclass(frozen=True)
class Terms:
    """The objective at one mix: `J = H / H_scale - lambda R`."""

    J: float
    H: float
    R: float


@dataclass(frozen=True)
class Objective:
    """J as a function of the features of a mix and of its weights; all else is held fixed.

    Attributes
    ----------
    labels
        `[n]` int64 of the training images.
    shrinkage
        `rho` of METHOD eq. 3: Ledoit-Wolf's for the features of the uniform mix.
    h_scale
        H at uniform less its noise floor.
    lam
        `lambda`, the price of the conflict.
    """

    labels: Tensor
    shrinkage: float
    h_scale: float
    alignment: Alignment
    lam: float

    def terms(self, features: Tensor, weights: Tensor) -> Terms:
        """J, H and R of features `[n, D]` of the mix with `weights [N]` (METHOD eq. 5)."""
        with torch.no_grad():
            score = float(h_score(features, self.labels, self.shrinkage))
        conflict = float(self.alignment.conflict(weights.double()))
        return Terms(score / self.h_scale - self.lam * conflict, score, conflict)

    def feature_gradient(self, features: Tensor) -> Tensor:
        """`dJ / df [n, D]` float64; R does not depend on the features of the mix."""
        with torch.enable_grad():
            leaf = features.detach().double().requires_grad_(True)
            score = h_score(leaf, self.labels, self.shrinkage) / self.h_scale
            (gradient,) = torch.autograd.grad(score, leaf)
        return gradient


def make_objective(
    uniform_features: Tensor, labels: Labels, alignment: Alignment, lam: float, seed: int = 0
) -> Objective:
    """Fix `rho` and `H_scale` by the features `[n, D]` of the uniform mix (METHOD eq. 5).

    Where the uniform mix hardly rises above its noise floor, a tenth of the floor is the scale:
    dividing by a difference that is noise would make `lambda` meaningless, or turn its sign.
    """
    y = torch.as_tensor(labels).long()
    shrinkage = feature_shrinkage(uniform_features)
    score = float(h_score(uniform_features.detach(), y, shrinkage))
    floor = noise_floor(uniform_features, y, shrinkage, seed)
    scale = max(score - floor, 0.1 * floor, 1e-12)
    return Objective(y, shrinkage, scale, alignment, lam)
