"""Measure a device folder beside models of one task each: latency, memory, size, time to switch.

    python benchmarks device_folder BUNDLE...     # of one backbone; two are enough

Latency is in turns with the folded model, on one thread, batch 1 and 8. Memory is resident in a
process of its own: one with a folder of ten tasks (copies under other names), one with ten models.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.fitted import backbone_of
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.predictor import Predictor
from shared.rows import add_rows, results_file
from shared.study import make_parser

RESULTS = results_file("device_folder")
TASKS, ROUNDS = 10, 60
RESIDENT = """
import sys, numpy as np
from hgprompt_edge.runtime.predictor import Predictor
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS"))
kind, paths = sys.argv[1], sys.argv[2:]
first = Predictor(paths[0], 1)
image = np.zeros((1, *first.metadata.probe()[0].shape[1:]), np.uint8)
first.logits(image)
one = resident()
if kind == "folder":
    tasks = [first.task(name) for name in first.tasks]
else:
    tasks = [Predictor(path, 1) for path in paths[1:]]
for task in tasks:
    task.logits(image)
print(one, resident())
"""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    options = parser.parse_args()
    bundles = [read_bundle(path) for path in options.bundles]
    with tempfile.TemporaryDirectory() as name:
        add_rows(RESULTS, measure(bundles, Path(name)))


def measure(bundles: list[Bundle], folder: Path) -> dict[str, object]:
    backbone = backbone_of(bundles[0])
    named = [replace(bundles[i % len(bundles)], task=f"task{i}") for i in range(TASKS)]
    device = folder / "device"
    export_device([Source(Path(b.task), b) for b in named], backbone, device)
    models = []
    for bundle in named:
        models.append(folder / f"{bundle.task}.onnx")
        export_onnx(bundle, backbone, models[-1])
    row: dict[str, object] = {"backbone": backbone.name, "tasks": TASKS}
    row["task_bytes"] = [(device / f"task{i}.hgtask").stat().st_size for i in range(len(bundles))]
    row |= latency(device, models[0])
    row |= switching(device)
    shared, alone = resident("folder", [device]), resident("models", models)
    row["resident_kb"] = {"folder": shared, "models": alone}
    return row


def latency(device: Path, model: Path) -> dict[str, object]:
    ours, folded = Predictor(device, 1).task("task0"), Predictor(model, 1)
    images = folded.metadata.probe()[0]
    found = {}
    for batch in (1, 8):
        ratios = []
        for _ in range(ROUNDS):
            times = []
            for predictor in (ours, folded):
                start = time.perf_counter()
                predictor.logits(images[:batch])
                times.append(time.perf_counter() - start)
            ratios.append(times[0] / times[1])
        found[f"latency_ratio_{batch}"] = round(statistics.median(ratios), 3)
    return found


def switching(device: Path) -> dict[str, object]:
    first = Predictor(device, 1)
    times = []
    for name in (*first.tasks[1:], *first.tasks):
        start = time.perf_counter()
        first.task(name)
        times.append(1e3 * (time.perf_counter() - start))
    new = len(first.tasks) - 1
    return {
        "switch_first_ms": round(float(np.median(times[:new])), 3),
        "switch_ms": round(float(np.median(times[new:])), 3),
    }


def resident(kind: str, paths: list[Path]) -> list[int]:
    command = [sys.executable, "-c", RESIDENT, kind, *map(str, paths)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(word) for word in out.split()]


if __name__ == "__main__":
    main()
