"""Attention of each folded prompt: all of a block's rows, or the class token's alone.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir
from torch import nn

from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.attention import (
    END,
    WAYS,
    Constant,
    Given,
    Layer,
    add_mask,
    num_tokens,
)
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.graph.writer import Writer


def attend(
    w: Writer,
    name: str,
    layer: Layer,
    z: ir.Value,
    queries: ir.Value,
    batch: ir.Value,
    on: Rewrites,
    *,
    shared: bool = False,
) -> ir.Value:
    """Attention of `queries [P batch, rows, D]` over `z [P batch, N, D]` and `P` prefixes.

    The rows of a folded prompt stand together. `shared`: they are still the same for all, and
    `z` and `queries` hold them once.
    """

    def write(name: str, layer: Layer, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        if queries is not z:
            layer = replace(layer, prefixes=(_one_row(w, name, layer.prefix),))
        return WAYS[on.attention](w, name, layer, q, k, v, batch)

    mixed = _each(w, name, layer, write, _project(w, name, layer, z, queries, on), shared)
    return w.linear(f"{name}.proj", mixed, *layer.projection)


def attend_absorbed(
    w: Writer, name: str, layer: Layer, z: ir.Value, queries: ir.Value, *, shared: bool = False
) -> ir.Value:
    """Attention of one row, `queries [P batch, 1, D]`, without forming keys and values (METHOD 2).

    Needs a layer that `can_absorb`. Rows as for `attend`.
    """
    q = w.linear(f"{name}.q", queries, *layer.q)
    keys = w.floats(f"{name}.k.absorbed", rewrites.absorb_keys(layer.k, layer.heads))
    values = w.floats(f"{name}.v.absorbed", rewrites.absorb_values(layer.v, layer.heads))

    def write(name: str, layer: Layer, q: ir.Value, z: ir.Value) -> ir.Value:
        return _absorbed_row(w, name, layer, q, z, keys, values)

    mixed = _each(w, name, layer, write, (q, z), shared)
    return w.linear(f"{name}.proj", mixed, *layer.projection)


def _each(
    w: Writer,
    name: str,
    layer: Layer,
    write: Callable[..., ir.Value],
    values: Sequence[ir.Value],
    shared: bool,
) -> ir.Value:
    """Write attention once for each folded prompt, on its own rows of `values [P batch, ...]`.

    `shared` values have the rows of all of them once.
    """
    count = len(layer.prefixes)
    if count == 1:
        return write(name, layer, *values)
    rows = [[x] * count if shared else w.split(x.name or name, x, count, axis=0) for x in values]
    mixed = [
        write(f"{name}.{index}", replace(layer, prefixes=(prefix,)), *(x[index] for x in rows))
        for index, prefix in enumerate(layer.prefixes)
    ]
    return w.op("Concat", f"{name}.prompts", *mixed, axis=0)


def _absorbed_row(
    w: Writer,
    name: str,
    layer: Layer,
    q: ir.Value,
    z: ir.Value,
    keys: ir.Value,
    values: ir.Value,
) -> ir.Value:
    """Mix the values `[batch, 1, D]` of `z [batch, N, D]` for `q [batch, 1, D]`."""
    heads = layer.heads
    q = w.reshape(f"{name}.q.heads", q, 0, heads, 1, -1)  # one row: no transposition is needed
    seeking = w.op("MatMul", f"{name}.q.absorbed", q, keys)  # [batch, H, 1, D]
    seeking = w.reshape(f"{name}.q.rows", seeking, 0, heads, -1)
    tokens = w.op("Transpose", f"{name}.z.transposed", z, perm=[0, 2, 1])
    scores = w.op("MatMul", f"{name}.scores", seeking, tokens)  # [batch, H, N]
    shares, given = _softmax_with_prefix(w, name, layer, q, scores)
    mixed = w.op("MatMul", f"{name}.mixed.z", shares, z)  # [batch, H, D]
    mixed = w.reshape(f"{name}.mixed.heads", mixed, 0, heads, 1, -1)
    mixed = w.op("MatMul", f"{name}.mixed", mixed, values)  # [batch, H, 1, d]
    if given is not None:
        mixed = w.op("Add", f"{name}.mixed.prefixed", mixed, given)
    return w.reshape(f"{name}.mixed.merge", mixed, 0, 1, -1)


def _softmax_with_prefix(
    w: Writer, name: str, layer: Layer, q: ir.Value, scores: ir.Value
) -> tuple[ir.Value, ir.Value | None]:
    """Softmax over the prefix and `scores [batch, H, N]` together, for `q [batch, H, 1, d]`.

    Returns the shares of the tokens `[batch, H, N]` and what the prefix gives, `[batch, H, 1, d]`.
    """
    if layer.prefix is None:
        return w.op("Softmax", f"{name}.softmax", scores, axis=-1), None
    prefix, heads = layer.prefix, layer.heads
    keys, values = _prefix_of_heads(w, name, layer, prefix)
    before = w.op("MatMul", f"{name}.prefix.scores", q, keys)  # [batch, H, 1, T]
    before = w.reshape(f"{name}.prefix.rows", before, 0, heads, -1)
    both = w.op("Concat", f"{name}.scores.prefixed", before, scores, axis=2)
    row = _one_row(w, name, prefix)
    if isinstance(row, Given) and row.rows and row.mask is not None:  # [batch, 1, T + N]
        row = replace(row, mask=w.op("Squeeze", f"{name}.mask.row", row.mask, w.integers(2)))
    both = add_mask(w, name, row, both)
    both = w.op("Softmax", f"{name}.softmax", both, axis=-1)
    # From behind where tokens of the prefix are as many as are given.
    count = (
        -prefix.image_tokens if isinstance(prefix, Given) and prefix.rows else num_tokens(prefix)
    )
    given = w.part(f"{name}.prefix.shares", both, 0, count, axis=2)
    given = w.reshape(f"{name}.prefix.shares.heads", given, 0, heads, 1, -1)
    given = w.op("MatMul", f"{name}.prefix.mixed", given, values)
    return w.part(f"{name}.shares", both, count, END, axis=2), given


def _prefix_of_heads(
    w: Writer, name: str, layer: Layer, prefix: Constant | Given
) -> tuple[ir.Value, ir.Value]:
    """Keys `[H, d, T]` and values `[H, T, d]` of the prefix, or for each image."""
    if isinstance(prefix, Constant):
        keys = w.floats(f"{name}.prefix_k", prefix.keys.transpose(0, 2, 1))
        return keys, w.floats(f"{name}.prefix_v", prefix.values)
    if not prefix.rows:
        keys = w.op("Transpose", f"{name}.prefix_k.transposed", prefix.keys, perm=[0, 2, 1])
        return keys, prefix.values
    found = []
    for which, x, perm in (("k", prefix.keys, [0, 2, 3, 1]), ("v", prefix.values, [0, 2, 1, 3])):
        x = w.reshape(f"{name}.prefix_{which}.heads", x, 0, 0, layer.heads, -1)
        found.append(w.op("Transpose", f"{name}.prefix_{which}.transposed", x, perm=perm))
    return found[0], found[1]


def _one_row(w: Writer, name: str, prefix: Constant | Given | None) -> Constant | Given | None:
    """Keep the mask of one query, for the class token."""
    if not isinstance(prefix, Given) or prefix.mask is None:
        return prefix
    axis = 2 if prefix.rows else 0
    return replace(prefix, mask=w.part(f"{name}.mask", prefix.mask, 0, 1, axis=axis))


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
