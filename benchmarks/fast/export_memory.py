"""Peak memory of prediction: our prompted models beside the unprompted export.

    python benchmarks export_memory

ViT-S at 224 pixels with random weights and `tiny` at 64, 50 deep tokens, batch 1,
one thread. `unprompted` and `naive` are what `torch.onnx.export` writes. Each loads and predicts
in a process of its own, as `hgedge bench` measures it: median and lowest of five, since one model
has peaks 20 to 40 MB apart from start to start in onnxruntime. OpenVINO reads what it has compiled
before from its cache, as from the second start on a device. `bare` is `unprompted` in a process of
the runtime and numpy alone, without this package and its cache: what people run who do not have it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast.export_entries import quantize
from fast.export_models import NAMES, make_backbone, make_bundle, steps, trace
from hgprompt_edge import load_backbone
from hgprompt_edge.runtime.bench import bench
from hgprompt_edge.runtime.cpu import cpu_features
from shared.rows import Rows, results_file, write_rows
from shared.study import make_parser

RESULTS = results_file("export_memory")
REPEATS = 5
BARE = {
    "onnxruntime": """
import sys, numpy, onnxruntime
from pathlib import Path
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
side = session.get_inputs()[0].shape[1]
for _ in range(4):
    session.run(None, {"image": numpy.zeros((1, side, side, 3), numpy.uint8)})
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
""",
    "openvino": """
import sys, numpy, openvino
from pathlib import Path
settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
model = openvino.compile_model(sys.argv[1], "CPU", settings)
side = model.inputs[0].partial_shape[1].get_length()
for _ in range(4):
    model({0: numpy.zeros((1, side, side, 3), numpy.uint8)})
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
""",
}
"""Scripts that load the model they are given, predict, and print the peak in KiB."""


def main() -> None:
    make_parser(__doc__).parse_args()
    print(f"cpu: {' '.join(cpu_features())}")
    rows: Rows = []
    for name in (NAMES["s"], "tiny"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HGEDGE_CACHE"] = folder
            rows += measure(name, Path(folder))
            write_rows(RESULTS, rows)


def measure(name: str, folder: Path) -> Rows:
    backbone = load_backbone("tiny") if name == "tiny" else make_backbone(name)
    models = list(files(backbone, folder))
    rounds = [bench([path for *_, path in models], threads=1, runs=3) for _ in range(REPEATS)]
    rows: Rows = []
    for index, (form, runtime, precision, path) in enumerate(models):
        peaks = [found[index].peak_mb for found in rounds]
        if form == "bare":
            peaks = [bare_peak(runtime, path) for _ in range(REPEATS)]
        row = {
            "model": name,
            "form": form,
            "runtime": runtime,
            "precision": precision,
            "file_mb": round(rounds[0][index].file_mb, 1),
            "peak_mb": round(statistics.median(peaks), 1),
            "lowest_mb": round(min(peaks), 1),
        }
        first = next((r for r in rows if r["runtime"] == runtime), row)
        row["over_unprompted_mb"] = round(row["peak_mb"] - first["peak_mb"], 1)
        rows.append(row)
        print(
            f"{name:22} {form:10} {runtime:11} {precision:5}{row['file_mb']:7.1f} MB on disk"
            f"{row['peak_mb']:8.1f} MB, unprompted {row['over_unprompted_mb']:+.1f}, "
            f"lowest {row['lowest_mb']:.1f} MB",
            flush=True,
        )
    return rows


def bare_peak(runtime: str, path: Path) -> float:
    """Peak memory in MB of a process that has the runtime and numpy alone."""
    found = subprocess.check_output([sys.executable, "-c", BARE[runtime], str(path)])
    return int(found) * 1024 / 1e6


def files(backbone: Any, folder: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Form, runtime, precision and file of each model; `unprompted` comes first in each runtime."""
    import onnx_ir as ir
    import openvino as ov

    from hgprompt_edge.export.graph.inference import build_graph

    plain, prompted = (make_bundle(backbone, mode) for mode in ("none", "deep"))
    traced = {"unprompted": plain, "naive": prompted}
    for form, bundle in traced.items():
        trace(backbone, bundle, folder / f"{form}.onnx")
        yield form, "onnxruntime", "fp32", folder / f"{form}.onnx"
    yield "bare", "onnxruntime", "fp32", folder / "unprompted.onnx"
    for form, on, (runtime, *others) in steps(full=False):
        if form != "hgedge" or others:
            continue
        path = folder / f"{runtime}.onnx"
        ir.save(build_graph(prompted, backbone, on), path)
        if runtime == "onnxruntime":
            yield form, runtime, "fp32", path
            yield form, runtime, "int8", quantize(path, backbone, runtime)
            continue
        for form_, source in (*((f, folder / f"{f}.onnx") for f in traced), (form, path)):
            xml = folder / f"{form_}.xml"
            ov.save_model(ov.convert_model(source), xml, compress_to_fp16=False)
            yield form_, runtime, "fp32", xml
        yield "bare", runtime, "fp32", folder / "unprompted.xml"
        yield form, runtime, "int8", quantize(path, backbone, runtime)


if __name__ == "__main__":
    main()
