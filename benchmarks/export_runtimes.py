"""Runtimes of `benchmarks/export.py`: a file or module to a function from pixels to logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]


def in_onnxruntime(path: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def in_openvino(path: Path, precision: str = "f32") -> Run:
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(pixels: Any) -> Any:
        request.infer({0: pixels})
        return request.get_output_tensor(0).data.copy()

    return run


def in_pytorch(module: Any, *, compiled: bool, bf16: bool) -> Run:
    """PyTorch on one thread."""
    import torch

    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # all modules of a process count as one function
    function = torch.compile(module) if compiled else module

    def run(pixels: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return function(torch.from_numpy(pixels)).float().numpy()

    return run


def quantize(graph: Path, backbone: Any, runtime: str) -> Path:
    """Quantize as export tries first, calibrated on noise: for speed, not for accuracy."""
    import onnx_ir as ir

    from hgprompt_edge.export.graph.body import attach_head, split_head
    from hgprompt_edge.export.int8.schemes import onnx_schemes, openvino_schemes

    size = backbone.image_size
    noise = np.random.default_rng(2).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    if runtime == "openvino":
        path, scheme = graph.with_suffix(".int8.xml"), openvino_schemes(backbone.depth)[0]
    else:
        path, scheme = graph.with_suffix(".int8.onnx"), onnx_schemes(backbone.depth)[0]
    model = ir.load(graph)
    if model.graph.outputs[0].producer().op_type != "Gemm":  # not one of our graphs
        scheme.write(graph, noise, path)
        return path
    body, head = split_head(model)
    ir.save(body, graph.with_suffix(".body.onnx"))
    scheme.write(graph.with_suffix(".body.onnx"), noise, path)
    attach_head(path, head)
    return path
