"""What the ways to int8 in OpenVINO cost in time, with the rest in float32 and in bfloat16.

    python benchmarks export_int8

ViT-S at 224 pixels with random weights and 50 deep prompt tokens, batch 1, one thread, all in
turns; ratios of medians to fp32 `unprompted` in OpenVINO and fp32 `naive` in onnxruntime.
Calibrated on noise: for speed, not for accuracy.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fast.export_entries import Models, Run, files, in_onnxruntime, in_openvino
from fast.speed_report import schemes_table
from hgprompt_edge.export.graph.body import split_head
from hgprompt_edge.export.int8.schemes import openvino_schemes
from hgprompt_edge.runtime.cpu import cpu_features
from hgprompt_edge.runtime.engines.openvino_engine import computes_bf16
from shared.rows import results_file, write_rows
from shared.study import make_parser
from shared.timing import in_turns

RESULTS = results_file("export_int8")
ROUNDS = 40


def main() -> None:
    make_parser(__doc__).parse_args()
    print(f"cpu: {' '.join(cpu_features())}")
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(Models("s", "deep", Path(folder), full=False))
        pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
        seconds = in_turns({key: partial(run, pixels) for key, run in runs.items()}, ROUNDS)
    unprompted, naive = seconds.pop(("unprompted", "f32")), seconds.pop(("naive", "f32"))
    rows = [
        {
            "scheme": scheme,
            "rest": rest,
            "p50_ms": round(1e3 * median, 3),
            "ratio_unprompted": round(median / unprompted, 4),
            "ratio_naive": round(median / naive, 4),
            "cpu_features": " ".join(cpu_features()),
        }
        for (scheme, rest), median in seconds.items()
    ]
    print(schemes_table(rows))
    write_rows(RESULTS, rows)


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


if __name__ == "__main__":
    main()
