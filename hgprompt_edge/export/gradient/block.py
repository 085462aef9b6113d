"""One block of the gradient's graph: forward, and back by hand.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir

from hgprompt_edge.export.gradient.adjoint import linear, mlp, norm
from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.attention import END, Layer, prepare
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.graph.writer import Size, Writer


class Block:
    """One block on `x [batch N, D]`: forward, and back to its input and its prefix."""

    d_prefix: tuple[ir.Value, ir.Value]
    d_bias: ir.Value | None = None

    def __init__(
        self,
        w: Writer,
        name: str,
        block: Any,
        count: int,
        tokens: Size,
        *,
        first: bool,
        last: bool,
        plain: bool = False,
    ) -> None:
        self.w, self.name, self.block, self.count, self.tokens = w, name, block, count, tokens
        self.first, self.last, self.plain = first, last, plain
        self.layer: Layer = prepare(block, Rewrites())
        self.fc1 = rewrites.fold_affine(block.norm2, rewrites.linear_of(block.mlp.fc1))
        self.fc2 = rewrites.fold_layer_scale(rewrites.linear_of(block.mlp.fc2), block.ls2)

    def forward(
        self,
        x: ir.Value,
        prefix: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        batch: ir.Value,
    ) -> ir.Value:
        """Tokens to tokens, or to the class tokens `[batch, D]` alone in the last block."""
        w, name = self.w, self.name
        z, self.norm1_back = norm(w, f"{name}.norm1", x, self.block.norm1, affine=False)
        attended, self.attention_back = self._attend(z, prefix, mask, batch)
        if self.last:
            x = self._class_rows("class", x)
        x = w.op("Add", f"{name}.residual1", x, attended)
        z, self.norm2_back = norm(w, f"{name}.norm2", x, self.block.norm2, affine=False)
        z, self.mlp_back = mlp(
            w, f"{name}.mlp", z, self.fc1, self.block.mlp.act, self.fc2, plain=self.plain
        )
        return w.op("Add", f"{name}.residual2", x, z)

    def back(self, dy: ir.Value) -> ir.Value | None:
        """Gradient of the input; None in the first block, below which nothing is learned."""
        w, name = self.w, self.name
        d_mlp = self.norm2_back(self.mlp_back(dy))
        dx = w.op("Add", f"{name}.residual2.back", dy, d_mlp)
        dz = self.attention_back(dx)
        if dz is None:
            return None
        dz = self.norm1_back(dz)
        if self.last:
            return self._add_to_class_rows("residual1.back", dz, dx)
        return w.op("Add", f"{name}.residual1.back", dx, dz)

    def _class_rows(self, what: str, x: ir.Value) -> ir.Value:
        """`[batch N, D]` to the class tokens `[batch, D]`."""
        w, name = self.w, f"{self.name}.{what}"
        x = w.reshape(f"{name}.images", x, -1, self.count, self._width())
        return w.reshape(f"{name}.rows", w.part(f"{name}.part", x, 0, 1), -1, self._width())

    def _add_to_class_rows(self, what: str, x: ir.Value, rows: ir.Value) -> ir.Value:
        """Add `[batch, D]` to the class tokens among `x [batch N, D]`."""
        w, name, width = self.w, f"{self.name}.{what}", self._width()
        x = w.reshape(f"{name}.images", x, -1, self.count, width)
        first, others = w.part(f"{name}.first", x, 0, 1), w.part(f"{name}.others", x, 1, END)
        rows = w.reshape(f"{name}.class", rows, -1, 1, width)
        first = w.op("Add", f"{name}.sum", first, rows)
        joined = w.op("Concat", f"{name}.joined", first, others, axis=1)
        return w.reshape(name, joined, -1, width)

    def _width(self) -> int:
        return len(self.layer.k[0])

    def _attend(
        self,
        z: ir.Value,
        prefix: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        batch: ir.Value,
    ) -> tuple[ir.Value, Any]:
        """Attention of all tokens, or of the class tokens, over prefix and image."""
        w, name, layer = self.w, f"{self.name}.attn", self.layer
        (q, k, v), project_back = self._project(z)
        q, q_back = norm(w, f"{name}.q_norm", q, layer.q_norm, affine=True, factor=layer.scale)
        k, k_back = norm(w, f"{name}.k_norm", k, layer.k_norm, affine=True)
        k = self._join("k", prefix[0], k, batch)
        v = self._join("v", prefix[1], v, batch)
        scores = w.op("MatMul", f"{name}.scores", q, self._turn("k", k))
        if mask is not None:
            scores = w.op("Add", f"{name}.scores.masked", scores, mask)
        shares = w.op("Softmax", f"{name}.softmax", scores, axis=-1)  # [batch, H, rows, T + N]
        mixed = w.op("MatMul", f"{name}.mixed", shares, v)
        merged = w.op("Transpose", f"{name}.mixed.tokens", mixed, perm=[0, 2, 1, 3])
        merged = w.reshape(f"{name}.mixed.merge", merged, -1, self._width())
        y, projection_back = linear(w, f"{name}.proj", merged, layer.projection)

        def back(dy: ir.Value) -> ir.Value | None:
            d_mixed = projection_back(dy)
            rows = 1 if self.last else self.count
            d_mixed = w.reshape(
                f"{name}.back.split", d_mixed, -1, rows, layer.heads, self._width() // layer.heads
            )
            d_mixed = w.op("Transpose", f"{name}.back.heads", d_mixed, perm=[0, 2, 1, 3])
            # sum_j p_j dp_j = <d mixed, mixed>: one row sum of width d in place of one of T + N.
            along = w.op("Mul", f"{name}.back.product", d_mixed, mixed)
            along = w.op("ReduceSum", f"{name}.back.along", along, w.integers(-1))
            d_shares = w.op("MatMul", f"{name}.back.shares", d_mixed, self._turn("back.v", v))
            d_scores = w.op("Sub", f"{name}.back.centred", d_shares, along)
            d_scores = w.op("Mul", f"{name}.back.scores", d_scores, shares)
            if mask is not None:
                self.d_bias = self._sum_prefix(d_scores)
            if self.first:
                self.d_prefix = self._prefix_only(d_scores, shares, q, d_mixed)
                return None
            d_k = w.op("MatMul", f"{name}.back.k", self._turn("back.scores", d_scores), q)
            d_v = w.op("MatMul", f"{name}.back.v", self._turn("back.softmax", shares), d_mixed)
            d_q = w.op("MatMul", f"{name}.back.q", d_scores, k)
            d_prefix_k, d_k = self._cut("k", d_k)
            d_prefix_v, d_v = self._cut("v", d_v)
            self.d_prefix = d_prefix_k, d_prefix_v
            return cast("ir.Value", project_back(q_back(d_q), k_back(d_k), d_v))

        return y, back

    def _project(self, z: ir.Value) -> tuple[list[ir.Value], Any]:
        """Form queries, keys and values, each `[batch, H, *, d]`."""
        w, name, layer = self.w, f"{self.name}.attn", self.layer
        if not self.last:
            joined, back = linear(w, f"{name}.qkv", z, rewrites.join(layer.q, layer.k, layer.v))
            parts = self._split_heads("qkv", joined, 3, self.count)
            return parts, lambda *d: back(self._join_heads("qkv.back", *d))
        q, q_back = linear(w, f"{name}.q", self._class_rows("attn.q.class", z), layer.q)
        joined, back = linear(w, f"{name}.kv", z, rewrites.join(layer.k, layer.v))
        parts = self._split_heads("q", q, 1, 1) + self._split_heads("kv", joined, 2, self.count)

        def both(d_q: ir.Value, d_k: ir.Value, d_v: ir.Value) -> ir.Value:
            dz = back(self._join_heads("kv.back", d_k, d_v))
            return self._add_to_class_rows(
                "attn.z.back", dz, q_back(self._join_heads("q.back", d_q))
            )

        return parts, both

    def _split_heads(self, what: str, x: ir.Value, parts: int, rows: int) -> list[ir.Value]:
        """`[batch rows, parts D]` to so many of `[batch, H, rows, d]`."""
        w, name, heads = self.w, f"{self.name}.attn.{what}", self.layer.heads
        x = w.reshape(f"{name}.split", x, -1, rows, parts, heads, self._width() // heads)
        x = w.op("Transpose", f"{name}.heads", x, perm=[2, 0, 3, 1, 4])
        return [
            w.op("Gather", f"{name}.{i}", x, w.constant(f"index.{i}", np.array(i)))
            for i in range(parts)
        ]

    def _join_heads(self, what: str, *parts: ir.Value) -> ir.Value:
        """Undo `_split_heads`."""
        w, name = self.w, f"{self.name}.attn.{what}"
        raised = [w.op("Unsqueeze", f"{name}.{i}", x, w.integers(0)) for i, x in enumerate(parts)]
        x = w.op("Concat", f"{name}.joined", *raised, axis=0) if len(raised) > 1 else raised[0]
        x = w.op("Transpose", f"{name}.tokens", x, perm=[1, 3, 0, 2, 4])
        return w.reshape(f"{name}.merged", x, -1, len(parts) * self._width())

    def _join(self, which: str, prefix: ir.Value, x: ir.Value, batch: ir.Value) -> ir.Value:
        """Prefix `[1, H, T, d]` before the keys or values `[batch, H, N, d]`."""
        w, name = self.w, f"{self.name}.attn.prefix_{which}"
        heads, width = self.layer.heads, self._width()
        shape = w.sizes(f"{name}.shape", batch, heads, self.tokens, width // heads)
        repeated = w.op("Expand", f"{name}.batch", prefix, shape)
        return w.op("Concat", f"{name}.joined", repeated, x, axis=2)

    def _turn(self, what: str, x: ir.Value) -> ir.Value:
        return self.w.op("Transpose", f"{self.name}.attn.{what}.turned", x, perm=[0, 1, 3, 2])

    def _cut(self, which: str, d: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Gradient `[batch, H, T + N, d]`: what is the prefix's, summed, and the image's."""
        w, name = self.w, f"{self.name}.attn.back.{which}"
        count = self.tokens
        mine = w.op(
            "ReduceSum",
            f"{name}.prefix.sum",
            w.part(f"{name}.prefix", d, 0, count, axis=2),
            w.integers(0),
        )
        return mine, w.part(f"{name}.image", d, count, END, axis=2)

    def _prefix_only(
        self, d_scores: ir.Value, shares: ir.Value, q: ir.Value, d_mixed: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Gradients of the prefix alone, for the block below which nothing is learned."""
        w, name, count = self.w, f"{self.name}.attn.back", self.tokens
        found = []
        for which, x, y in (("k", d_scores, q), ("v", shares, d_mixed)):
            mine = w.part(f"{name}.{which}.prefix.rows", x, 0, count, axis=3)
            d = w.op("MatMul", f"{name}.{which}", self._turn(f"back.{which}.prefix", mine), y)
            found.append(w.op("ReduceSum", f"{name}.{which}.sum", d, w.integers(0)))
        return found[0], found[1]

    def _sum_prefix(self, d_scores: ir.Value) -> ir.Value:
        """Gradient `[1]` of what all scores of the prefix get."""
        w, name = self.w, f"{self.name}.attn.back.bias"
        mine = w.part(f"{name}.scores", d_scores, 0, self.tokens, axis=3)
        total = w.op("ReduceSum", f"{name}.sum", mine, keepdims=0)
        return w.reshape(name, total, 1)
