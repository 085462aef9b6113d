"""Do the sources see the same local geometry of the target? Gradient conflict (METHOD 4).

The element-wise variance of per-sample gradients is the diagonal of the Fisher information, which
approximates the Hessian (Rame et al. 2022, "Fishr"). It is a quadratic form of the weights, so that
after one pass over each source a step costs `O(N^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.heads import Labels, fit_lda, logits_of
from hgprompt_edge.maths.head import Head


@dataclass(frozen=True)
class Alignment:
    """The conflict of a mix as a quadratic form, `R(a) = (a . diag M - a^T M a) / scale`.

    Attributes
    ----------
    gram
        `M [N, N]` float64.
    scale
        What `R` is measured in; 0 where all sources agree, and `R` is then 0 for any mix.
    """

    gram: Tensor
    scale: float

    def conflict(self, weights: Tensor) -> Tensor:
        """`R` of weights `[..., N]` on the simplex: `[...]` float64 (METHOD eq. 5)."""
        if self.scale == 0:
            return weights.new_zeros(weights.shape[:-1])
        spread = weights @ self.gram.diagonal() - (weights @ self.gram * weights).sum(-1)
        return spread / self.scale

    def gradient(self, weights: Tensor) -> Tensor:
        """Gradient of `R` with respect to weights `[..., N]`, as if they were free."""
        if self.scale == 0:
            return torch.zeros_like(weights)
        return (self.gram.diagonal() - 2 * weights @ self.gram) / self.scale


def common_head(features: Tensor, labels: Labels, num_classes: int, seed: int = 0) -> Head:
    """One linear head for all sources: LDA on their features `[N, n, D]` together."""
    y = torch.as_tensor(labels).long().repeat(len(features))
    return fit_lda(features.flatten(0, 1), y, num_classes, seed)


def head_alignment(features: Tensor, labels: Labels, head: Head) -> Alignment:
    """Conflict in head space (METHOD eq. 5) of the sources' features `[N, n, D]`."""
    return variance_alignment(
        torch.stack([head_gradient_moments(f, labels, head)[1].flatten() for f in features])
    )


def variance_alignment(variances: Tensor) -> Alignment:
    """Conflict of gradient variances `v [N, E]` float64 (METHOD eq. 5).

    The spread around the mix does not change when all `v_i` move together, so they are centred
    first: their differences may be small beside themselves. At uniform weights `R` is 1.
    """
    centred = variances - variances.mean(0)
    gram = centred @ centred.T
    scale = float(gram.diagonal().mean())
    rounding = 1e-24 * float(variances.square().sum(1).mean())
    return Alignment(gram, scale if scale > rounding else 0.0)


def head_gradient_moments(features: Tensor, labels: Labels, head: Head) -> tuple[Tensor, Tensor]:
    """Mean and variance `[K, D]` of the per-sample gradients with respect to a head's weight.

    The gradient of sample `j` is `r_j (x) f_j` with `r_j = softmax(h(f_j)) - y_j`. Both moments
    are matrix products, so `[n, K, D]` is never formed: `E[(r_k f_d)^2] = (r^2)^T f^2 / n`.
    """
    x = features.detach().double()
    y = torch.as_tensor(labels, device=x.device).long()
    residual = logits_of(head, x).softmax(1) - functional.one_hot(y, len(head.bias))
    mean = residual.T @ x / len(x)
    square = residual.square().T @ x.square() / len(x)
    return mean, (square - mean.square()).clamp(min=0)
