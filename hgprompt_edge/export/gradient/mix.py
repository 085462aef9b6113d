"""Every layer's prefix from the mix, and the mix's gradient from theirs (METHOD eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from torch import nn

from hgprompt_edge.artifacts.device_bank import TINY, Bank
from hgprompt_edge.export.gradient.adjoint import Back, norm, scalar
from hgprompt_edge.export.graph.attention import END
from hgprompt_edge.export.graph.writer import Size, Writer
from hgprompt_edge.maths.mixing import BankKeysValues


class Mixed(NamedTuple):
    """What is mixed, in the graph.

    Attributes
    ----------
    keys, values
        `[P, L T E]`.
    gram
        `[L T P, P]`.
    sources, tokens
        `P` and `T`.
    mixer
        Has the rest, which all banks of a backbone have in common.
    gated
        Whether the first entry of the mix is the model alone.
    """

    keys: ir.Value
    values: ir.Value
    gram: ir.Value
    sources: Size
    tokens: Size
    mixer: BankKeysValues
    gated: bool


def of_bank(w: Writer, bank: Bank) -> Mixed:
    """Store what a bank mixes in the graph."""
    if bank.mixer is None:
        raise ValueError("The 'bank' must hold prompts.")
    mixer = bank.mixer
    keys, values = np.asarray(mixer.keys), np.asarray(mixer.values)
    sources, _, tokens, _ = keys.shape
    return Mixed(
        w.floats("mix.keys", keys.reshape(sources, -1)),
        w.floats("mix.values", values.reshape(sources, -1)),
        w.floats("mix.gram", mixer.gram.reshape(-1, sources)),
        sources,
        tokens,
        mixer,
        bank.gated,
    )


def of_inputs(w: Writer, inputs: Mapping[str, ir.Value], mixer: BankKeysValues) -> Mixed:
    """Take what is mixed from inputs `keys`, `values [P, L, T, E]` and `gram [L, T, P, P]`."""
    keys, values, gram = (inputs[name] for name in ("keys", "values", "gram"))
    sources = w.op("Shape", "mix.sources", keys, start=0, end=1)
    tokens = w.op("Shape", "mix.tokens", keys, start=2, end=3)
    return Mixed(
        w.reshape("mix.keys", keys, sources, -1),
        w.reshape("mix.values", values, sources, -1),
        w.reshape("mix.gram", gram, -1, sources),
        sources,
        tokens,
        mixer,
        gated=True,
    )


class Mix:
    """Prefix of every layer from the mix by METHOD eq. 2, and back."""

    def __init__(self, w: Writer, given: Mixed, mix: ir.Value) -> None:
        self.w, self.mixer, self.gated = w, given.mixer, given.gated
        self.sources, self.tokens, self.gram = given.sources, given.tokens, given.gram
        self.layers, self.width = self.mixer.key_bias.shape
        self.mix = mix
        self.bias: ir.Value | None = None
        self.flat = {"keys": given.keys, "values": given.values}
        if self.gated:
            self.mix = self._share_of_prompts(mix)
        row = w.reshape("mix.row", self.mix, 1, -1)
        column = w.reshape("mix.column", self.mix, -1, 1)
        self.inverse, self.pull = self._spread(column)
        self.raw_keys = self._sum("keys", row)
        self.raw_values = self._sum("values", row)
        k = self._shift("keys", self.raw_keys, self.mixer.key_bias)
        v = self._shift("values", self.raw_values, self.mixer.value_bias)
        k, v = self._heads("keys", k), self._heads("values", v)
        k, self.key_back = self._norm_keys(k)
        self.prefix = [
            (self._layer("keys", k, i), self._layer("values", v, i)) for i in range(self.layers)
        ]

    def _share_of_prompts(self, mix: ir.Value) -> ir.Value:
        """Split off "no prompt": its rest is the share, whose logarithm the scores get."""
        w = self.w
        rest = w.op("Slice", "mix.prompts", mix, w.integers(1), w.integers(END), w.integers(0))
        share = w.op("ReduceSum", "mix.share", rest, w.integers(0))  # [1]
        self.share = w.op("Max", "mix.share.positive", share, w.floats("tiny", np.array([TINY])))
        self.bias = w.op("Log", "mix.bias", self.share)
        return w.op("Div", "mix.normalised", rest, self.share)

    def _spread(self, column: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`1 / s(a)` as `[L, T, 1]`, and `G a` as `[L T, P]`, which is half of `d (a^T G a)`."""
        w, mixer = self.w, self.mixer
        pull = w.op("MatMul", "mix.gram.a", self.gram, column)
        pull = w.reshape("mix.pull", pull, -1, self.sources)
        variance = w.op("MatMul", "mix.a.gram.a", pull, column)
        variance = w.op("Max", "mix.variance.positive", variance, scalar(w, 0.0))
        variance = w.op("Div", "mix.variance", variance, scalar(w, float(mixer.width)))
        variance = w.reshape("mix.variance.tokens", variance, self.layers, self.tokens, 1)
        variance = w.op(
            "Add", "mix.variance.eps", variance, w.floats("mix.eps", mixer.eps[:, None, None])
        )
        inverse = w.op("Reciprocal", "mix.inverse", w.op("Sqrt", "mix.s", variance))
        return inverse, pull

    def _sum(self, name: str, row: ir.Value) -> ir.Value:
        """`sum_i a_i A_i`, `[L, T, E]`."""
        mixed = self.w.op("MatMul", f"mix.{name}.flat", row, self.flat[name])
        return self.w.reshape(f"mix.{name}.raw", mixed, self.layers, self.tokens, self.width)

    def _shift(self, name: str, raw: ir.Value, bias: Any) -> ir.Value:
        scaled = self.w.op("Mul", f"mix.{name}.scaled", raw, self.inverse)
        if not bias.any():
            return scaled
        return self.w.op(
            "Add", f"mix.{name}.shifted", scaled, self.w.floats(f"mix.{name}.bias", bias[:, None])
        )

    def _heads(self, name: str, x: ir.Value) -> ir.Value:
        """`[L, T, E]` to `[L, H, T, d]`."""
        x = self.w.reshape(f"mix.{name}.split", x, 0, 0, self.mixer.heads, -1)
        return self.w.op("Transpose", f"mix.{name}.heads", x, perm=[0, 2, 1, 3])

    def _norm_keys(self, k: ir.Value) -> tuple[ir.Value, Back]:
        if self.mixer.key_norm is None:
            return k, lambda dy: dy
        scale, bias, eps = self.mixer.key_norm
        w = self.w
        layer = nn.LayerNorm(scale.shape[1], eps=float(eps[0]), elementwise_affine=False)
        z, back = norm(w, "mix.keys.norm", k, layer, affine=False)
        factor = w.floats("mix.keys.norm.scale", scale[:, None, None])
        y = w.op("Mul", "mix.keys.norm.scaled", z, factor)
        y = w.op("Add", "mix.keys.normed", y, w.floats("mix.keys.norm.bias", bias[:, None, None]))
        return y, lambda dy: back(w.op("Mul", "mix.keys.norm.back.scaled", dy, factor))

    def _layer(self, name: str, x: ir.Value, layer: int) -> ir.Value:
        """`[1, H, T, d]` of one layer."""
        return self.w.part(f"mix.{name}.{layer}", x, layer, layer + 1, axis=0)

    def back(self, d_prefix: list[tuple[ir.Value, ir.Value]], d_bias: list[ir.Value]) -> ir.Value:
        """Gradient `[M]` of the mix from those of all prefixes, each `[1, H, T, d]`."""
        w = self.w
        d_keys, d_values = (
            w.op("Concat", f"mix.back.{name}", *parts, axis=0)
            for name, parts in zip(("keys", "values"), zip(*d_prefix, strict=True), strict=True)
        )
        d_keys = self._merge("keys", self.key_back(d_keys))
        d_values = self._merge("values", d_values)
        d_inverse = w.op(
            "Add",
            "mix.back.inverse",
            w.op("Mul", "mix.back.keys.along", d_keys, self.raw_keys),
            w.op("Mul", "mix.back.values.along", d_values, self.raw_values),
        )
        d_inverse = w.op("ReduceSum", "mix.back.inverse.sum", d_inverse, w.integers(2))  # [L, T, 1]
        cube = w.op("Mul", "mix.inverse.2", self.inverse, self.inverse)
        cube = w.op("Mul", "mix.inverse.3", cube, self.inverse)
        # d (1 / s) = -s^-3 / 2 d s^2, and d s^2 = 2 / D a^T G da.
        d_square = w.op("Mul", "mix.back.cube", d_inverse, cube)
        d_square = w.op("Mul", "mix.back.square", d_square, scalar(w, -1 / self.mixer.width))
        d_square = w.reshape("mix.back.square.row", d_square, 1, -1)
        total = w.op("MatMul", "mix.back.spread", d_square, self.pull)  # [1, P]
        for name, d in (("keys", d_keys), ("values", d_values)):
            scaled = w.op("Mul", f"mix.back.{name}.scaled", d, self.inverse)
            flat = w.reshape(f"mix.back.{name}.flat", scaled, 1, -1)
            part = w.op("Gemm", f"mix.back.{name}.sources", flat, self.flat[name], transB=1)
            total = w.op("Add", f"mix.back.{name}.total", total, part)
        total = w.reshape("mix.back.prompts", total, -1)
        return self._with_no_prompt(total, d_bias) if self.gated else total

    def _merge(self, name: str, x: ir.Value) -> ir.Value:
        """`[L, H, T, d]` to `[L, T, E]`."""
        x = self.w.op("Transpose", f"mix.back.{name}.tokens", x, perm=[0, 2, 1, 3])
        return self.w.reshape(f"mix.back.{name}.merged", x, 0, 0, -1)

    def _with_no_prompt(self, d_normalised: ir.Value, d_bias: list[ir.Value]) -> ir.Value:
        """From `b = r / sum(r)` and `log sum(r)` to `r`; "no prompt" itself enters no formula."""
        w = self.w
        along = w.op("Mul", "mix.back.along", d_normalised, self.mix)
        along = w.op("ReduceSum", "mix.back.along.sum", along, w.integers(0))
        rest = w.op("Sub", "mix.back.tangent", d_normalised, along)
        bias = w.op("Sum", "mix.back.bias", *d_bias)
        rest = w.op("Add", "mix.back.with_bias", rest, bias)
        rest = w.op("Div", "mix.back.share", rest, self.share)
        return w.op("Concat", "mix.back", w.floats("zero", np.zeros(1)), rest, axis=0)
