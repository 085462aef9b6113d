"""Speed of prompted models by form, runtime and precision, against the two that people export.

    python benchmarks/export.py --quick --json export.json     # ViT-S, under ten minutes
    python benchmarks/export.py --json benchmarks/results/export.json

ViT at 224 pixels with random weights and 50 prompt tokens; batch 1, one thread. `unprompted` and
`naive` (prompt tokens in the sequence) are what `torch.onnx.export` writes; the other forms are
ours, from `folded` (constant keys and values, nothing else) on, one rewrite added a row, to
`hgedge`, what `hgedge export` writes. All models of a group take turns, so that whatever else the
machine does hits all of them; ratios are of medians: to fp32 `unprompted` in the same runtime, and
to fp32 `naive` in onnxruntime. `max_abs_diff` is to PyTorch's token form, in logits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

TOKENS, CLASSES = 50, 10
NAMES = {"ti": "vit_tiny_patch16_224", "s": "vit_small_patch16_224", "b": "vit_base_patch16_224"}
ONE = {"deep": "learned", "shallow": "learned", "none": "none"}
Run = Callable[[Any], Any]


@dataclass
class Entry:
    """A model of a group, ready to run: `run` takes pixels and gives logits."""

    form: str
    runtime: str
    precision: str
    run: Run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ViT-S alone, without PyTorch")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--prompts", nargs="*", default=["deep", "shallow"])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    from hgprompt_edge.device.cpu import cpu_features

    features = cpu_features()
    print(f"cpu: {' '.join(features)}")
    rows: list[dict[str, Any]] = []
    for model in ["s"] if options.quick else options.models:
        for prompt in options.prompts:
            rows += measure(model, prompt, options.quick, options.rounds)
            if options.json:
                write(options.json, features, rows)


def write(path: Path, features: list[str], rows: list[dict[str, Any]]) -> None:
    import onnxruntime
    import openvino

    versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}
    document = {"cpu_features": features, "versions": versions, "gemm": gemm(), "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def measure(model: str, prompt: str, quick: bool, rounds: int) -> list[dict[str, Any]]:
    """One group: a backbone and a kind of prompt, in all forms."""
    from hgprompt_edge.export.verify import reference_logits

    backbone = make_backbone(NAMES[model])
    plain, prompted = (make_bundle(backbone, mode) for mode in ("none", prompt))
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    reference = {
        form: reference_logits(bundle, backbone, pixels)
        for form, bundle in (("unprompted", plain), ("", prompted))
    }
    with tempfile.TemporaryDirectory() as folder:
        entries = list(make_entries(backbone, plain, prompted, Path(folder), model, quick))
    medians = time_in_turns([entry.run for entry in entries], pixels[:1], rounds)
    by_key = {(e.form, e.runtime, e.precision): t for e, t in zip(entries, medians, strict=True)}
    naive = by_key["naive", "onnxruntime", "fp32"]
    rows = []
    for entry, median in zip(entries, medians, strict=True):
        expected = reference.get(entry.form, reference[""])
        found = np.concatenate([entry.run(pixels[i : i + 1]) for i in range(len(pixels))])
        difference = float(np.abs(found - expected).max())
        base = by_key["unprompted", entry.runtime, "fp32"]
        row = {
            "model": NAMES[model],
            "prompt": prompt,
            "form": entry.form,
            "runtime": entry.runtime,
            "precision": entry.precision,
            "p50_ms": round(median * 1e3, 3),
            "ratio_unprompted": round(median / base, 4),
            "ratio_naive": round(median / naive, 4),
            "max_abs_diff": difference,
            "max_abs_logit": float(np.abs(expected).max()),
        }
        rows.append(row)
        print(
            f"{model:2} {prompt:7} {entry.form:11} {entry.runtime:13} {entry.precision:5}"
            f"{row['p50_ms']:9.2f} ms  / unprompted {row['ratio_unprompted']:.3f}"
            f"  / naive {row['ratio_naive']:.3f}  difference {difference:.1e}",
            flush=True,
        )
    return rows


def time_in_turns(runs: list[Run], pixels: Any, rounds: int) -> list[float]:
    """Median seconds of each."""
    times = np.zeros((rounds, len(runs)))
    for run in runs:
        run(pixels)
    for index in range(rounds):
        order = np.random.default_rng(index).permutation(len(runs))  # no one always follows another
        for which in order:
            began = time.perf_counter()
            runs[which](pixels)
            times[index, which] = time.perf_counter() - began
    return [float(median) for median in np.median(times, axis=0)]


def make_entries(
    backbone: Any, plain: Any, prompted: Any, folder: Path, model: str, quick: bool
) -> Iterator[Entry]:
    import onnx_ir as ir

    from hgprompt_edge.export.graph import build_graph

    traced = {form: folder / f"{form}.onnx" for form in ("unprompted", "naive")}
    trace(backbone, plain, traced["unprompted"])
    trace(backbone, prompted, traced["naive"])
    for form, path in traced.items():
        yield Entry(form, "onnxruntime", "fp32", in_onnxruntime(path))
        yield Entry(form, "openvino", "fp32", in_openvino(path))
    for form, on, runtimes in steps(full=model == "s"):
        path = folder / f"{form}.onnx"
        ir.save(build_graph(prompted, backbone, on), path)
        if "onnxruntime" in runtimes:
            yield Entry(form, "onnxruntime", "fp32", in_onnxruntime(path))
        if "openvino" in runtimes:
            yield Entry(form, "openvino", "fp32", in_openvino(path))
        if form == "hgedge" and "openvino" in runtimes:
            yield Entry(form, "openvino", "bf16", in_openvino(path, "bf16"))
        if form == "hgedge" and "onnxruntime" in runtimes:
            yield from quantized(path, backbone.depth)
    if not quick:
        yield from in_pytorch(backbone, plain, prompted)


def quantized(path: Path, depth: int) -> Iterator[Entry]:
    """Make what export tries first, calibrated on noise: for speed, not for accuracy."""
    from hgprompt_edge.export.schemes import onnx_schemes, openvino_schemes

    noise = np.random.default_rng(2).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    onnx_path, xml = path.with_name("int8.onnx"), path.with_name("int8.xml")
    onnx_schemes(depth)[0].write(path, noise, onnx_path)
    yield Entry("hgedge", "onnxruntime", "int8", in_onnxruntime(onnx_path))
    if find_spec("nncf") is None:
        print("nncf is not installed: no int8 row for OpenVINO", file=sys.stderr)
        return
    openvino_schemes(depth)[0].write(path, noise, xml)
    yield Entry("hgedge", "openvino", "int8", in_openvino(xml))


def steps(full: bool) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Forms of ours: the rewrites one after the other, then other ways to write attention."""
    from hgprompt_edge.export.rewrites import NO_REWRITES, Attention, Rewrites

    both = ("onnxruntime", "openvino")
    if full:
        on = NO_REWRITES
        yield "folded", on, both
        for name in ("class_row", "affine", "biases", "absorbed"):
            on = replace(on, **{name: True})
            yield f"+{name}", on, both
        yield "+joined", replace(on, joined=True), both
        yield "+fused", replace(on, attention=Attention.FUSED), ("onnxruntime",)
        yield "+standard", replace(on, attention=Attention.STANDARD), ("openvino",)
    yield "hgedge", Rewrites(attention=Attention.STANDARD), ("onnxruntime",)
    yield "hgedge", Rewrites(attention=Attention.PAST), ("openvino",)


def make_backbone(name: str) -> Any:
    import timm
    import torch

    from hgprompt_edge.vit.backbone import wrap_backbone

    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=224)
    with torch.no_grad():  # away from the neutral start, so that a wrong folding shows
        for key, parameter in vit.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return wrap_backbone(name, vit)


def make_bundle(backbone: Any, mode: str) -> Any:
    from hgprompt_edge.bundle import Bundle

    rng = np.random.default_rng(0)
    layers = {"deep": backbone.depth, "shallow": 1, "none": 0}[mode]
    prompt = rng.normal(size=(layers, TOKENS, backbone.embed_dim)).astype(np.float32)
    head = rng.normal(size=(CLASSES, backbone.embed_dim)).astype(np.float32)
    return Bundle(
        task="bench",
        classes=tuple(str(i) for i in range(CLASSES)),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        preprocessing=backbone.preprocessing,
        mode="shallow" if mode == "shallow" else "deep",
        choice=ONE[mode],
        prompt=prompt if layers else None,
        weights=np.ones(1, np.float32),
        learned_weights=np.ones(1, np.float32),
        head_weight=head,
        head_bias=np.zeros(CLASSES, np.float32),
        sources=(),
        table=(),
        objective={},
        probe_images=np.zeros((0, 224, 224, 3), np.uint8),
        probe_logits=np.zeros((0, CLASSES), np.float32),
    )


def trace(backbone: Any, bundle: Any, path: Path) -> None:
    """Write what a user exports today: PyTorch's own exporter on the token form."""
    import contextlib
    import io

    import torch

    with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        program = torch.onnx.export(
            token_module(backbone, bundle),
            (torch.zeros(2, 224, 224, 3, dtype=torch.uint8),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    program.save(path)


def token_module(backbone: Any, bundle: Any) -> Any:
    """Make the token form a module, written so that tracing keeps the batch dynamic."""
    import torch

    from hgprompt_edge.vit.forward import normalize, prepare_tokens

    model, start = backbone.model, int(backbone.model.num_prefix_tokens)
    prompt = None if bundle.prompt is None else torch.tensor(bundle.prompt)
    head = torch.tensor(bundle.head_weight).T.contiguous()

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = model

        def forward(self, image: Any) -> Any:
            x = prepare_tokens(self.vit, normalize(image, bundle.preprocessing))
            taken = start
            for layer, block in enumerate(self.vit.blocks):
                if prompt is not None and layer < len(prompt):
                    given = prompt[layer].unsqueeze(0).expand(image.shape[0], -1, -1)
                    x = torch.cat([x[:, :start], given, x[:, taken:]], dim=1)
                    taken = start + TOKENS
                x = block(x)
            if prompt is not None:
                x = torch.cat([x[:, :start], x[:, taken:]], dim=1)
            return self.vit.forward_head(self.vit.norm(x), pre_logits=True) @ head

    return Tokens().eval()


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


def in_pytorch(backbone: Any, plain: Any, prompted: Any) -> Iterator[Entry]:
    """PyTorch on one thread, eager and compiled; `hgedge` is the prefix form there."""
    import torch

    from hgprompt_edge.vit.forward import features_prefix, normalize

    torch.set_num_threads(1)
    prompt, head = torch.tensor(prompted.prompt), torch.tensor(prompted.head_weight).T.contiguous()

    def prefix(images: Any) -> Any:
        x = normalize(images, prompted.preprocessing)
        return features_prefix(backbone.model, x, prompt) @ head

    forms = {
        "unprompted": token_module(backbone, plain),
        "naive": token_module(backbone, prompted),
        "hgedge": prefix,
    }
    for runtime in ("pytorch", "torch.compile"):
        for form, module in forms.items():
            function = torch.compile(module) if runtime == "torch.compile" else module
            yield Entry(form, runtime, "fp32", torch_runner(function))


def torch_runner(function: Any) -> Run:
    import torch

    def run(pixels: Any) -> Any:
        with torch.inference_mode():
            return function(torch.from_numpy(pixels)).numpy()

    return run


def gemm() -> dict[str, float]:
    """GFLOP/s of the largest product of ViT-S, `[197, 384] x [384, 1536]`, in onnxruntime."""
    import onnx_ir as ir

    from hgprompt_edge.export.writer import Writer

    w = Writer()
    x = ir.val("x", ir.DataType.FLOAT, [1, 197, 384])
    y, chain = x, 10
    for index in range(chain):
        up = np.full((384, 1536), 1e-3)
        y = w.linear(f"up{index}", y, up, None)
        y = w.linear(f"down{index}", y, up.T, None)
    graph = ir.Graph(
        [x], [y], nodes=w.tape.nodes, initializers=w.tape.initializers, opset_imports={"": 20}
    )
    with tempfile.TemporaryDirectory() as folder:
        ir.save(ir.Model(graph, ir_version=10), Path(folder) / "gemm.onnx")
        run = in_onnxruntime(Path(folder) / "gemm.onnx")
    seconds = time_in_turns([run], np.zeros((1, 197, 384), np.float32), 40)[0]
    return {"onnxruntime_fp32_gflops": round(chain * 4 * 197 * 384 * 1536 / seconds / 1e9, 1)}


if __name__ == "__main__":
    sys.exit(main())
