"""The part of a graph that is quantized, and the head that goes on top of it in float32.

The head is one row of products, so int8 would gain nothing there. Apart from the body it can be
another one: the one that judges has not seen the images that it judges by.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from hgprompt_edge.device.openvino_engine import import_openvino
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.graph import FEATURES, OUTPUT
from hgprompt_edge.export.ir_file import save_ir

Floats = npt.NDArray[np.float32]
Head = tuple[Floats, Floats]
"""Weight `[D, K]` and bias `[K]`."""


def split_head(model: ir.Model) -> tuple[ir.Model, Head]:
    """Take the head off a graph that `build_graph` wrote; the rest is changed in place."""
    graph = model.graph
    gemm = graph.outputs[0].producer()
    if gemm is None or gemm.op_type != "Gemm":
        raise ValueError("The graph must end in the head's Gemm.")
    features, weight, bias = (cast("ir.Value", value) for value in gemm.inputs)
    head = _floats(weight), _floats(bias)
    graph.outputs.clear()
    graph.remove(gemm, safe=True)
    for value in (weight, bias):
        graph.initializers.pop(str(value.name))
    features.dtype, features.shape = ir.DataType.FLOAT, ir.Shape(["batch", len(head[0])])
    features.name = FEATURES
    graph.outputs.append(features)
    return model, head


def attach_head(path: Path, head: Head, *, keep_features: bool = False) -> None:
    """Put a head on the body in a file, `.onnx` or `.xml`; its output is then the logits.

    With `keep_features`, for ONNX alone, the features stay an output behind them.
    """
    if path.suffix == ".xml":
        _attach_openvino(path, head)
    else:
        _attach_onnx(path, head, keep_features)


def _attach_onnx(path: Path, head: Head, keep_features: bool) -> None:
    proto = onnx.load(path)
    graph, names = proto.graph, ("head.weight", "head.bias")
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for array, name in zip(head, names, strict=True)
    )
    graph.node.append(onnx.helper.make_node("Gemm", [FEATURES, *names], [OUTPUT], name=OUTPUT))
    shape: list[str | int | None] = ["batch", len(head[1])]
    kept = list(graph.output) if keep_features else []
    del graph.output[:]
    logits = onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape)
    graph.output.extend([logits, *kept])
    onnx.save(proto, path)


def _attach_openvino(path: Path, head: Head) -> None:
    ov = import_openvino()
    from openvino import opset13 as ops

    body = ov.Core().read_model(path)
    weight, bias = (ops.constant(np.ascontiguousarray(array)) for array in head)
    features = body.outputs[0].get_node().input_value(0)
    logits = ops.add(ops.matmul(features, weight, False, False), bias, name=OUTPUT)
    logits.output(0).get_tensor().set_names({OUTPUT})
    whole = ov.Model([logits], body.get_parameters(), "main_graph")
    # The body's weights are still read from the file that is to be replaced.
    second = path.with_name(f"whole-{path.name}")
    save_ir(whole, second)
    del body, whole, features, logits
    second.with_suffix(".bin").replace(path.with_suffix(".bin"))
    second.replace(path)


def _floats(value: ir.Value) -> Floats:
    if value.const_value is None:
        raise UserError(f"the head's {value.name} is not a constant; this graph cannot be int8")
    return np.array(value.const_value.numpy(), np.float32)
