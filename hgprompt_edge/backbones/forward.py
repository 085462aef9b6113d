"""The prompted forward pass of a plain vision transformer, in two forms that are equal.

Token form is the definition (VPT): prompt tokens stand in the sequence. Prefix form computes the
same features from the constant keys and values that a deep prompt offers to each block.

All functions take `Backbone.model` and work in its dtype. `n` images, `N` tokens of an image
(class token, registers, patches), `L` layers of `T` prompt tokens, width `D`, `H` heads of
width `d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.passes import in_parts
from hgprompt_edge.images.preprocess import Preprocessing

Prefix = tuple[Tensor, Tensor]


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels `[n, S, S, 3]` uint8 to model input `[n, 3, S, S]` float32."""
    mean = torch.tensor(preprocessing.mean, device=images.device)
    std = torch.tensor(preprocessing.std, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def model_input(
    model: VisionTransformer, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing
) -> Tensor:
    """Pixels `[n, S, S, 3]` to input `[n, 3, S, S]` on the model's device, in its precision."""
    like = next(model.parameters())
    images = torch.from_numpy(np.array(pixels)).to(like.device)
    return normalize(images, preprocessing).to(like.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: `q [n, H, N, d]`, `k` and `v [n, H, M, d]` to `[n, H, N, d]`.

    A `mask [M]` is added to the scores.

    Written out where a gradient will be asked for, or outside float32: on CPUs the backward pass
    of the fused kernel is no faster in float32 and several times slower in bfloat16. The fused
    forward pass in float32 is up to twice as fast and never holds the `[N, M]` scores; on CUDA it
    is faster in every case.
    """
    if q.is_cuda:
        bias = None if mask is None else mask.expand(q.shape[2], -1)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == torch.float32 and not needs_grad and mask is None:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ v


def prepare_tokens(model: VisionTransformer, x: Tensor) -> Tensor:
    """Input `[n, 3, S, S]` to the sequence `[n, N, D]` that enters block 0, without a prompt."""
    x = model.patch_embed(x.to(model.patch_embed.proj.weight.dtype))
    tokens: Tensor = model.norm_pre(model._pos_embed(x))
    return tokens


def pool(model: VisionTransformer, x: Tensor, num_prompt_tokens: int) -> Tensor:
    """Sequence `[n, N + T, D]` after the last block to features `[n, D]`, `[n, 2 D]` for both.

    The class token, the average of the patches, or one behind the other, after the last norm. The
    prompt stands behind the class token and registers and takes no part in an average.
    """
    start = int(model.num_prefix_tokens)
    if num_prompt_tokens:
        x = torch.cat([x[:, :start], x[:, start + num_prompt_tokens :]], dim=1)
    x = model.norm(x)
    return torch.cat([model.fc_norm(part) for part in _pooled(model, x)], dim=1)


def _pooled(model: VisionTransformer, x: Tensor) -> list[Tensor]:
    """Class token or average of the patches `[n, D]` of a sequence `[n, N, D]`, or both."""
    pooling = str(model.global_pool)
    kinds = ("token", "avg") if pooling == "both" else (pooling,)
    return [model.pool(x, kind) for kind in kinds]


def features_token(model: VisionTransformer, x: Tensor, prompt: Tensor | None) -> Tensor:
    """Features `[n, D]` of images `[n, 3, S, S]` in token form, the definition (METHOD 2).

    `prompt [L, T, D]`: with `L` the depth, the outputs at prompt positions of block `l` give way
    to `prompt[l + 1]` (deep); with `L = 1` they are carried on (shallow). None: no prompt.
    """
    x = prepare_tokens(model, x)
    if prompt is None:
        return pool(model, run_blocks(model, x, None), 0)
    prompt = _checked(model, prompt).to(x.dtype)
    tokens = prompt.shape[1]
    start = int(model.num_prefix_tokens)
    head, patches = x[:, :start], x[:, start:]
    for layer, block in enumerate(model.blocks):
        if layer < len(prompt):
            inserted = prompt[layer].expand(len(x), -1, -1)
            x = torch.cat([head, inserted, patches], dim=1)
        x = _apply_block(block, x)
        head, patches = x[:, :start], x[:, start + tokens :]
    return pool(model, x, tokens)


def project_prefix(model: VisionTransformer, prompt: Tensor) -> list[Prefix]:
    """Keys and values that a prompt `[L, T, D]` offers: per layer `(K, V)`, each `[H, T, d]`.

    `K_l = LN_l(P[l]) W_k + b_k`, then the key norm where there is one; `V_l` alike (METHOD 2).
    A shallow prompt yields the pair of block 0 alone.
    """
    prompt = prompt.to(model.patch_embed.proj.weight.dtype)
    pairs = []
    for block, layer in zip(model.blocks, prompt, strict=False):
        b: Any = block
        _, k, v = _project(b.attn, b.norm1(layer[None]), query_rows=0)
        pairs.append((k[0], v[0]))
    return pairs


def features_prefix(
    model: VisionTransformer,
    x: Tensor,
    prompt: Tensor | None,
    share: Tensor | None = None,
) -> Tensor:
    """Features `[n, D]` of images `[n, 3, S, S]`, equal to `features_token` and faster.

    A deep prompt enters as constant keys and values. A shallow one, whose tokens the image
    transforms, keeps its tokens. With class-token pooling the last block computes the class
    token's row alone. Differentiable with respect to `prompt [L, T, D]`.

    A deep prompt may have a `share` in (0, 1], whose logarithm is added to its scores: 1 is the
    prompt, and towards 0 the model without one.
    """
    x = prepare_tokens(model, x)
    if prompt is None:
        return pool(model, run_blocks(model, x, None), 0)
    prompt = _checked(model, prompt)
    if len(prompt) == len(model.blocks):
        prefix = project_prefix(model, prompt)
        mask = None
        if share is not None:
            mask = torch.cat([share.log().expand(prompt.shape[1]), share.new_zeros(x.shape[1])])
        return pool(model, run_blocks(model, x, prefix, mask), 0)
    start = int(model.num_prefix_tokens)
    inserted = prompt[0].to(x.dtype).expand(len(x), -1, -1)
    x = run_blocks(model, torch.cat([x[:, :start], inserted, x[:, start:]], dim=1), None)
    return pool(model, x, prompt.shape[1])


def block_rows(model: VisionTransformer, x: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features `[n, D]` as of `features_prefix`, and what is pooled after each block `[n, L, D]`.

    The latter is the class token's row, the average of the patches, or both, as the features are,
    before any final norm. For no prompt or a deep one `[L, T, D]`.
    """
    x = prepare_tokens(model, x)
    prefix = None if prompt is None else project_prefix(model, _checked(model, prompt))
    if prefix is not None and len(prefix) != len(model.blocks):
        raise ValueError("The 'prompt' must be deep. Got a shallow one instead.")
    rows = []
    for layer in range(len(model.blocks)):
        x = _run_block(model, x, layer, prefix)
        rows.append(torch.cat(_pooled(model, x), dim=1))
    return pool(model, x, 0), torch.stack(rows, dim=1)


def extract_features(
    backbone: Backbone,
    pixels: npt.NDArray[np.uint8],
    prompt: npt.NDArray[np.float32] | Tensor | None,
) -> Tensor:
    """Features `[n, D]` float32 of pixels `[n, S, S, 3]`, in parts and without gradients."""
    tokens = None if prompt is None else torch.as_tensor(prompt)

    def features(model: VisionTransformer, part: slice) -> Tensor:
        with torch.inference_mode():
            x = model_input(model, pixels[part], backbone.preprocessing)
            return features_prefix(model, x, None if tokens is None else tokens.to(x)).float().cpu()

    if not len(pixels):
        return torch.empty(0, backbone.feature_dim)
    return torch.cat(in_parts(backbone, len(pixels), features))


def _checked(model: VisionTransformer, prompt: Tensor) -> Tensor:
    depth, width = len(model.blocks), int(model.embed_dim)
    if prompt.ndim != 3 or prompt.shape[0] not in (1, depth) or prompt.shape[2] != width:
        raise ValueError(
            f"The 'prompt' must have shape [{depth}, T, {width}] (deep) or [1, T, {width}] "
            f"(shallow). Got {list(prompt.shape)} instead."
        )
    return prompt


def run_blocks(
    model: VisionTransformer,
    x: Tensor,
    prefix: Sequence[Prefix] | None,
    mask: Tensor | None = None,
) -> Tensor:
    """All blocks; `[n, 1, D]`, the class token alone, where that is what is pooled."""
    for layer in range(len(model.blocks)):
        x = _run_block(model, x, layer, prefix, mask)
    return x


def _run_block(
    model: VisionTransformer,
    x: Tensor,
    layer: int,
    prefix: Sequence[Prefix] | None,
    mask: Tensor | None = None,
) -> Tensor:
    """One block; in the last one the class token's row alone, where that is what is pooled."""
    last = layer == len(model.blocks) - 1
    rows = 1 if last and model.global_pool == "token" else None
    pair = None if prefix is None else prefix[layer]
    return _apply_block(model.blocks[layer], x, pair, rows, mask)


def _apply_block(
    block: nn.Module,
    x: Tensor,
    prefix: Prefix | None = None,
    rows: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """One block on `x [n, N, D]`; `rows`: compute the first so many tokens only."""
    b: Any = block
    q, k, v = _project(b.attn, b.norm1(x), rows)
    if prefix is not None:
        k = torch.cat([prefix[0].expand(len(x), -1, -1, -1), k], dim=2)
        v = torch.cat([prefix[1].expand(len(x), -1, -1, -1), v], dim=2)
    mixed = attention(q, k, v, b.attn.scale, mask).transpose(1, 2).flatten(2)
    x = x[:, :rows] + b.ls1(b.attn.proj(mixed))
    return x + cast("Tensor", b.ls2(b.mlp(b.norm2(x))))


def _project(attn: Any, z: Tensor, query_rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Project `z [n, N, D]` to queries, keys and values `[n, H, *, d]`, after the qk norms.

    Queries are formed of the first `query_rows` tokens alone (None: of all).
    """
    heads, weight, bias = attn.num_heads, attn.qkv.weight, attn.qkv.bias
    width = weight.shape[0] // 3
    if query_rows is None:
        qkv = functional.linear(z, weight, bias)
        q, k, v = qkv.reshape(*z.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    else:
        bias_q, bias_kv = (None, None) if bias is None else (bias[:width], bias[width:])
        q = functional.linear(z[:, :query_rows], weight[:width], bias_q)
        q = q.reshape(*q.shape[:2], heads, width // heads).transpose(1, 2)
        kv = functional.linear(z, weight[width:], bias_kv)
        k, v = kv.reshape(*z.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4)
    return attn.q_norm(q), attn.k_norm(k), v
