"""What it costs to give int8 models of onnxruntime their images one at a time.

    python benchmarks int8_batch

Dynamic quantization scales a batch alike, so that an image's class would depend on the others; its
models are given one image after the other. Here 16 images run so, in one batch as onnxruntime by
itself would, and with static scales, which need no such care. All in turns in one process, one
thread; random prompts and heads, calibrated on noise: for speed, not for accuracy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fast.export_entries import in_onnxruntime
from fast.export_models import make_bundle
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.int8.schemes import onnx_schemes
from hgprompt_edge.runtime.cpu import cpu_features
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from shared.rows import Rows, results_file, write_rows
from shared.study import make_parser
from shared.timing import in_turns

RESULTS = results_file("int8_batch")
BACKBONES = ("tiny", "dinov2-small")
IMAGES, ROUNDS = 16, 30


def main() -> None:
    make_parser(__doc__).parse_args()
    features = " ".join(cpu_features())
    rows: Rows = []
    for name in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            rows += [{**row, "cpu_features": features} for row in measure(name, Path(folder))]
    for row in rows:
        print(row)
    write_rows(RESULTS, rows)


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
