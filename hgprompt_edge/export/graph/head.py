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

from hgprompt_edge.export.graph.writer import Doubles, Writer
from hgprompt_edge.maths.softmax import log_mean_softmax

OUTPUT = "logits"
FIRST = "head.rows"
"""Node that several heads begin with."""

Floats = npt.NDArray[np.float32]
Head = tuple[Floats, Floats]
"""Weight `[D, K]` and bias `[K]`; of `P` folded prompts `[P, D, K]` and `[P, K]`."""


def stack_heads(heads: Sequence[tuple[Doubles, Doubles]]) -> Head:
    """Join the heads of folded prompts, each a weight `[D, K]` and a bias `[K]`."""
    if len(heads) == 1:
        weight, bias = heads[0]
        return weight.astype(np.float32), bias.astype(np.float32)
    weights, biases = zip(*heads, strict=True)
    return np.stack(weights).astype(np.float32), np.stack(biases).astype(np.float32)


def head_logits(features: Floats, head: Head) -> Floats:
    """Compute what `write_head` writes: logits `[n, K]` of features `[n, D]` or `[n, P D]`."""
    weight, bias = head
    if weight.ndim == 2:
        return features @ weight + bias
    rows = features.reshape(len(features), len(weight), -1).transpose(1, 0, 2)
    return log_mean_softmax(rows @ weight + bias[:, None])


def write_head(w: Writer, features: ir.Value, head: Head) -> ir.Value:
    """Features `[batch, D]`, or `[batch, P D]` of `P` folded prompts, to logits `[batch, K]`.

    The mean of probabilities is taken in logarithms: whatever the logits are, none becomes the
    logarithm of zero.
    """
    weight, bias = w.floats("head.weight", head[0]), w.floats("head.bias", head[1])
    if head[0].ndim == 2:
        return w.op("Gemm", OUTPUT, features, weight, bias)
    prompts, width, classes = head[0].shape
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


def join_prompts(w: Writer, features: ir.Value, prompts: int, width: int) -> ir.Value:
    """Features `[P batch, D]` of folded prompts, one behind the other: `[batch, P D]`."""
    if prompts == 1:
        return features
    x = w.reshape("folded.rows", features, prompts, -1, width)
    x = w.op("Transpose", "folded.images", x, perm=[1, 0, 2])
    return w.reshape("folded.features", x, -1, prompts * width)
