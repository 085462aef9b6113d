"""Bundles to a device folder: one backbone whose prompt and head are inputs, and a file a task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.tasks.device_files import (
    ADAPT,
    BANK,
    FORMAT,
    SUFFIX,
    BackboneFacts,
    adapts,
    parse_facts,
)
from hgprompt_edge.artifacts.tasks.folder_bank import add_prompts, read_folder_bank
from hgprompt_edge.artifacts.tasks.task_bank import pack_task_bank
from hgprompt_edge.artifacts.tasks.task_file import FORMAT as TASK_FORMAT
from hgprompt_edge.artifacts.tasks.task_file import write_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, FileError, os_reason
from hgprompt_edge.export.device_graphs import Graphs, OnnxGraphs
from hgprompt_edge.export.device_quantized import Quantize, Quantized
from hgprompt_edge.export.device_sources import (
    Source,
    check_addition,
    check_together,
    shared_backbone,
)
from hgprompt_edge.export.device_tasks import (
    PreparedTask,
    check_gradient_of,
    prepare,
    write_adapt_files,
)
from hgprompt_edge.export.graph.tasks import build_tasks_graph
from hgprompt_edge.export.onnx_file import describe
from hgprompt_edge.export.verify import Verification, open_to_verify, verify_engine
from hgprompt_edge.files import atomic_path, atomic_paths, sha256_file
from hgprompt_edge.maths.parity import TOLERANCES
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.device_folder import folder_graph
from hgprompt_edge.runtime.engines.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBES = 2
"""Images that a task file carries to check itself on."""


def export_device(
    sources: Sequence[Source],
    backbone: Backbone,
    folder: Path,
    graphs: Graphs | None = None,
    *,
    quantize: Quantize | None = None,
    adapt: bool = False,
) -> dict[str, Verification]:
    """Write a device folder, proven equal to PyTorch for each task.

    Parameters
    ----------
    sources
        Of one backbone, image size, resize rule and normalisation, and of different names; the
        first is folded into the default model.
    folder
        Made where it is missing; one with other tasks is refused.
    graphs
        In which format; None: ONNX.
    quantize
        Writes the graph in int8, instead of `graphs`.
    adapt
        Write `bank.safetensors` and `adapt.onnx`, too, so that a device can adapt each task.

    Returns
    -------
    What was found for each task.

    Raises
    ------
    UserError
        Bundles that do not belong together, or a folder that cannot be written.
    CheckError
        A task is not equal to PyTorch. Nothing is written, old files stay.
    """
    check_together(sources)
    backbone = shared_backbone([source.bundle for source in sources], backbone)
    graphs = graphs or OnnxGraphs()
    tolerance = TOLERANCES[graphs.precision]
    tasks = [prepare(source, backbone, adapt=adapt) for source in sources]
    paths = [folder / f"{task.start.task}{SUFFIX}" for task in tasks]
    made = [folder / name for name in (*graphs.files.names, *([BANK, ADAPT] if adapt else []))]
    found: dict[str, Verification] = {}
    with _made(folder), atomic_paths(*made, *paths) as (weights, graph, default, *files):
        model = build_tasks_graph(backbone, graphs.rewrites)
        if quantize is None:
            graphs.write(model, graph)
            int8 = Quantized("", {}, {})
        else:
            int8 = quantize(model, graph, backbone)
            tasks = [task.seen_as(int8.references[task.start.task]) for task in tasks]
        graphs.fold(graph, default, tasks[0].tensors)
        engine = open_to_verify(graph)
        if adapt:
            write_adapt_files(tasks, backbone, graph, files.pop(0), files.pop(0))
        for task, file in zip(tasks, files, strict=True):
            checked = _verified(engine, task, backbone, tolerance)
            found[task.start.task] = checked
            write_task_of(task, checked, file, int8.entries.get(task.start.task, {}))
        facts = _facts(sources[0].bundle, backbone, graphs.precision, sha256_file(weights))
        facts[f"{PREFIX}quantized_sha256"] = int8.sha256
        graphs.finish(graph, facts)
        parse_facts(graph, facts)
        _finish_default(folder, default, tasks[0], backbone, graphs, facts, int8)
    return found


def _finish_default(
    folder: Path,
    path: Path,
    task: PreparedTask,
    backbone: Backbone,
    graphs: Graphs,
    facts: Mapping[str, str],
    int8: Quantized,
) -> None:
    """Prove the default model equal to PyTorch, and write what it says of itself."""
    first, digest = normalized(task.start), task.source.sha256
    folded = open_to_verify(path)
    checked = verify_engine(
        folded,
        first,
        backbone,
        first.probe_images,
        tolerance=TOLERANCES[graphs.precision],
        share=task.share,
        normalized=True,
    )
    if not checked.ok:
        raise CheckError(f"{folder / graphs.files.default}: not equal to PyTorch ({checked})")
    entries = int8.of_default(folded, first, digest) if int8.sha256 else describe(first, digest)
    for name in ("precision", "weights_sha256"):
        entries[f"{PREFIX}{name}"] = facts[f"{PREFIX}{name}"]
    graphs.finish(path, {**entries, f"{PREFIX}verification": _text(checked)})


def add_task(
    source: Source,
    backbone: Backbone,
    folder: Path,
    facts: BackboneFacts,
    more: Mapping[str, str] | None = None,
) -> Verification:
    """Add a bundle to a device folder that is there, proven equal to PyTorch.

    Its file says `more`, if anything.

    Raises
    ------
    UserError
        The bundle does not belong to the folder's backbone.
    CheckError
        The task is not equal to PyTorch. Nothing is written.
    """
    bundle = source.bundle
    check_addition(source, folder, facts)
    backbone = replace(backbone, preprocessing=bundle.preprocessing).with_pooling(facts.pooling)
    like = read_folder_bank(folder / BANK, facts.backbone_sha256) if adapts(folder) else None
    task = prepare(source, backbone, adapt=like is not None, like=like)
    checked = _verified(
        open_to_verify(folder_graph(folder)), task, backbone, TOLERANCES[facts.precision]
    )
    if like is not None and task.mixed is not None:
        check_gradient_of(task, backbone, folder / ADAPT)
        # Before the task: prompts that no task uses yet harm none.
        add_prompts(folder, like, task.mixed.folder)
    with atomic_path(folder / f"{bundle.task}{SUFFIX}") as file:
        write_task_of(task, checked, file, more or {})
    return checked


def write_task_of(
    task: PreparedTask, checked: Verification, path: Path, more: Mapping[str, str]
) -> None:
    """Write a bundle's task file, with two of its probe images; `more` it says."""
    bundle, mixed = normalized(task.start), task.mixed
    own, adapted = ({}, {}) if mixed is None else pack_task_bank(mixed.bank, mixed.digests)
    few = replace(
        bundle,
        reference=None,  # beside the other tensors
        probe_images=bundle.probe_images[:PROBES],
        probe_logits=bundle.probe_logits[:PROBES],
    )
    entries = {
        **describe(few, task.source.sha256),
        **more,
        **adapted,
        f"{PREFIX}format": TASK_FORMAT,
        f"{PREFIX}verification": _text(checked),
    }
    write_task(path, task.tensors, entries, bundle.reference, own)


def normalized(bundle: Bundle) -> Bundle:
    """Return the bundle with the logarithm of its probabilities as logits of the probe images."""
    logits = log_softmax(bundle.probe_logits).astype(np.float32)
    return replace(bundle, probe_logits=logits)


def _verified(
    engine: Engine, task: PreparedTask, backbone: Backbone, tolerance: float
) -> Verification:
    checked = task.verify(engine, backbone, tolerance)
    if not checked.ok:
        raise CheckError(
            f"{task.source.path}: the task is not equal to PyTorch ({checked}); nothing was written"
        )
    return checked


def _facts(bundle: Bundle, backbone: Backbone, precision: str, weights: str) -> dict[str, str]:
    fields = {
        "format": FORMAT,
        "backbone": bundle.backbone,
        "backbone_sha256": bundle.backbone_sha256,
        "preprocessing": bundle.preprocessing.to_json(),
        "pooling": backbone.pooling,
        "default": bundle.task,
        "precision": precision,
        "weights_sha256": weights,
    }
    return {f"{PREFIX}{name}": text for name, text in fields.items()}


def _text(checked: Verification) -> str:
    return json.dumps(asdict(checked), sort_keys=True)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder for the block; gone again where that fails and it is empty."""
    new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        reason = os_reason(error)
        raise FileError(folder, f"cannot be made ({reason}); name another folder") from error
    try:
        yield
    except BaseException:
        if new:
            folder.rmdir()
        raise
