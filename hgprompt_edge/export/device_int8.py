"""A device folder in int8: scales from the images of all tasks, and each task held to its bound."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.tasks.device_files import SUFFIX, BackboneFacts
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data.task import Task
from hgprompt_edge.export.device_folder import PROBES, add_task, export_device
from hgprompt_edge.export.device_graphs import Graphs, OnnxGraphs, OpenVinoGraphs
from hgprompt_edge.export.device_quantized import Quantized
from hgprompt_edge.export.device_sources import Source, check_addition
from hgprompt_edge.export.graph.tasks import task_tensors
from hgprompt_edge.export.int8.quantize import MAX_DROP, Int8, Measured
from hgprompt_edge.export.int8.schemes import onnx_schemes, openvino_schemes
from hgprompt_edge.export.int8.search import (
    MAX_CALIBRATION,
    MIN_CALIBRATION,
    Report,
    calibration_images,
    try_schemes,
)
from hgprompt_edge.export.int8.tasks import (
    TaskJudge,
    check_holds,
    judge_of,
    measured,
    quantization_entry,
)
from hgprompt_edge.export.int8.trials import trial_of
from hgprompt_edge.export.verify import open_to_verify
from hgprompt_edge.runtime.device_folder import folder_graph
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.other_cpu import describe_cpu


def export_device_int8(
    sources: Sequence[Source],
    images: Sequence[Task],
    backbone: Backbone,
    folder: Path,
    graphs: Graphs,
    *,
    max_drop: float = MAX_DROP,
    accept_unproven: bool = False,
    report: Report | None = None,
) -> dict[str, Int8]:
    """Write a device folder in int8, with the accuracy of each task held against float32.

    Parameters
    ----------
    sources, backbone, folder
        As for `export_device`.
    images
        Of each source, those of its fit. The training images of all calibrate.
    graphs
        In which format; its precision is `int8`.
    max_drop, accept_unproven, report
        As for `export_int8`; the bound holds for each task.

    Raises
    ------
    UserError
        As of `export_device`; or the images are not those of the fit, or too few.
    CheckError
        A task loses too much, or its images are too few to prove that it does not; says which.
        Nothing is written.
    """
    results: dict[str, Measured] = {}

    def quantize(model: ir.Model, graph: Path, shared: Backbone) -> Quantized:
        judges = [
            judge_of(
                folder / f"{source.bundle.task}{SUFFIX}",
                source.bundle,
                task,
                task_tensors(source.bundle.folded, shared),
                shared,
                graphs.rewrites,
            )
            for source, task in zip(sources, images, strict=True)
        ]
        engine = _write(judges, model, graph, graphs, results, max_drop, accept_unproven, report)
        digest = _digest(graph, graph.with_name(graphs.files.weights))
        entries = {
            judge.bundle.task: _entries(judge, engine, results[judge.bundle.task], max_drop, digest)
            for judge in judges
        }
        references = {judge.bundle.task: judge.reference(engine) for judge in judges}
        return Quantized(digest, entries, references)

    found = export_device(sources, backbone, folder, graphs, quantize=quantize)
    return {name: Int8(**vars(results[name]), verification=found[name]) for name in found}


def add_task_int8(
    source: Source,
    images: Task,
    backbone: Backbone,
    folder: Path,
    facts: BackboneFacts,
    *,
    max_drop: float = MAX_DROP,
    accept_unproven: bool = False,
) -> Int8:
    """Add a bundle to a device folder in int8, if it keeps its accuracy on that backbone.

    Raises
    ------
    UserError
        As of `add_task`; or the images are not those of the fit, or too few.
    CheckError
        The task loses too much, or its images are too few to prove that it does not. Nothing is
        written.
    """
    bundle = source.bundle
    check_addition(source, folder, facts)
    graph = folder_graph(folder)
    shared = replace(backbone, preprocessing=bundle.preprocessing).with_pooling(facts.pooling)
    on = (OpenVinoGraphs() if graph.suffix == ".xml" else OnnxGraphs()).rewrites
    path = folder / f"{bundle.task}{SUFFIX}"
    given = task_tensors(bundle.folded, shared)
    judge = judge_of(path, bundle, images, given, shared, on)
    engine = open_to_verify(graph)
    pairs = judge.measure(engine)
    trial = trial_of("this backbone", pairs, judge.held.accuracy)
    check_holds([judge], [(trial,)], [pairs], max_drop, accept_unproven)
    result = measured(judge, engine, [trial], pairs, max_drop)
    more = _entries(judge, engine, result, max_drop, facts.quantized_sha256)
    source = replace(source, bundle=replace(bundle, reference=judge.reference(engine)))
    checked = add_task(source, backbone, folder, facts, more)
    return Int8(**vars(result), verification=checked)


def _write(
    judges: Sequence[TaskJudge],
    model: ir.Model,
    graph: Path,
    graphs: Graphs,
    results: dict[str, Measured],
    max_drop: float,
    accept_unproven: bool,
    report: Report | None,
) -> Engine:
    """Quantize a graph, put it in its place, and note what each task loses; returns it, opened."""
    most = max(MIN_CALIBRATION, MAX_CALIBRATION // len(judges))
    parts = [calibration_images(judge.images, most) for judge in judges]
    given = [judge.given.inputs() for judge, part in zip(judges, parts, strict=True) for _ in part]
    depth = len(judges[0].given.keys)
    work = Path(tempfile.mkdtemp(dir=graph.parent))
    ir.save(model, work / "float.onnx")
    if graph.suffix == ".xml":
        schemes = openvino_schemes(depth, given=given)
        files = [work / "int8.bin", work / "int8.xml"]
    else:
        schemes = onnx_schemes(depth, given)
        files = [work / "int8.onnx"]
    tried, found = try_schemes(
        schemes,
        work / "float.onnx",
        files,
        np.concatenate(parts),
        [judge.judge for judge in judges],
        max_drop,
        report,
    )
    check_holds(judges, tried, found, max_drop, accept_unproven)
    graphs.take(files[-1], graph)
    engine = open_to_verify(graph)
    for judge, trials, pairs in zip(judges, zip(*tried, strict=True), found, strict=True):
        results[judge.bundle.task] = measured(judge, engine, trials, pairs, max_drop)
    return engine


def _entries(
    judge: TaskJudge, engine: Engine, result: Measured, max_drop: float, backbone: str
) -> Mapping[str, str]:
    """Make what a task's file says of int8; its accuracy is that on one quantized `backbone`."""
    images = judge.bundle.probe_images[:PROBES]
    more = {"backbone": backbone, **describe_cpu(engine, images, judge.given.inputs())}
    return {f"{PREFIX}quantization": quantization_entry(result, max_drop, more)}


def _digest(*files: Path) -> str:
    """Sha256 of a quantized graph and its weights, before metadata are added to it."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
