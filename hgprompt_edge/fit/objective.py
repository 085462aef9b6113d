"""What is maximised: transferability less gradient conflict (METHOD eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hgprompt_edge.fit.alignment import Alignment
from hgprompt_edge.fit.hscore import (
    classes_present,
    debiased_h_score,
    noise_floor,
    shrinkage_for,
)
from hgprompt_edge.heads.heads import Labels, standardise


@dataclass(frozen=True)
class Terms:
    """The objective at one mix: `J = H_d / (K - 1) - lambda R`, and `floor`, what `H_d` is less."""

    J: float
    H_d: float
    R: float
    floor: float


@dataclass(frozen=True)
class Objective:
    """J as a function of the features of a mix and of its weights; all else is held fixed.

    Attributes
    ----------
    labels
        `[n]` int64 of the training images.
    scale
        `[D]` float64: deviations of the features without a prompt, by which all are divided.
    shrinkage
        `rho` of METHOD eq. 3, see `shrinkage_for`.
    lam
        `lambda`, the price of the conflict.
    """

    labels: Tensor
    scale: Tensor
    shrinkage: float
    alignment: Alignment
    lam: float

    @property
    def largest(self) -> int:
        """The largest possible H-score without shrinkage: `K - 1` of the classes present."""
        return max(1, classes_present(self.labels) - 1)

    def score(self, features: Tensor) -> Tensor:
        """`H_d / (K - 1)` of features `[n, D]`: a float64 scalar, differentiable."""
        scaled = features.double() / self.scale
        return debiased_h_score(scaled, self.labels, self.shrinkage) / self.largest

    def terms(self, features: Tensor, shares: Tensor) -> Terms:
        """J, H_d, R and the floor for features `[n, D]` of a mix with source shares `[N]`."""
        with torch.no_grad():
            score = float(self.score(features))
            floor = float(noise_floor(features / self.scale, self.labels, self.shrinkage))
        conflict = float(self.alignment.conflict(shares.double()))
        return Terms(score - self.lam * conflict, score * self.largest, conflict, floor)

    def feature_gradient(self, features: Tensor) -> Tensor:
        """`dJ / df [n, D]` float64; R does not depend on the features of the mix."""
        with torch.enable_grad():
            leaf = features.detach().double().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.score(leaf), leaf)
        return gradient


def make_objective(
    unprompted: Tensor, labels: Labels, alignment: Alignment, lam: float
) -> Objective:
    """Fix scale and `rho` by the features `[n, D]` of the images without a prompt."""
    _, _, scale = standardise(unprompted.double())
    y = torch.as_tensor(labels).long()
    return Objective(y, scale.flatten(), shrinkage_for(*unprompted.shape), alignment, lam)
