"""Write the model in the format and precision that were asked for, and what lies beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.export.choices import SUFFIXES, Format, Precision
from hgprompt_edge.cli.shared.console import note
from hgprompt_edge.cli.shared.left_out import note_left_out
from hgprompt_edge.cli.shared.progress import Report, progress_bar

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.artifacts.tasks.device_files import BackboneFacts
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import FoundTask, Task
    from hgprompt_edge.export.device_graphs import Graphs
    from hgprompt_edge.export.device_sources import Source
    from hgprompt_edge.export.int8.quantize import Int8
    from hgprompt_edge.export.verify import Verification


def remove_old(path: Path, runtime: bool, adapt: bool) -> None:
    """Remove bank and graph of the gradient that an earlier export left under the model's name.

    They may be those of a model of the same name in the other format, which then needs them.
    """
    from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path
    from hgprompt_edge.artifacts.signature import signature_path
    from hgprompt_edge.export.gradient.file import is_adapt_graph

    if any(path.with_suffix(suffix).exists() for suffix in set(SUFFIXES.values()) - {path.suffix}):
        return
    old = [] if runtime else [bank_path(path)]
    graph = adapt_path(path)
    if not adapt and is_adapt_graph(graph):  # any other may be a model of that name
        old += [graph, signature_path(graph)]
    remove_unused(old)


def remove_unused(files: Sequence[Path]) -> None:
    """Remove files that an earlier export left, those that are there, and say so."""
    if old := [file for file in files if file.exists()]:
        for file in old:
            file.unlink()
        names = ", ".join(map(str, old))
        note(f"removed {names}, of an earlier export; what was written now does not use them")


def note_no_statistics(path: Path, bundle: Bundle) -> None:
    """Say where a device will learn nothing without labels."""
    if bundle.clean is None:
        note(
            f"{path} has no statistics of clean images, so `hgedge adapt` cannot learn from "
            "images without labels; run `hgedge fit` again"
        )


def files_to_sign(path: Path, adapt: bool) -> list[Path]:
    """Return the models to sign; that of `path` names the bank by its digest."""
    from hgprompt_edge.artifacts.device_bank import adapt_path

    return [path, adapt_path(path)] if adapt else [path]


def write_float(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    precision: Precision,
    opset: int | None,
    digest: str,
    runtime: bool,
    adapt: bool,
) -> Verification:
    """Write a model in floating point; its name says for which runtime."""
    if path.suffix == SUFFIXES[Format.OPENVINO]:
        from hgprompt_edge.export import openvino_file

        stored = openvino_file.Precision(precision.value)
        return openvino_file.export_openvino(
            bundle,
            backbone,
            path,
            precision=stored,
            bundle_sha256=digest,
            runtime_weights=runtime,
            adapt=adapt,
        )
    from hgprompt_edge.export.graph.inference import OPSET
    from hgprompt_edge.export.onnx_file import export_onnx

    return export_onnx(
        bundle,
        backbone,
        path,
        opset=OPSET if opset is None else opset,
        bundle_sha256=digest,
        runtime_weights=runtime,
        adapt=adapt,
    )


def write_int8(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    found: FoundTask,
    **how: Any,
) -> Int8:
    """Write an int8 model, whose accuracy is measured on the images of `found`."""
    from hgprompt_edge.export.int8.quantize import export_int8

    with progress_bar() as report:
        images = read_images(bundle, found, report)
        return export_int8(bundle, backbone, path, images, report=report, **how)


def write_int8_folder(
    sources: Sequence[Source],
    found: Sequence[FoundTask],
    backbone: Backbone,
    folder: Path,
    graphs: Graphs,
    **how: Any,
) -> dict[str, Int8]:
    """Write a device folder in int8; each task's accuracy is measured on its images."""
    from hgprompt_edge.export.device_int8 import export_device_int8

    with progress_bar() as report:
        images = [
            read_images(source.bundle, each, report)
            for source, each in zip(sources, found, strict=True)
        ]
        return export_device_int8(sources, images, backbone, folder, graphs, report=report, **how)


def read_images(bundle: Bundle, found: FoundTask, report: Report) -> Task:
    """Read the images of a bundle's fit, and say which are left out."""
    images = found.load(bundle.preprocessing, progress=partial(report, "reading images"))
    note_left_out(images.unreadable, images.left_out)
    return images


def add_int8(
    source: Source,
    found: FoundTask,
    backbone: Backbone,
    folder: Path,
    facts: BackboneFacts,
    **how: Any,
) -> Int8:
    """Add a task to a device folder in int8; its accuracy is measured on the images of `found`."""
    from hgprompt_edge.export.device_int8 import add_task_int8

    with progress_bar() as report:
        images = read_images(source.bundle, found, report)
        return add_task_int8(source, images, backbone, folder, facts, **how)
