"""Operators with their backward passes, written by hand in plain ONNX.

Each function writes the forward nodes and returns their output with a function that, given the
gradient of a loss with respect to that output, writes the nodes for that of the input. Weights are
frozen: no gradient of theirs is formed. `x [rows, D]` holds the tokens of all images one below the
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from timm.layers import GELUTanh, QuickGELU
from torch import nn

from hgprompt_edge.export.graph.rewrites import Linear
from hgprompt_edge.export.graph.writer import Doubles, Writer, to_array

Back = Callable[[ir.Value], ir.Value]


def linear(w: Writer, name: str, x: ir.Value, layer: Linear) -> tuple[ir.Value, Back]:
    """`x [rows, D]` times `[D, E]` plus a bias."""
    weight, bias = layer
    stored = w.floats(f"{name}.weight", weight)
    given = () if bias is None else (w.floats(f"{name}.bias", bias),)

    def back(dy: ir.Value) -> ir.Value:
        return w.op("Gemm", f"{name}.back", dy, stored, transB=1)

    return w.op("Gemm", name, x, stored, *given), back


def norm(
    w: Writer, name: str, x: ir.Value, layer: nn.Module, *, affine: bool, factor: float = 1.0
) -> tuple[ir.Value, Back]:
    """LayerNorm over the last axis, times `factor`; nothing for an Identity.

    Without `affine`, its scale and bias are in the matrix behind it.
    """
    if not isinstance(layer, nn.LayerNorm):
        return x, lambda dy: dy
    width = layer.normalized_shape[-1]
    axes = w.integers(-1)
    z, inverse = w.normalize(f"{name}.z", x, width, layer.eps)
    scale: Doubles = np.full(width, factor)
    if affine and layer.weight is not None:
        scale = to_array(layer.weight) * factor
    y = z
    if affine or factor != 1.0:
        y = w.op("Mul", f"{name}.scaled", z, w.floats(f"{name}.scale", scale))
    if affine and layer.bias is not None:
        y = w.op("Add", name, y, w.floats(f"{name}.bias", to_array(layer.bias) * factor))

    def back(dy: ir.Value) -> ir.Value:
        """`(dz - mean(dz) - z mean(dz z)) / s`."""
        dz = dy
        if affine or factor != 1.0:
            dz = w.op("Mul", f"{name}.back.scaled", dy, w.floats(f"{name}.scale", scale))
        along = w.op("Mul", f"{name}.back.product", dz, z)
        along = w.op("ReduceMean", f"{name}.back.along", along, axes)
        along = w.op("Mul", f"{name}.back.radial", z, along)
        level = w.op("ReduceMean", f"{name}.back.mean", dz, axes)
        rest = w.op("Sub", f"{name}.back.centred", dz, level)
        rest = w.op("Sub", f"{name}.back.tangent", rest, along)
        return w.op("Mul", f"{name}.back", rest, inverse)

    return y, back


def mlp(
    w: Writer,
    name: str,
    x: ir.Value,
    fc1: Linear,
    act: nn.Module,
    fc2: Linear,
    *,
    plain: bool = False,
) -> tuple[ir.Value, Back]:
    """Two linear layers with a GELU of any of the three kinds between them.

    `plain` keeps the weights as they are, so that a graph can share them with another one.
    """
    activate: Callable[[Writer, str, ir.Value], tuple[ir.Value, Back]]
    if isinstance(act, QuickGELU):
        activate, before, after = _quick_gelu, 1.702, 1 / 1.702
    elif isinstance(act, GELUTanh) or getattr(act, "approximate", "none") == "tanh":
        activate, before, after = _tanh_gelu, 1.0, 0.5
    else:
        activate, before, after = _gelu, math.sqrt(0.5), math.sqrt(0.5)
    if plain:
        u, back1 = linear(w, f"{name}.fc1", x, fc1)
        u, scale1 = _times(w, f"{name}.before", u, before)
        y, back_act = activate(w, f"{name}.act", u)
        y, scale2 = _times(w, f"{name}.after", y, after)
        y, back2 = linear(w, f"{name}.fc2", y, fc2)
        return y, lambda dy: back1(scale1(back_act(scale2(back2(dy)))))
    # Constants of the activation go into the matrices around it: each is a pass less over memory.
    u, back1 = linear(w, f"{name}.fc1", x, scaled(fc1, before))
    y, back_act = activate(w, f"{name}.act", u)
    y, back2 = linear(w, f"{name}.fc2", y, (fc2[0] * after, fc2[1]))
    return y, lambda dy: back1(back_act(back2(dy)))


def _times(w: Writer, name: str, x: ir.Value, factor: float) -> tuple[ir.Value, Back]:
    """`factor * x`."""
    if factor == 1:
        return x, lambda dy: dy
    return w.op("Mul", name, x, scalar(w, factor)), lambda dy: w.op(
        "Mul", f"{name}.back", dy, scalar(w, factor)
    )


def scaled(layer: Linear, factor: float) -> Linear:
    """`factor * (x W + b)` as one linear layer."""
    weight, bias = layer
    return weight * factor, None if bias is None else bias * factor


def _gelu(w: Writer, name: str, v: ir.Value) -> tuple[ir.Value, Back]:
    """`v (1 + erf v)`: the exact GELU of `u = sqrt(2) v`, times `sqrt(2)`."""
    one_plus = w.op("Add", f"{name}.cdf", w.op("Erf", f"{name}.erf", v), scalar(w, 1.0))

    def back(dy: ir.Value) -> ir.Value:
        """`1 + erf v + v 2 / sqrt(pi) exp(-v^2)`; the factor goes into the exponent."""
        square = w.op("Mul", f"{name}.back.square", v, v)
        exponent = scalar(w, math.log(2 / math.sqrt(math.pi)))
        exponent = w.op("Sub", f"{name}.back.exponent", exponent, square)
        density = w.op("Exp", f"{name}.back.density", exponent)
        slope = w.op("Mul", f"{name}.back.moved", v, density)
        slope = w.op("Add", f"{name}.back.slope", slope, one_plus)
        return w.op("Mul", f"{name}.back", dy, slope)

    return w.op("Mul", name, v, one_plus), back


def _quick_gelu(w: Writer, name: str, v: ir.Value) -> tuple[ir.Value, Back]:
    """`v sigmoid(v)`: QuickGELU of `u = v / 1.702`, times 1.702."""
    gate = w.op("Sigmoid", f"{name}.gate", v)
    y = w.op("Mul", name, v, gate)

    def back(dy: ir.Value) -> ir.Value:
        """`s + v s (1 - s) = s + y (1 - s)`."""
        rest = w.op("Sub", f"{name}.back.rest", scalar(w, 1.0), gate)
        slope = w.op("Mul", f"{name}.back.moved", y, rest)
        slope = w.op("Add", f"{name}.back.slope", slope, gate)
        return w.op("Mul", f"{name}.back", dy, slope)

    return y, back


def _tanh_gelu(w: Writer, name: str, u: ir.Value) -> tuple[ir.Value, Back]:
    """`u (1 + tanh(c (u + 0.044715 u^3)))`: GELU's tanh approximation, times 2."""
    c = math.sqrt(2 / math.pi)
    square = w.op("Mul", f"{name}.square", u, u)
    inner = w.op("Mul", f"{name}.cubic", square, scalar(w, 0.044715 * c))
    inner = w.op("Add", f"{name}.factor", inner, scalar(w, c))
    tanh = w.op("Tanh", f"{name}.tanh", w.op("Mul", f"{name}.inner", u, inner))
    one_plus = w.op("Add", f"{name}.cdf", tanh, scalar(w, 1.0))

    def back(dy: ir.Value) -> ir.Value:
        """`1 + t + u (1 - t^2) c (1 + 3 * 0.044715 u^2)`."""
        rise = w.op("Mul", f"{name}.back.cubic", square, scalar(w, 3 * 0.044715 * c))
        rise = w.op("Add", f"{name}.back.rise", rise, scalar(w, c))
        rise = w.op("Mul", f"{name}.back.moved", rise, u)
        left = w.op("Sub", f"{name}.back.left", scalar(w, 1.0), tanh)  # 1 - t^2 = (1 - t)(1 + t)
        left = w.op("Mul", f"{name}.back.derivative", left, one_plus)
        slope = w.op("Mul", f"{name}.back.product", rise, left)
        slope = w.op("Add", f"{name}.back.slope", slope, one_plus)
        return w.op("Mul", f"{name}.back", dy, slope)

    return w.op("Mul", name, u, one_plus), back


def scalar(w: Writer, value: float) -> ir.Value:
    """Store one float32 number, once for equal ones."""
    return w.floats(f"float.{value:.9g}", np.array(value))
