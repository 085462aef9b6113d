"""The last block of the gradient's graph, where the class token alone attends."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hgprompt_edge.export.gradient.adjoint import linear
from hgprompt_edge.export.gradient.block import Block
from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.attention import END


class AbsorbedBlock(Block):
    """The last block, where the class token alone attends: no keys and values are formed.

    Each head's query meets the tokens themselves, and so do the gradients (METHOD 2).
    """

    def _attend(
        self,
        z: ir.Value,
        prefix: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        batch: ir.Value,
    ) -> tuple[ir.Value, Any]:
        """Attention of the class tokens over prefix and image; `batch` is not needed here."""
        del batch
        w, name, layer = self.w, f"{self.name}.attn", self.layer
        heads, width, count = layer.heads, self._width(), self.tokens
        q, q_back = linear(w, f"{name}.q", self._class_rows("attn.q.class", z), layer.q)
        q = w.reshape(f"{name}.q.heads", q, -1, heads, 1, width // heads)  # [batch, H, 1, d]
        tokens = w.reshape(f"{name}.z.images", z, -1, self.count, width)  # [batch, N, D]
        turned = w.op("Transpose", f"{name}.z.turned", tokens, perm=[0, 2, 1])
        to_tokens = w.floats(f"{name}.k.absorbed", rewrites.absorb_keys(layer.k, heads))
        from_tokens = w.floats(f"{name}.v.absorbed", rewrites.absorb_values(layer.v, heads))
        seeking = self._rows("seeking", w.op("MatMul", f"{name}.seeking", q, to_tokens))
        scores = w.op("MatMul", f"{name}.scores", seeking, turned)  # [batch, H, N]
        before = w.op("MatMul", f"{name}.scores.prefix", q, self._turn("k", prefix[0]))
        before = self._rows("scores.prefix", before)  # [batch, H, T]
        both = w.op("Concat", f"{name}.scores.both", before, scores, axis=2)
        if mask is not None:
            both = w.op("Add", f"{name}.scores.masked", both, mask)
        shares = w.op("Softmax", f"{name}.softmax", both, axis=-1)  # [batch, H, T + N]
        mine, theirs = (
            w.part(f"{name}.shares.{which}", shares, first, last, axis=2)
            for which, first, last in (("prefix", 0, count), ("image", count, END))
        )
        mine = self._raise("shares.prefix", mine)
        given = w.op("MatMul", f"{name}.mixed.prefix", mine, prefix[1])  # [batch, H, 1, d]
        seen = self._raise("mixed.z", w.op("MatMul", f"{name}.mixed.tokens", theirs, tokens))
        mixed = w.op("MatMul", f"{name}.mixed.image", seen, from_tokens)
        mixed = w.op("Add", f"{name}.mixed", given, mixed)
        merged = w.reshape(f"{name}.mixed.merge", mixed, -1, width)
        y, projection_back = linear(w, f"{name}.proj", merged, layer.projection)

        def back(dy: ir.Value) -> ir.Value | None:
            d_mixed = projection_back(dy)
            d_mixed = w.reshape(f"{name}.back.split", d_mixed, -1, heads, 1, width // heads)
            along = w.op("Mul", f"{name}.back.product", d_mixed, mixed)
            along = w.op("ReduceSum", f"{name}.back.along", along, w.integers(-1))
            d_seen = w.op("MatMul", f"{name}.back.z", d_mixed, self._turn_heads("v", from_tokens))
            d_seen = self._rows("back.z", d_seen)  # [batch, H, D]
            d_theirs = w.op("MatMul", f"{name}.back.shares.image", d_seen, turned)
            d_mine = w.op("MatMul", f"{name}.back.shares", d_mixed, self._turn("v", prefix[1]))
            d_shares = w.op(
                "Concat", f"{name}.back.both", self._rows("back.shares", d_mine), d_theirs, axis=2
            )
            d_scores = w.op("Sub", f"{name}.back.centred", d_shares, self._rows("along", along))
            d_scores = w.op("Mul", f"{name}.back.scores", d_scores, shares)
            d_before = w.part(f"{name}.back.scores.prefix", d_scores, 0, count, axis=2)
            d_before = self._raise("back.scores.prefix", d_before)  # [batch, H, 1, T]
            d_prefix = []
            for which, x, row in (("k", d_before, q), ("v", mine, d_mixed)):
                d = w.op("MatMul", f"{name}.back.{which}", self._turn(f"back.{which}", x), row)
                d_prefix.append(w.op("ReduceSum", f"{name}.back.{which}.sum", d, w.integers(0)))
            self.d_prefix = d_prefix[0], d_prefix[1]
            if mask is not None:
                total = w.op("ReduceSum", f"{name}.back.bias.sum", d_before, keepdims=0)
                self.d_bias = w.reshape(f"{name}.back.bias", total, 1)
            if self.first:
                return None
            d_scores = w.part(f"{name}.back.scores.image", d_scores, count, END, axis=2)
            d_seeking = w.op("MatMul", f"{name}.back.seeking", d_scores, tokens)
            d_seeking = self._raise("back.seeking", d_seeking)
            d_q = w.op("MatMul", f"{name}.back.q", d_seeking, self._turn_heads("k", to_tokens))
            d_q_prefix = w.op("MatMul", f"{name}.back.q.prefix", d_before, prefix[0])
            d_q = w.op("Add", f"{name}.back.q.both", d_q, d_q_prefix)
            d_q = q_back(w.reshape(f"{name}.back.q.merge", d_q, -1, width))
            # Each token receives from every head: [batch, N, H] times [batch, H, D].
            pairs = (("scores", d_scores, seeking), ("shares", theirs, d_seen))
            d_tokens = [
                w.op("MatMul", f"{name}.back.tokens.{which}", self._columns(which, x), rows)
                for which, x, rows in pairs
            ]
            dz = w.op("Add", f"{name}.back.tokens", *d_tokens)
            dz = w.reshape(f"{name}.back.tokens.flat", dz, -1, width)
            return self._add_to_class_rows("attn.z.back", dz, d_q)

        return y, back

    def _rows(self, what: str, x: ir.Value) -> ir.Value:
        """`[batch, H, 1, *]` to `[batch, H, *]`."""
        return self.w.op("Squeeze", f"{self.name}.attn.{what}.rows", x, self.w.integers(2))

    def _raise(self, what: str, x: ir.Value) -> ir.Value:
        """`[batch, H, *]` to `[batch, H, 1, *]`."""
        return self.w.op("Unsqueeze", f"{self.name}.attn.{what}.raised", x, self.w.integers(2))

    def _columns(self, what: str, x: ir.Value) -> ir.Value:
        """`[batch, H, N]` to `[batch, N, H]`."""
        return self.w.op("Transpose", f"{self.name}.attn.{what}.columns", x, perm=[0, 2, 1])

    def _turn_heads(self, what: str, x: ir.Value) -> ir.Value:
        """Transpose the matrix of each head `[H, *, *]`."""
        return self.w.op("Transpose", f"{self.name}.attn.{what}.absorbed.turned", x, perm=[0, 2, 1])
