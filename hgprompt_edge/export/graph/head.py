"""The head of a graph: a linear layer, or one for each folded prompt and their probabilities' mean.

Several heads end in the logarithm of the averaged probabilities, so that a softmax of the logits
gives these, as for one head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hgprompt_edge.export.graph.writer import Writer
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_mean_softmax

OUTPUT = "logits"
FIRST = "head.rows"
"""Node that several heads begin with."""

Floats = npt.NDArray[np.float32]


def head_logits(features: Floats, heads: Sequence[Head]) -> Floats:
    """Compute what `write_head` writes: logits `[n, K]` of features `[n, D]` or `[n, P D]`."""
    parts = np.split(features, len(heads), axis=1)
    logits = [head.logits(part) for head, part in zip(heads, parts, strict=True)]
    return log_mean_softmax(logits) if len(logits) > 1 else logits[0]


def write_head(w: Writer, features: ir.Value, heads: Sequence[Head]) -> ir.Value:
    """Features `[batch, D]`, or `[batch, P D]` of `P` folded prompts, to logits `[batch, K]`.

    The mean of probabilities is taken in logarithms: whatever the logits are, none becomes the
    logarithm of zero.
    """
    arrays = operands(heads)
    weight, bias = w.floats("head.weight", arrays[0]), w.floats("head.bias", arrays[1])
    if len(heads) == 1:
        return w.op("Gemm", OUTPUT, features, weight, bias)
    prompts, width, classes = arrays[0].shape
    rows = w.reshape(FIRST, features, -1, prompts, 1, width)
    x = w.op("MatMul", "head.products", rows, weight)  # [batch, P, 1, K]
    x = w.op("Add", "head.each", w.reshape("head.classes", x, -1, prompts, classes), bias)
    x = w.op("LogSoftmax", "head.log_p", x, axis=-1)
    largest = w.op("ReduceMax", "head.largest", x, w.integers(1), keepdims=1)
    x = w.op("Exp", "head.relative", w.op("Sub", "head.below", x, largest))
    x = w.op("Log", "head.log", w.op("ReduceSum", "head.sum", x, w.integers(1), keepdims=1))
    x = w.op("Add", "head.log_sum", x, largest)
    x = w.op("Sub", "head.log_mean", x, w.floats("head.log_count", np.array(math.log(prompts))))
    return w.op("Squeeze", OUTPUT, x, w.integers(1))


def operands(heads: Sequence[Head]) -> tuple[Floats, Floats]:
    """Lay heads out as a graph multiplies by them: `[D, K]` and `[K]`; of several each stacked."""
    if len(heads) == 1:
        return heads[0].weight.T, heads[0].bias
    return np.stack([head.weight.T for head in heads]), np.stack([head.bias for head in heads])


def heads_of(weight: Floats, bias: Floats) -> list[Head]:
    """Read back what `operands` returned."""
    if weight.ndim == 2:
        weight, bias = weight[None], bias[None]
    return [Head(w.T, b).as_float32() for w, b in zip(weight, bias, strict=True)]


def join_prompts(w: Writer, features: ir.Value, prompts: int, width: int) -> ir.Value:
    """Features `[P batch, D]` of folded prompts, one behind the other: `[batch, P D]`."""
    if prompts == 1:
        return features
    x = w.reshape("folded.rows", features, prompts, -1, width)
    x = w.op("Transpose", "folded.images", x, perm=[1, 0, 2])
    return w.reshape("folded.features", x, -1, prompts * width)
