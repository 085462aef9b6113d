"""Measure a task of a device folder beside a model with the same prompt folded in, in each format.

    python benchmarks device_formats BUNDLE       # with one folded prompt

Both take turns in one process, on one thread, with the image first for one and then for the other.
A ratio is the median over all rounds of processor time, which other programs on the machine do not
share. Int8 is in the first scheme of each runtime, with scales from noise, which costs no time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted, backbone_of
from hgprompt_edge.export.device_graphs import Graphs, OnnxGraphs, OpenVinoGraphs
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.graph.tasks import build_tasks_graph, task_tensors
from hgprompt_edge.export.int8.schemes import onnx_schemes, openvino_schemes
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.openvino_file import export_openvino
from hgprompt_edge.runtime.bench import file_bytes
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine
from shared.rows import results_file, write_rows
from shared.study import make_parser
from shared.timing import timed

RESULTS = results_file("device_formats")
ROUNDS = {1: 60, 8: 15}
"""By images in a batch."""
OPENINGS = 4
"""A model that is opened again lies elsewhere in memory, which moves a ratio by up to 0.03."""
CALIBRATION = 16
GRAPHS: list[Graphs] = [OnnxGraphs(), OpenVinoGraphs()]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path)
    bundle = read_bundle(parser.parse_args().bundle)
    backbone = as_fitted(bundle, backbone_of(bundle))
    rows = []
    for graphs in GRAPHS:
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as name:
                row = measure(bundle, backbone, graphs, precision, Path(name))
            print(row, flush=True)
            rows.append(row)
    write_rows(RESULTS, rows)


def measure(
    bundle: Bundle, backbone: Backbone, graphs: Graphs, precision: str, folder: Path
) -> dict[str, Any]:
    given = task_tensors(bundle.folded, backbone).inputs()
    if precision == "fp32":
        shared, folded = in_float(bundle, backbone, graphs, folder)
    else:
        shared, folded = in_int8(bundle, backbone, graphs, given, folder)
    images = np.random.default_rng(0).integers(
        0, 256, (max(ROUNDS), *bundle.probe_images.shape[1:]), np.uint8
    )
    row: dict[str, Any] = {
        "backbone": backbone.name,
        "runtime": opened(folded).runtime,
        "precision": precision,
        "folded_mb": round(file_bytes(folded) / 1e6, 1),
    }
    found: dict[int, list[float]] = {batch: [] for batch in ROUNDS}
    for _ in range(OPENINGS):
        ours, own = opened(shared), opened(folded)
        for batch, rounds in ROUNDS.items():
            part = images[:batch]
            calls = partial(ours.run, part, given), partial(own.run, part)
            found[batch] += in_pairs(*calls, rounds)
    for batch, ratios in found.items():
        row[f"ratio_{batch}"] = round(float(np.median(ratios)), 3)
        row[f"quartiles_{batch}"] = [round(float(x), 3) for x in np.percentile(ratios, (25, 75))]
    return row


def in_pairs(
    first: Callable[[], object], second: Callable[[], object], rounds: int, warm: int = 5
) -> Iterator[float]:
    """Processor time of the first over the second, in turns; each begins every other round."""
    for turn in range(-warm, rounds):
        calls = (first, second) if turn % 2 else (second, first)
        times = [timed(call)[1] for call in calls]
        if turn >= 0:
            yield times[0] / times[1] if turn % 2 else times[1] / times[0]


def opened(path: Path) -> Engine:
    return OpenVinoEngine(path, 1, cache=False) if path.suffix == ".xml" else OnnxEngine(path, 1)


def in_float(bundle: Bundle, backbone: Backbone, graphs: Graphs, folder: Path) -> tuple[Path, Path]:
    """Graph of the tasks, and the folded model."""
    shared = folder / graphs.files.graph
    graphs.write(build_tasks_graph(backbone, graphs.rewrites), shared)
    folded = shared.with_stem("folded")
    (export_openvino if folded.suffix == ".xml" else export_onnx)(bundle, backbone, folded)
    return shared, folded


def in_int8(
    bundle: Bundle, backbone: Backbone, graphs: Graphs, given: dict[str, Any], folder: Path
) -> tuple[Path, Path]:
    noise = np.random.default_rng(2).integers(
        0, 256, (CALIBRATION, *bundle.probe_images.shape[1:]), np.uint8
    )
    shared, folded = folder / graphs.files.graph, folder / f"folded-{graphs.files.graph}"
    is_ir = shared.suffix == ".xml"
    attention = Attention.PAST if is_ir else Attention.STANDARD
    body, heads = split_head(build_graph(bundle, backbone, Rewrites(attention=attention)))
    both = {shared: build_tasks_graph(backbone, graphs.rewrites), folded: body}
    for path, model in both.items():
        ir.save(model, folder / "float.onnx")
        fed = given if path == shared else {}
        schemes = (
            openvino_schemes(backbone.depth, given=fed)
            if is_ir
            else onnx_schemes(backbone.depth, fed)
        )
        schemes[0].write(folder / "float.onnx", noise, path)
    attach_head(folded, heads)
    return shared, folded


if __name__ == "__main__":
    main()
