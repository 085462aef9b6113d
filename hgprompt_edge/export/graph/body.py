"""The part of a graph that is quantized, and the head that goes on top of it in float32.

The head is one row of products, so int8 would gain nothing there. Apart from the body it can be
another one: the one that judges has not seen the images that it judges by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hgprompt_edge.errors import UserError
from hgprompt_edge.export.graph.head import FIRST, OUTPUT, Floats, heads_of, operands, write_head
from hgprompt_edge.export.graph.inference import FEATURES
from hgprompt_edge.export.graph.writer import Writer
from hgprompt_edge.export.ir_file import save_ir
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.engines.openvino_engine import import_openvino


def split_head(model: ir.Model) -> tuple[ir.Model, list[Head]]:
    """Take the head off a graph that `build_graph` wrote; the rest is changed in place.

    What is left gives the features: `[batch, D]`, or `[batch, P D]` of `P` folded prompts.
    """
    graph = model.graph
    nodes = list(graph)
    names = [node.name for node in nodes]
    if FIRST not in names and OUTPUT not in names:
        raise ValueError("The graph must end in a head of ours.")
    first = names.index(FIRST if FIRST in names else OUTPUT)
    features = nodes[first].inputs[0]
    if features is None:
        raise ValueError("The head must take features.")
    heads = heads_of(_floats(graph, "head.weight"), _floats(graph, "head.bias"))
    taken = [value for node in nodes[first:] for value in node.inputs if value is not None]
    graph.outputs.clear()
    graph.remove(nodes[first:], safe=True)
    for value in taken:
        if not value.uses():
            graph.initializers.pop(str(value.name), None)
    features.dtype = ir.DataType.FLOAT
    features.shape = ir.Shape(["batch", sum(head.weight.shape[1] for head in heads)])
    features.name = "folded.features" if len(heads) > 1 else FEATURES
    graph.outputs.append(features)
    return model, heads


def attach_head(path: Path, heads: Sequence[Head], *, keep_features: bool = False) -> None:
    """Put heads on the body in a file, `.onnx` or `.xml`; its output is then the logits.

    With `keep_features`, for ONNX alone, what another head can be applied to is an output behind
    them, as in `build_graph`.
    """
    if path.suffix == ".xml":
        _attach_openvino(path, heads)
    else:
        _attach_onnx(path, heads, keep_features)


def _attach_onnx(path: Path, heads: Sequence[Head], keep_features: bool) -> None:
    model = ir.load(path)
    graph = model.graph
    w = Writer(graph.initializers)
    features = graph.outputs[0]
    logits = write_head(w, features, heads)
    outputs = [logits]
    if keep_features:
        outputs.append(w.op("Identity", FEATURES, logits) if len(heads) > 1 else features)
    for value in outputs:
        if value is not features:
            value.dtype = ir.DataType.FLOAT
            value.shape = ir.Shape(["batch", len(heads[0].bias)])
    graph.extend(w.tape.nodes)
    for initializer in w.tape.initializers:
        graph.register_initializer(initializer)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    ir.save(model, path)


def _attach_openvino(path: Path, heads: Sequence[Head]) -> None:
    ov = import_openvino()
    from openvino import opset13 as ops

    body = ov.Core().read_model(path)
    features = body.outputs[0].get_node().input_value(0)
    logits = _openvino_head(ops, features, heads)
    logits.set_friendly_name(OUTPUT)
    logits.output(0).get_tensor().set_names({OUTPUT})
    whole = ov.Model([logits], body.get_parameters(), "main_graph")
    # The body's weights are still read from the file that is to be replaced.
    second = path.with_name(f"whole-{path.name}")
    save_ir(whole, second)
    del body, whole, features, logits
    second.with_suffix(".bin").replace(path.with_suffix(".bin"))
    second.replace(path)


def _openvino_head(ops: Any, features: Any, heads: Sequence[Head]) -> Any:
    """Write `write_head` in OpenVINO's operators."""
    weight, bias = (ops.constant(np.ascontiguousarray(array)) for array in operands(heads))
    if len(heads) == 1:
        return ops.add(ops.matmul(features, weight, False, False), bias)
    prompts, (classes, width) = len(heads), heads[0].weight.shape
    x = ops.reshape(features, ops.constant(np.array([-1, prompts, 1, width])), False)
    x = ops.matmul(x, weight, False, False)
    x = ops.reshape(x, ops.constant(np.array([-1, prompts, classes])), False)
    x = ops.log_softmax(ops.add(x, bias), -1)
    axis, count = ops.constant(np.array([1])), ops.constant(np.float32(math.log(prompts)))
    largest = ops.reduce_max(x, axis, True)
    x = ops.log(ops.reduce_sum(ops.exp(ops.subtract(x, largest)), axis, True))
    return ops.squeeze(ops.subtract(ops.add(x, largest), count), axis)


def _floats(graph: ir.Graph, name: str) -> Floats:
    value = graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise UserError(f"{name} of the graph is not a constant; this graph cannot be int8")
    return np.array(value.const_value.numpy(), np.float32)
