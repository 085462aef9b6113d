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


def attach_head(path: Path, heads: Sequence[Head], *, adapt: bool = False) -> None:
    """Put heads on the body in a file, `.onnx` or `.xml`; its outputs are as of `build_graph`.

    With `adapt`, for ONNX alone, what another head can be applied to is the second one: of several
    heads the logits. Else the features under the first folded prompt are.
    """
    if path.suffix == ".xml":
        _attach_openvino(path, heads)
    else:
        _attach_onnx(path, heads, adapt)


def _attach_onnx(path: Path, heads: Sequence[Head], adapt: bool) -> None:
    model = ir.load(path)
    graph = model.graph
    w = Writer(graph.initializers)
    features = graph.outputs[0]
    classes, width = heads[0].weight.shape
    logits, second = write_head(w, features, heads), features
    if len(heads) > 1:
        second = (
            w.op("Identity", FEATURES, logits) if adapt else w.part(FEATURES, features, 0, width)
        )
    width = classes if second is not features and adapt else width
    for value, size in ((logits, classes), (second, width)):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["batch", size])
    graph.extend(w.tape.nodes)
    for initializer in w.tape.initializers:
        graph.register_initializer(initializer)
    graph.outputs.clear()
    graph.outputs.extend([logits, second])
    ir.save(model, path)


def _attach_openvino(path: Path, heads: Sequence[Head]) -> None:
    ov = import_openvino()
    from openvino import opset13 as ops

    body = ov.Core().read_model(path)
    features = body.outputs[0].get_node().input_value(0)
    logits = _openvino_head(ops, features, heads)
    first = _first_part(ops, features, heads)
    for node, name in ((logits, OUTPUT), (first, FEATURES)):
        node.set_friendly_name(name)
        node.output(0).get_tensor().set_names({name})
    whole = ov.Model([logits, first], body.get_parameters(), "main_graph")
    # The body's weights are still read from the file that is to be replaced.
    second = path.with_name(f"whole-{path.name}")
    save_ir(whole, second)
    del body, whole, features, logits, first
    second.with_suffix(".bin").replace(path.with_suffix(".bin"))
    second.replace(path)


def _first_part(ops: Any, features: Any, heads: Sequence[Head]) -> Any:
    """Features under the first folded prompt `[batch, D]`, of `[batch, P D]`."""
    if len(heads) == 1:
        return features.get_node()
    begin, step, axis = (ops.constant(np.array([value])) for value in (0, 1, 1))
    end = ops.constant(np.array([heads[0].weight.shape[1]]))
    return ops.slice(features, begin, end, step, axis)


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
