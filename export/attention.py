"""Attention in the inference graph: projections, prefix, and three ways to write it.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from torch import nn

from hgprompt_edge.export import rewrites
from hgprompt_edge.export.rewrites import Attention, Linear, Rewrites
from hgprompt_edge.export.writer import Doubles, Writer

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
    """Keys and values `[H, T, d]` that come in with the image, for one layer.

    Attributes
    ----------
    mask
        `[N, T + N]`, added to the scores: the logarithm of the prompt's share; None: it has all.
    """

    keys: ir.Value
    values: ir.Value
    mask: ir.Value | None


@dataclass(frozen=True)
class Layer:
    """The weights of one attention layer after the rewrites.

    Attributes
    ----------
    q, k, v, projection
        Linear layers `[D, D]`; the attention scale is in the queries.
    prefix
        Keys and values of a deep prompt, constants or inputs of the graph, or None.
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
    prefix: Constant | Given | None
    q_norm: nn.Module
    k_norm: nn.Module
    scale: float


def prepare(
    block: Any, prefix: tuple[Doubles, Doubles] | None, on: Rewrites, given: Given | None = None
) -> Layer:
    """Apply the rewrites of weights to the attention of a timm block.

    A prefix of arrays follows the rewrites; one that is `given` must have done so.
    """
    attn = block.attn
    qkv = rewrites.linear_of(attn.qkv)
    if on.affine:
        qkv = rewrites.fold_affine(block.norm1, qkv)
    q, k, v = rewrites.split_qkv(qkv)
    projection = rewrites.fold_layer_scale(rewrites.linear_of(attn.proj), block.ls1)
    keys, values = prefix or (None, None)
    normed = isinstance(attn.q_norm, nn.LayerNorm), isinstance(attn.k_norm, nn.LayerNorm)
    scale = float(attn.scale)
    if not normed[0]:
        q, scale = rewrites.multiply(q, scale), 1.0
    if on.biases:
        v, projection, values = rewrites.move_value_bias(v, projection, values)
        if not normed[1]:
            k, keys = rewrites.drop_key_bias(k, keys)
    constant = None if keys is None or values is None else Constant(keys, values)
    return Layer(
        attn.num_heads, q, k, v, projection, given or constant, attn.q_norm, attn.k_norm, scale
    )


def can_absorb(layer: Layer) -> bool:
    """Whether the layer's key and value projections can be absorbed exactly."""
    normed = isinstance(layer.q_norm, nn.LayerNorm) or isinstance(layer.k_norm, nn.LayerNorm)
    return not normed and layer.k[1] is None and layer.v[1] is None


def attend(
    w: Writer,
    name: str,
    layer: Layer,
    z: ir.Value,
    queries: ir.Value,
    batch: ir.Value,
    on: Rewrites,
) -> ir.Value:
    """Attention of `queries [batch, rows, D]` over `z [batch, N, D]` and the prefix."""
    q, k, v = _project(w, name, layer, z, queries, on)
    if queries is not z:
        layer = replace(layer, prefix=_one_row(w, name, layer.prefix))
    write = WAYS[on.attention]
    return w.linear(f"{name}.proj", write(w, name, layer, q, k, v, batch), *layer.projection)


def attend_absorbed(w: Writer, name: str, layer: Layer, z: ir.Value, queries: ir.Value) -> ir.Value:
    """Attention of one row, `queries [batch, 1, D]`, without forming keys and values (METHOD 2).

    Needs a layer that `can_absorb`.
    """
    heads = layer.heads
    q = w.linear(f"{name}.q", queries, *layer.q)
    q = w.reshape(f"{name}.q.heads", q, 0, heads, 1, -1)  # one row: no transposition is needed
    keys = w.floats(f"{name}.k.absorbed", rewrites.absorb_keys(layer.k, heads))
    seeking = w.op("MatMul", f"{name}.q.absorbed", q, keys)  # [batch, H, 1, D]
    seeking = w.reshape(f"{name}.q.rows", seeking, 0, heads, -1)
    tokens = w.op("Transpose", f"{name}.z.transposed", z, perm=[0, 2, 1])
    scores = w.op("MatMul", f"{name}.scores", seeking, tokens)  # [batch, H, N]
    shares, given = _softmax_with_prefix(w, name, layer, q, scores)
    mixed = w.op("MatMul", f"{name}.mixed.z", shares, z)  # [batch, H, D]
    mixed = w.reshape(f"{name}.mixed.heads", mixed, 0, heads, 1, -1)
    values = w.floats(f"{name}.v.absorbed", rewrites.absorb_values(layer.v, heads))
    mixed = w.op("MatMul", f"{name}.mixed", mixed, values)  # [batch, H, 1, d]
    if given is not None:
        mixed = w.op("Add", f"{name}.mixed.prefixed", mixed, given)
    mixed = w.reshape(f"{name}.mixed.merge", mixed, 0, 1, -1)
    return w.linear(f"{name}.proj", mixed, *layer.projection)


def _softmax_with_prefix(
    w: Writer, name: str, layer: Layer, q: ir.Value, scores: ir.Value
) -> tuple[ir.Value, ir.Value | None]:
    """Softmax over the prefix and `scores [batch, H, N]` together, for `q [batch, H, 1, d]`.

    Returns the shares of the tokens `[batch, H, N]` and what the prefix gives, `[batch, H, 1, d]`.
    """
    if layer.prefix is None:
        return w.op("Softmax", f"{name}.softmax", scores, axis=-1), None
    prefix, heads = layer.prefix, layer.heads
    if isinstance(prefix, Constant):
        keys = w.floats(f"{name}.prefix_k", prefix.keys.transpose(0, 2, 1))
        values = w.floats(f"{name}.prefix_v", prefix.values)
    else:
        keys = w.op("Transpose", f"{name}.prefix_k.transposed", prefix.keys, perm=[0, 2, 1])
        values = prefix.values
    count = num_tokens(prefix)
    before = w.op("MatMul", f"{name}.prefix.scores", q, keys)  # [batch, H, 1, T]
    before = w.reshape(f"{name}.prefix.rows", before, 0, heads, -1)
    both = w.op("Concat", f"{name}.scores.prefixed", before, scores, axis=2)
    both = _add_mask(w, name, _one_row(w, name, prefix), both)
    both = w.op("Softmax", f"{name}.softmax", both, axis=-1)
    given = w.part(f"{name}.prefix.shares", both, 0, count, axis=2)
    given = w.reshape(f"{name}.prefix.shares.heads", given, 0, heads, 1, -1)
    given = w.op("MatMul", f"{name}.prefix.mixed", given, values)
    return w.part(f"{name}.shares", both, count, END, axis=2), given


def num_tokens(prefix: Constant | Given) -> int:
    """Tokens `T` of a prefix."""
    return int(cast("tuple[int, ...]", prefix.keys.shape)[1])


def _one_row(w: Writer, name: str, prefix: Constant | Given | None) -> Constant | Given | None:
    """Keep the mask of one query, for the class token."""
    if not isinstance(prefix, Given) or prefix.mask is None:
        return prefix
    return replace(prefix, mask=w.part(f"{name}.mask", prefix.mask, 0, 1, axis=0))


def _add_mask(w: Writer, name: str, prefix: Constant | Given | None, scores: ir.Value) -> ir.Value:
    """Scores `[..., T + N]` less what the prompt's share takes from its own."""
    if not isinstance(prefix, Given) or prefix.mask is None:
        return scores
    return w.op("Add", f"{name}.scores.masked", scores, prefix.mask)


def _project(
    w: Writer, name: str, layer: Layer, z: ir.Value, queries: ir.Value, on: Rewrites
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Project to queries, keys and values `[batch, rows, D]`, after the norms of the heads."""
    if on.joined and queries is z:
        joined = w.linear(f"{name}.qkv", z, *rewrites.join(layer.q, layer.k, layer.v))
        q, k, v = w.split(f"{name}.qkv", joined, 3)
    else:
        q = w.linear(f"{name}.q", queries, *layer.q)
        k = w.linear(f"{name}.k", z, *layer.k)
        v = w.linear(f"{name}.v", z, *layer.v)
    q = _norm_heads(w, f"{name}.q_norm", layer, q, layer.q_norm, layer.scale)
    k = _norm_heads(w, f"{name}.k_norm", layer, k, layer.k_norm, 1.0)
    return q, k, v


def _norm_heads(
    w: Writer, name: str, layer: Layer, x: ir.Value, norm: nn.Module, scale: float
) -> ir.Value:
    if not isinstance(norm, nn.LayerNorm):
        return x
    x = w.reshape(f"{name}.split", x, 0, 0, layer.heads, -1)
    return w.reshape(f"{name}.merge", w.norm(name, x, norm, scale), 0, 0, -1)


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
    scores = _add_mask(w, name, layer.prefix, w.op("MatMul", f"{name}.scores", q, k))
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
        w.repeat(f"{name}.prefix_{which}", array[None], batch)
        if isinstance(array, np.ndarray)
        else w.repeat_value(f"{name}.prefix_{which}", array, batch)
        for which, array in (("k", prefix.keys), ("v", prefix.values))
    ]
    mask = _mask(layer) or (None,)
    return w.op("Attention", f"{name}.fused", q, k, v, *mask, *past, **_heads(layer))


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
        rows = _rows(w, f"{name}.prefix_{which}", given, batch)
        joined.append(w.op("Concat", f"{name}.{which}.prefixed", rows, x, axis=1))
    return joined[0], joined[1]


def _rows(w: Writer, name: str, given: Doubles | ir.Value, batch: ir.Value) -> ir.Value:
    """`[H, T, d]` as rows of all heads, for each image: `[batch, T, D]`."""
    if isinstance(given, np.ndarray):
        rows = given.transpose(1, 0, 2).reshape(given.shape[1], -1)
        return w.repeat(name, rows[None], batch)
    x = w.op("Transpose", f"{name}.rows", given, perm=[1, 0, 2])
    return w.repeat_value(name, w.reshape(f"{name}.merge", x, 0, -1), batch)


WAYS = {
    Attention.PLAIN: _plain,
    Attention.FUSED: _fused,
    Attention.STANDARD: _standard,
    Attention.PAST: _past,
}
