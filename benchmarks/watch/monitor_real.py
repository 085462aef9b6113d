"""Count images until `hgedge monitor` finds a real shift, with fitted models.

    python benchmarks monitor_real --data ../shared/assets/datasets --bundles DIR
    python benchmarks monitor            # docs/results/monitor.md from all rows

`--bundles` holds SET.hgbundle on `dinov2-small`, a minute each:

    hgedge fit --task SET --data DATA/SET --sources none --output DIR/SET.hgbundle

A set's images are followed by those of another set with the same classes: another exposure, another
style, signs instead of fonts. Streams are those of `python benchmarks monitor`; the corruptions are
measured with the same models.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge import export_onnx, load_backbone
from hgprompt_edge.data.conditions import SHIFTS, corrupt
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitored import watchable
from shared.device_study import device_parser, in_parts, load_study, load_study_task
from shared.rows import Rows, add_rows, read_rows, results_file, select
from shared.targets import BACKBONE
from watch.monitor import (
    BEFORE,
    REPEATS,
    SEVERITY,
    SHIFTED,
    STREAMS,
    Floats,
    changing,
    watch_monitor,
)

RESULTS = results_file("monitor_real")
REAL = {
    "magnetic-tile": ("magnetic-tile-dark", "magnetic-tile-bright"),
    "pacs-photo": ("pacs-art-painting", "pacs-cartoon", "pacs-sketch"),
    "chars34-scene": ("chars34-poor", "chars34-font"),
}
ORDERS = {"random order": False, "class by class": True}
"""Of streams in which nothing changes but, perhaps, the mix of classes."""


def main() -> None:
    parser = device_parser(__doc__)
    parser.set_defaults(tasks=list(REAL))
    options = parser.parse_args()
    for name in options.tasks:
        if not select(read_rows(RESULTS), set=name):
            add_rows(RESULTS, *measure(name, options))


def measure(name: str, options: argparse.Namespace) -> Rows:
    """All rows of a set: clean streams, real shifts, corruptions."""
    torch.set_num_threads(1)
    bundle, fitted, task = load_study(name, load_backbone(BACKBONE), options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        export_onnx(bundle, fitted, path)
        predictor = Predictor(path, threads=1)
    reference = watchable(predictor)
    rng = np.random.default_rng(0)
    test = in_parts(predictor.features, task.test.pixels)
    streams = [test[changing(task.test.labels, rng)] for _ in range(STREAMS)]
    common = {"set": name, "kept": bundle.choice}
    until = [watch_monitor(reference, stream) for stream in streams]
    rows: Rows = [{**common, "shift": "clean", "real": False, "until": until}]
    for order, by_class in ORDERS.items():
        until = once(reference, test, task.test.labels, by_class)
        rows.append({**common, "shift": order, "real": False, "until": until})
    for other in REAL[name]:
        pixels = load_study_task(other, fitted, options.data).test.pixels
        some = pixels[rng.permutation(len(pixels))[:SHIFTED]]
        found = until_alarm(predictor, test, some, rng)
        rows.append({**common, "shift": other, "real": True, "until": found})
    some = task.test.pixels[rng.permutation(len(test))[:SHIFTED]]
    for shift in SHIFTS:
        found = until_alarm(predictor, test, corrupt(some, shift, SEVERITY), rng)
        rows.append({**common, "shift": shift, "real": False, "until": found})
    return rows


def once(
    reference: Reference, test: Floats, labels: npt.NDArray[np.int64], by_class: bool
) -> list[int | None]:
    """Images until an alarm in streams of each test image once; no alarm would be right."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(STREAMS):
        order = rng.permutation(len(test))
        if by_class:
            turns = rng.permutation(labels.max() + 1)
            order = order[np.argsort(turns[labels[order]], kind="stable")]
        found.append(watch_monitor(reference, test[order]))
    return found


def until_alarm(
    predictor: Predictor, test: Floats, pixels: npt.NDArray[np.uint8], rng: np.random.Generator
) -> list[int | None]:
    """Images of the shift until the alarm; below 1 it came before the shift."""
    after = in_parts(predictor.features, pixels)
    found = []
    for _ in range(REPEATS):
        before = test[rng.integers(0, len(test), BEFORE)]
        stream = np.concatenate([before, rng.permutation(after), rng.permutation(after)])
        at = watch_monitor(watchable(predictor), stream)
        found.append(None if at is None else at - BEFORE)
    return found


if __name__ == "__main__":
    main()
