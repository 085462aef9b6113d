"""Attention in the inference graph: its weights and prefixes, and the ways to write it.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from torch import nn

from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.rewrites import Attention, Linear, Rewrites
from hgprompt_edge.export.graph.writer import Doubles, Writer

CONTRIB = "com.microsoft"
"""Domain of onnxruntime's own operators."""
END = 2**31 - 1
"""Where a slice ends that takes all there is."""


@dataclass(frozen=True)
class Constant:
    """A folded prompt's keys and values `[H, T, d]` in one layer."""

    keys: Doubles
    values: Doubles


@dataclass(frozen=True)
class Given:
    """Keys and values that come in with the image, for one layer.

    Attributes
    ----------
    keys, values
        `[H, T, d]`, the same for all images; with `rows` `[P batch, T, D]`, each image's own.
    mask
        Added to the scores, `[N, T + N]`, with `rows` `[P batch, 1, N, T + N]`: the logarithm of
        the prompt's share, and what shuts out padding; None: the prompt has all.
    image_tokens
        With `rows` the `N` of an image; `T` is known at run time only.
    """

    keys: ir.Value
    values: ir.Value
    mask: ir.Value | None
    rows: bool = False
    image_tokens: int = 0


@dataclass(frozen=True)
class Layer:
    """The weights of one attention layer after the rewrites.

    Attributes
    ----------
    q, k, v, projection
        Linear layers `[D, D]`; the attention scale is in the queries.
    prefixes
        For each folded prompt its keys and values, constants or inputs of the graph, or None.
    q_norm, k_norm
        LayerNorms of the heads or Identities.
    scale
        What the queries are yet to be multiplied by, in `q_norm`.
    """

    heads: int
    q: Linear
    k: Linear
    v: Linear
    projection: Linear
    prefixes: tuple[Constant | Given | None, ...]
    q_norm: nn.Module
    k_norm: nn.Module
    scale: float

    @property
    def prefix(self) -> Constant | Given | None:
        """The prefix of the only folded prompt."""
        (prefix,) = self.prefixes
        return prefix


def prepare(
    block: Any,
    on: Rewrites,
    prompts: Sequence[tuple[Doubles, Doubles] | None] = (None,),
    given: Given | None = None,
) -> Layer:
    """Apply the rewrites of weights to the attention of a timm block.

    The keys and values of folded `prompts` follow the rewrites; those `given` must have done so.
    """
    attn = block.attn
    qkv = rewrites.linear_of(attn.qkv)
    if on.affine:
        qkv = rewrites.fold_affine(block.norm1, qkv)
    q, k, v = rewrites.split_qkv(qkv)
    projection = rewrites.fold_layer_scale(rewrites.linear_of(attn.proj), block.ls1)
    normed = isinstance(attn.q_norm, nn.LayerNorm), isinstance(attn.k_norm, nn.LayerNorm)
    scale = float(attn.scale)
    if not normed[0]:
        q, scale = rewrites.multiply(q, scale), 1.0
    plain, prefixes = (k, v, projection), list[Constant | Given | None]()
    for prompt in prompts:
        (k, v, projection), (keys, values) = plain, prompt or (None, None)
        if on.biases:
            v, projection, values = rewrites.move_value_bias(v, projection, values)
            if not normed[1]:
                k, keys = rewrites.drop_key_bias(k, keys)
        prefixes.append(None if keys is None or values is None else Constant(keys, values))
    if given is not None:
        prefixes = [given]
    norms = attn.q_norm, attn.k_norm
    return Layer(attn.num_heads, q, k, v, projection, tuple(prefixes), *norms, scale)


def can_absorb(layer: Layer) -> bool:
    """Whether the layer's key and value projections can be absorbed exactly."""
    normed = isinstance(layer.q_norm, nn.LayerNorm) or isinstance(layer.k_norm, nn.LayerNorm)
    return not normed and layer.k[1] is None and layer.v[1] is None


def num_tokens(prefix: Constant | Given) -> int:
    """Tokens `T` of a prefix."""
    return int(cast("tuple[int, ...]", prefix.keys.shape)[1])


def add_mask(w: Writer, name: str, prefix: Constant | Given | None, scores: ir.Value) -> ir.Value:
    """Scores `[..., T + N]` less what the prompt's share takes from its own."""
    if not isinstance(prefix, Given) or prefix.mask is None:
        return scores
    return w.op("Add", f"{name}.scores.masked", scores, prefix.mask)


def _plain(
    w: Writer, name: str, layer: Layer, q: ir.Value, k: ir.Value, v: ir.Value, batch: ir.Value
) -> ir.Value:
    """MatMul, Softmax, MatMul.

    The prefix is joined before the heads are apart: OpenVINO then takes all of it as one kernel.
    """
    k, v = _join_rows(w, name, layer, k, v, batch)
    parts = {}
    for which, x, perm in (("q", q, (0, 2, 1, 3)), ("k", k, (0, 2, 3, 1)), ("v", v, (0, 2, 1, 3))):
        x = w.reshape(f"{name}.{which}.split", x, 0, 0, layer.heads, -1)
        parts[which] = w.op("Transpose", f"{name}.{which}.heads", x, perm=perm)
    q, k, v = parts["q"], parts["k"], parts["v"]
    scores = add_mask(w, name, layer.prefix, w.op("MatMul", f"{name}.scores", q, k))
    shares = w.op("Softmax", f"{name}.softmax", scores, axis=-1)
    mixed = w.op("MatMul", f"{name}.mixed", shares, v)
    mixed = w.op("Transpose", f"{name}.mixed.tokens", mixed, perm=[0, 2, 1, 3])
    return w.reshape(f"{name}.mixed.merge", mixed, 0, 0, -1)


def _fused(
    w: Writer, name: str, layer: Layer, q: ir.Value, k: ir.Value, v: ir.Value, batch: ir.Value
) -> ir.Value:
    """Onnxruntime's MultiHeadAttention.

    The prefix is joined before the heads are apart, where it is one copy of memory: given as past
    keys and values it keeps the runtime from its flash attention.
    """
    k, v = _join_rows(w, name, layer, k, v, batch)
    return w.op(
        "MultiHeadAttention", f"{name}.fused", q, k, v,
        domain=CONTRIB, num_heads=layer.heads, scale=1.0,
    )  # fmt: skip


def _standard(
    w: Writer, name: str, layer: Layer, q: ir.Value, k: ir.Value, v: ir.Value, batch: ir.Value
) -> ir.Value:
    """Attention of opset 23.

    onnxruntime takes no past without giving it back, so the prefix is joined before.
    """
    k, v = _join_rows(w, name, layer, k, v, batch)
    return w.op("Attention", f"{name}.fused", q, k, v, *_mask(layer), **_heads(layer))


def _past(
    w: Writer, name: str, layer: Layer, q: ir.Value, k: ir.Value, v: ir.Value, batch: ir.Value
) -> ir.Value:
    """Attention of opset 23, the prefix as past keys and values: OpenVINO's fastest."""
    prefix = layer.prefix
    if prefix is None:
        return w.op("Attention", f"{name}.fused", q, k, v, **_heads(layer))
    past = [
        _past_of(w, f"{name}.prefix_{which}", layer, array, batch)
        for which, array in (("k", prefix.keys), ("v", prefix.values))
    ]
    mask = _mask(layer) or (None,)
    return w.op("Attention", f"{name}.fused", q, k, v, *mask, *past, **_heads(layer))


def _past_of(
    w: Writer, name: str, layer: Layer, given: Doubles | ir.Value, batch: ir.Value
) -> ir.Value:
    """Keys or values of the prefix as `[batch, H, T, d]`."""
    if isinstance(given, np.ndarray):
        return w.repeat(name, given[None], batch)
    if isinstance(layer.prefix, Given) and layer.prefix.rows:
        x = w.reshape(f"{name}.heads", given, 0, 0, layer.heads, -1)
        return w.op("Transpose", f"{name}.past", x, perm=[0, 2, 1, 3])
    return w.repeat_value(name, given, batch)


def _mask(layer: Layer) -> tuple[ir.Value, ...]:
    prefix = layer.prefix
    return () if not isinstance(prefix, Given) or prefix.mask is None else (prefix.mask,)


def _heads(layer: Layer) -> dict[str, Any]:
    return {"scale": 1.0, "q_num_heads": layer.heads, "kv_num_heads": layer.heads}


def _join_rows(
    w: Writer, name: str, layer: Layer, k: ir.Value, v: ir.Value, batch: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Prefix before the keys and values `[batch, N, D]`."""
    if layer.prefix is None:
        return k, v
    joined = []
    for which, x, given in (("k", k, layer.prefix.keys), ("v", v, layer.prefix.values)):
        rows = _rows(w, f"{name}.prefix_{which}", layer, given, batch)
        joined.append(w.op("Concat", f"{name}.{which}.prefixed", rows, x, axis=1))
    return joined[0], joined[1]


def _rows(
    w: Writer, name: str, layer: Layer, given: Doubles | ir.Value, batch: ir.Value
) -> ir.Value:
    """Keys or values of the prefix as rows of all heads, for each image: `[batch, T, D]`."""
    if isinstance(given, np.ndarray):
        rows = given.transpose(1, 0, 2).reshape(given.shape[1], -1)
        return w.repeat(name, rows[None], batch)
    if isinstance(layer.prefix, Given) and layer.prefix.rows:
        return given
    x = w.op("Transpose", f"{name}.rows", given, perm=[1, 0, 2])
    return w.repeat_value(name, w.reshape(f"{name}.merge", x, 0, -1), batch)


WAYS = {
    Attention.PLAIN: _plain,
    Attention.FUSED: _fused,
    Attention.STANDARD: _standard,
    Attention.PAST: _past,
}
