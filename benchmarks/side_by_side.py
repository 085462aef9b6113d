"""The alternative to averaging: all sources' tokens as one prefix, `log a_i` on their scores.

Exact at one-hot weights, and no token of one source has to correspond to a token of another; but
the prefix is `N` times as long. Deep prompts and class-token pooling only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import normalize, pool, prepare_tokens, project_prefix
from hgprompt_edge.backbones.passes import model_of
from hgprompt_edge.features.cached import FeatureStore

MICRO_BATCH = 32


class SideBySide:
    """Features under the sources `tokens [N, L, T, D]` side by side, for any weights."""

    def __init__(self, backbone: Backbone, tokens: npt.NDArray[np.float32]) -> None:
        self.backbone, self.model = backbone, model_of(backbone)
        self.tokens_each = tokens.shape[2]
        pairs = [project_prefix(self.model, torch.from_numpy(source)) for source in tokens]
        self.keys = [
            torch.cat([pair[layer][0] for pair in pairs], 1) for layer in range(len(pairs[0]))
        ]
        self.values = [
            torch.cat([pair[layer][1] for pair in pairs], 1) for layer in range(len(pairs[0]))
        ]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Features `[n, D]` of images `[n, 3, S, S]` with `weights [N]`, differentiable in them."""
        x = prepare_tokens(self.model, x)
        bias = weights.clamp(min=1e-30).log().repeat_interleave(self.tokens_each)  # [N T]
        bias = functional.pad(bias, (0, x.shape[1])).to(x.dtype)
        for block, k, v in zip(self.model.blocks, self.keys, self.values, strict=True):
            x = _block(block, x, k, v, bias)
        return pool(self.model, x, 0).float()

    def features(self, pixels: npt.NDArray[np.uint8], weights: Tensor) -> Tensor:
        """Features `[n, D]` of pixels `[n, S, S, 3]`, without gradients."""
        with torch.inference_mode():
            return torch.cat([self.forward(x, weights) for x in self._batches(pixels)]).clone()

    def pull_back(
        self, pixels: npt.NDArray[np.uint8], weights: Tensor, cotangent: Tensor
    ) -> Tensor:
        """Gradient `[N]` with respect to the weights, for one `[n, D]` of the features."""
        total = torch.zeros(len(weights), dtype=torch.float64)
        for x, slope in zip(self._batches(pixels), cotangent.split(MICRO_BATCH), strict=True):
            leaf = weights.detach().clone().requires_grad_()
            product = (self.forward(x, leaf) * slope.float()).sum()
            total += torch.autograd.grad(product, leaf)[0].double()
        return total

    def _batches(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        dtype = next(self.model.parameters()).dtype
        x = normalize(torch.from_numpy(np.array(pixels)), self.backbone.preprocessing)
        return list(x.to(dtype).split(MICRO_BATCH))


class SideBySideStore(FeatureStore):
    """A store whose features are those of one fixed side-by-side prefix, for a judge to judge."""

    def __init__(self, both: SideBySide, weights: Tensor) -> None:
        super().__init__(both.backbone, enabled=False)
        self.both, self.weights = both, weights

    def features(self, pixels: npt.NDArray[np.uint8], tokens: Any) -> Tensor:  # noqa: ARG002
        """Features `[n, D]`, whatever the `tokens`: the prefix is fixed."""
        return self.cached(
            ("side by side", self._digest(pixels)),
            (len(pixels), self.backbone.embed_dim),
            lambda: self.both.features(pixels, self.weights),
        )


def _block(block: Any, x: Tensor, prefix_k: Tensor, prefix_v: Tensor, bias: Tensor) -> Tensor:
    attn = block.attn
    qkv = attn.qkv(block.norm1(x)).reshape(*x.shape[:2], 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    k = torch.cat([prefix_k.expand(len(x), -1, -1, -1), k], dim=2)
    v = torch.cat([prefix_v.expand(len(x), -1, -1, -1), v], dim=2)
    shares = ((q * attn.scale) @ k.transpose(-2, -1) + bias).softmax(-1)
    x = x + block.ls1(attn.proj((shares @ v).transpose(1, 2).flatten(2)))
    return x + block.ls2(block.mlp(block.norm2(x)))
