"""The entries of `benchmarks/export.py`: models in a runtime and a precision, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fast.export_models import (
    NAMES,
    make_backbone,
    make_bundle,
    products,
    steps,
    token_module,
    trace,
)
from hgprompt_edge.runtime.cpu import cpu_features

Run = Callable[[Any], Any]
INT8_FORMS = {
    "onnxruntime": ("unprompted", "naive", "folded", "+class_row", "+affine", "+biases",
                    "+absorbed", "+joined", "hgedge", "products"),
    "openvino": ("unprompted", "naive", "folded", "+absorbed", "hgedge", "products"),
}  # fmt: skip
"""onnxruntime does not quantize behind its own operators; NNCF takes up to a minute each."""


@dataclass
class Entry:
    """A model of a group, ready to run: `run` takes pixels and gives logits."""

    form: str
    runtime: str
    precision: str
    run: Run
    gflop: float | None = None


@dataclass
class Models:
    """Files of one backbone and one kind of prompt, written when a group first needs them."""

    model: str
    prompt: str
    folder: Path
    full: bool

    def __post_init__(self) -> None:
        self.backbone = make_backbone(NAMES[self.model])
        self.plain, self.prompted = (make_bundle(self.backbone, m) for m in ("none", self.prompt))
        self.gflop = 0.0

    def traced(self, form: str) -> Path:
        """Write what `torch.onnx.export` makes of `unprompted` or `naive`."""
        path = self.folder / f"{form}.onnx"
        if not path.exists():
            trace(self.backbone, self.plain if form == "unprompted" else self.prompted, path)
        return path

    def ours(self, form: str, on: Any) -> Path:
        """Write our graph with some rewrites on."""
        import onnx_ir as ir

        from hgprompt_edge.export.graph.inference import build_graph

        path = self.folder / f"{form}-{on.attention.value}.onnx"
        if not path.exists():
            ir.save(build_graph(self.prompted, self.backbone, on), path)
        return path

    def products(self) -> Path:
        """Write the roofline."""
        path = self.folder / "products.onnx"
        if not path.exists():
            self.gflop = products(self.backbone, self.prompt, path) / 1e9
        return path


def make_entries(models: Models, runtime: str, precision: str) -> Iterator[Entry]:
    """Models of a group, and the two that all are compared with."""
    naive = ("onnxruntime", "fp32")
    if (runtime, precision) != naive:
        yield Entry("naive", *naive, in_onnxruntime(models.traced("naive")))
    if runtime in ("pytorch", "torch.compile"):
        yield from pytorch_entries(models, runtime, precision)
        return
    if precision != "fp32":
        run = load(models, models.traced("unprompted"), runtime, "fp32")
        yield Entry("unprompted", runtime, "fp32", run)
    for form, path in files(models, runtime):
        if precision == "int8" and form not in INT8_FORMS[runtime]:
            continue
        gflop = models.gflop if form == "products" else None
        yield Entry(form, runtime, precision, load(models, path, runtime, precision), gflop)


def files(models: Models, runtime: str) -> Iterator[tuple[str, Path]]:
    for form in ("unprompted", "naive"):
        yield form, models.traced(form)
    for form, on, runtimes in steps(models.full):
        if runtime in runtimes:
            yield form, models.ours(form, on)
    yield "products", models.products()


def load(models: Models, path: Path, runtime: str, precision: str) -> Run:
    if precision == "int8":
        path = quantize(path, models.backbone, runtime)
    if runtime == "openvino":
        # As predict does it: where a CPU has AMX, int8 models leave the rest to bfloat16.
        rounded = precision == "bf16" or (precision == "int8" and "amx_bf16" in cpu_features())
        return in_openvino(path, "bf16" if rounded else "f32")
    return in_onnxruntime(path)


def pytorch_entries(models: Models, runtime: str, precision: str) -> Iterator[Entry]:
    """`hgedge` is the prefix form there."""
    import torch

    from hgprompt_edge.backbones.forward import features_prefix, normalize

    prompt = torch.tensor(models.prompted.prompt)
    head = torch.tensor(models.prompted.head.weight).T.contiguous()

    def prefix(images: Any) -> Any:
        x = normalize(images, models.prompted.preprocessing)
        return features_prefix(models.backbone.model, x, prompt) @ head

    forms = {
        "unprompted": token_module(models.backbone, models.plain),
        "naive": token_module(models.backbone, models.prompted),
        "hgedge": prefix,
    }
    for kind in dict.fromkeys(("fp32", precision)):
        for form, module in forms.items():
            if kind == precision or form == "unprompted":
                compiled = runtime == "torch.compile"
                run = in_pytorch(module, compiled=compiled, bf16=kind == "bf16")
                yield Entry(form, runtime, kind, run)


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
