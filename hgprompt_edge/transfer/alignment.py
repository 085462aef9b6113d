"""Do the sources see the same local geometry of the target? Gradient conflict (METHOD 4).

The element-wise variance of per-sample gradients is the diagonal of the Fisher information, which
approximates the Hessian (Rame et al. 2022, "Fishr"). All variants end in one quadratic form of the
weights, so that after one pass over each source a step costs `O(N^2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import features_prefix, model_input
from hgprompt_edge.vit.heads import Head, Labels, fit_lda
from hgprompt_edge.vit.passes import in_parts

PROMPT_BATCH = 16
"""Images whose gradients with respect to a whole prompt are held at once."""


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
        """`R` of weights `[..., N]` on the simplex: `[...]` float64 (METHOD eq. 4)."""
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
    """Conflict in head space (METHOD eq. 4) of the sources' features `[N, n, D]`."""
    return variance_alignment(
        torch.stack([head_gradient_moments(f, labels, head)[1].flatten() for f in features])
    )


def cosine_alignment(features: Tensor, labels: Labels, head: Head) -> Alignment:
    """Conflict as `1 - sum a_i a_k cos(g_i, g_k)` of the sources' mean gradients in head space.

    METHOD 4's minus the mean cosine, moved by one, so that it is 0 at vertices and for equal
    sources.
    """
    means = torch.stack([head_gradient_moments(f, labels, head)[0].flatten() for f in features])
    unit = functional.normalize(means, dim=1)
    gram = unit @ unit.T
    gram.fill_diagonal_(1.0)
    return Alignment(gram, 1.0)


def prompt_alignment(variances: Sequence[Tensor]) -> Alignment:
    """Conflict in prompt space, of each source's `prompt_gradient_variance [L, T, D]`."""
    return variance_alignment(torch.stack([variance.flatten() for variance in variances]).double())


def variance_alignment(variances: Tensor) -> Alignment:
    """Conflict of gradient variances `v [N, E]` float64 (METHOD eq. 4).

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
    residual = head.logits(x).softmax(1) - functional.one_hot(y, len(head.bias))
    mean = residual.T @ x / len(x)
    square = residual.square().T @ x.square() / len(x)
    return mean, (square - mean.square()).clamp(min=0)


def prompt_gradient_variance(
    backbone: Backbone,
    pixels: npt.NDArray[np.uint8],
    labels: Labels,
    tokens: npt.NDArray[np.float32] | Tensor,
    head: Head,
) -> Tensor:
    """Variance `[L, T, D]` float64 over images of `d loss / d P` at the prompt `tokens`.

    Per-sample gradients through the frozen model, vectorised over micro-batches.
    """
    y = torch.as_tensor(labels).long()

    def moments(model: VisionTransformer, part: slice) -> tuple[Tensor, Tensor]:
        like = next(model.parameters())
        prompt, weight, bias = (
            torch.as_tensor(value).to(like) for value in (tokens, head.weight, head.bias)
        )

        def loss(prompt: Tensor, image: Tensor, label: Tensor) -> Tensor:
            feature = features_prefix(model, image[None], prompt)
            return functional.cross_entropy(feature @ weight.T + bias, label[None])

        per_sample: Callable[..., Tensor] = torch.func.vmap(
            torch.func.grad(loss), in_dims=(None, 0, 0)
        )
        total = torch.zeros(prompt.shape, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for start in range(part.start, part.stop, PROMPT_BATCH):
            rows = slice(start, min(start + PROMPT_BATCH, part.stop))
            x = model_input(model, pixels[rows], backbone.preprocessing)
            gradients = per_sample(prompt, x, y[rows].to(x.device)).cpu().double()
            total += gradients.sum(0)
            squares += gradients.square().sum(0)
        return total, squares

    # Fused attention cannot be vectorised over samples on every device.
    with sdpa_kernel(SDPBackend.MATH):
        found = in_parts(backbone, len(pixels), moments)
    total, squares = (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
    mean = total / len(pixels)
    return (squares / len(pixels) - mean.square()).clamp(min=0)
