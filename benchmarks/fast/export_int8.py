"""What the ways to int8 in OpenVINO cost in time, and what one image at a time does in onnxruntime.

    python benchmarks export_int8

Schemes of OpenVINO, with the rest in float32 and in bfloat16: ViT-S at 224 pixels with random
weights and 50 deep prompt tokens, batch 1, one thread, all in turns; ratios of medians to fp32
`unprompted` in OpenVINO and fp32 `naive` in onnxruntime.

Dynamic quantization of onnxruntime scales a batch alike, so that an image's class would depend on
the others; its models are given one image after the other. 16 images run so, in one batch as
onnxruntime by itself would, and with static scales, which need no such care; random prompts and
heads. All are calibrated on noise: for speed, not for accuracy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fast.export_entries import Models, Run, files, in_onnxruntime, in_openvino
from fast.export_models import make_bundle
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.int8.schemes import onnx_schemes, openvino_schemes
from hgprompt_edge.runtime.cpu import cpu_features
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import computes_bf16
from shared.rows import Rows, results_file, write_rows
from shared.study import make_parser
from shared.timing import in_turns

BACKBONES, IMAGES = ("tiny", "dinov2-small"), 16
"""For one image at a time."""
ROUNDS = 40


def main() -> None:
    make_parser(__doc__).parse_args()
    cpu = {"cpu_features": " ".join(cpu_features())}
    for name, rows in (("int8_batch", batch_rows()), ("export_int8", scheme_rows())):
        write_rows(results_file(name), [row | cpu for row in rows])
        print(*rows, sep="\n")


def scheme_rows() -> Rows:
    """Milliseconds of each scheme, and their ratios to the two that people export."""
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(Models("s", "deep", Path(folder), full=False))
        pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        seconds = in_turns({key: partial(run, pixels) for key, run in runs.items()}, ROUNDS)
    unprompted, naive = seconds.pop(("unprompted", "f32")), seconds.pop(("naive", "f32"))
    return [
        {
            "scheme": scheme,
            "rest": rest,
            "p50_ms": round(1e3 * median, 3),
            "ratio_unprompted": round(median / unprompted, 4),
            "ratio_naive": round(median / naive, 4),
        }
        for (scheme, rest), median in seconds.items()
    ]


def make_runs(models: Models) -> dict[tuple[str, str], Run]:
    """Ready to run, by scheme and by the precision of what it leaves in float."""
    graph = dict(files(models, "openvino"))["hgedge"]
    body = graph.with_suffix(".body.onnx")
    ir.save(split_head(ir.load(graph))[0], body)
    runs = {
        ("unprompted", "f32"): in_openvino(models.traced("unprompted")),
        ("naive", "f32"): in_onnxruntime(models.traced("naive")),
    }
    noise = np.random.default_rng(2).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    for index, scheme in enumerate(openvino_schemes(models.backbone.depth)):
        path = graph.with_suffix(f".{index}.xml")
        scheme.write(body, noise, path)
        for rest in ("f32", "bf16") if computes_bf16() else ("f32",):
            runs[scheme.name, rest] = in_openvino(path, rest)
    return runs


def batch_rows() -> Rows:
    """Milliseconds for 16 images of each backbone."""
    rows: Rows = []
    for name in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, Path(folder))
    return rows


def measure(name: str, folder: Path) -> Rows:
    """Milliseconds for 16 images, and their ratio to the dynamic model in one batch."""
    backbone = load_backbone(name)
    graph = build_graph(
        make_bundle(backbone, "deep"), backbone, Rewrites(attention=Attention.STANDARD)
    )
    body, head = split_head(graph)
    ir.save(body, folder / "float.onnx")
    side = backbone.image_size
    noise = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    runs: dict[str, Callable[[], object]] = {}
    for scheme in onnx_schemes(backbone.depth)[:2]:
        path = folder / f"{scheme.name}.onnx"
        scheme.write(folder / "float.onnx", noise[:4], path)
        attach_head(path, head)
        raw, engine = in_onnxruntime(path), OnnxEngine(path, 1)
        if scheme.name == "dynamic":
            runs["dynamic, one batch"] = lambda raw=raw: raw(noise)
            runs["dynamic, one at a time"] = lambda engine=engine: engine.run(noise)
        else:
            runs["static, one batch"] = lambda engine=engine: engine.run(noise)
    medians = in_turns(runs, ROUNDS)
    base = medians["dynamic, one batch"]
    return [
        {
            "backbone": name,
            "how": key,
            "p50_ms": round(1e3 * median, 1),
            "ratio": round(median / base, 3),
        }
        for key, median in medians.items()
    ]


if __name__ == "__main__":
    main()
