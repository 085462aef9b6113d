"""`hgedge export A.hgbundle B.hgbundle -o device/`: many tasks on one backbone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hgprompt_edge.cli.device.adapters import drop_adapters
from hgprompt_edge.cli.device.folder import opened
from hgprompt_edge.cli.export.choices import Format, Precision
from hgprompt_edge.cli.export.report import int8_document, print_trials
from hgprompt_edge.cli.export.write import (
    note_no_statistics,
    remove_unused,
    write_int8_folder,
)
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, print_next
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.kept_state import state_kept
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.cli.shared.text import command_line
from hgprompt_edge.errors import UserError, some
from hgprompt_edge.paths import check_storable

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.artifacts.tasks.device_files import Files
    from hgprompt_edge.export.int8.quantize import Int8
    from hgprompt_edge.export.verify import Verification

FOLDER = Path("device")
ALONE = ("weights", "task", "accuracy_control")
"""Options of one model alone."""


def export_folder(
    context: typer.Context,
    bundles: Sequence[Path],
    folder: Path,
    *,
    file_format: Format,
    precision: Precision,
    opset: int | None,
    adapt: bool,
    training_hashes: bool,
    data: Path | None,
    max_drop: float,
    accept_unproven: bool,
    checkpoint: Path | None,
    sign: Path | None,
    json: bool,
) -> None:
    """Write a device folder, and print what is in it."""
    from dataclasses import replace

    from hgprompt_edge.artifacts.bundle_file import read_bundle
    from hgprompt_edge.artifacts.signature import check_signer
    from hgprompt_edge.artifacts.tasks.device_files import ONNX, OPENVINO, SUFFIX
    from hgprompt_edge.files import sha256_file

    _check_options(context, folder, len(bundles))
    if adapt and precision is Precision.INT8:
        raise UserError("--adapt: not for a device folder in int8; leave one of the two out")
    names = OPENVINO if file_format is Format.OPENVINO else ONNX
    _check_there(folder, names, precision)
    start = time.perf_counter()
    if sign is not None:
        check_signer(sign)
    contents = [read_bundle(path) for path in bundles]
    if not training_hashes:
        contents = [replace(bundle, trained=None) for bundle in contents]
    if adapt:
        for path, bundle in zip(bundles, contents, strict=True):
            note_no_statistics(path, bundle)
    _check_tasks(folder, contents)
    kept = [
        state_kept(folder / f"{bundle.task}{SUFFIX}", bundle, adapts=adapt) for bundle in contents
    ]
    images = None
    if precision is Precision.INT8:
        images = [find_images_of(bundle, None, data) for bundle in contents]
    with working("loading the backbone"):
        from hgprompt_edge.backbones.fitted import backbone_of  # PyTorch takes seconds
        from hgprompt_edge.export.device_folder import export_device
        from hgprompt_edge.export.device_graphs import OnnxGraphs, OpenVinoGraphs
        from hgprompt_edge.export.device_sources import Source, check_together

        sources = [
            Source(path, bundle, sha256_file(path))
            for path, bundle in zip(bundles, contents, strict=True)
        ]
        check_together(sources)  # before any weights are loaded
        backbone = backbone_of(contents[0], checkpoint)
        stored = precision.value
        graphs = OnnxGraphs(opset, precision=stored) if names is ONNX else OpenVinoGraphs(stored)
    results: Mapping[str, Int8] = {}
    if images is None:
        with working("exporting"):
            found = export_device(sources, backbone, folder, graphs, adapt=adapt)
    else:
        results = write_int8_folder(
            sources,
            images,
            backbone,
            folder,
            graphs,
            max_drop=max_drop,
            accept_unproven=accept_unproven,
        )
        found = {name: result.verification for name, result in results.items()}
    files = [folder / f"{name}{SUFFIX}" for name in found]
    signed = _settle(folder, [*_shared_files(folder, names, adapt), *files], adapt, sign)
    for sentence in filter(None, kept):
        note(sentence)
    if json:
        seconds = round(time.perf_counter() - start, 2)
        print_json({"folder": str(folder), "seconds": seconds, **_document(found, results, signed)})
        return
    for name, result in results.items():
        out.print(f"{name}:", soft_wrap=True)
        print_trials(result, max_drop)
    _print_files(folder, names, contents[0], precision, found)
    if adapt:
        _print_adapt(folder)
    for signature in signed:
        out.print(f"{signature}: signed with {sign}", soft_wrap=True)
    print_next("predict", "--model", folder, "--task", contents[0].task, "IMAGE...")


def _shared_files(folder: Path, names: Files, adapt: bool) -> list[Path]:
    """Models of a folder that are signed beside its tasks."""
    from hgprompt_edge.artifacts.tasks.device_files import ADAPT

    return [folder / name for name in (names.graph, names.default, *([ADAPT] if adapt else []))]


def _settle(folder: Path, files: Sequence[Path], adapt: bool, sign: Path | None) -> list[Path]:
    """Remove what an earlier export left and no longer fits, and sign; returns the signatures."""
    from hgprompt_edge.artifacts.signature import sign as sign_file
    from hgprompt_edge.artifacts.signature import signature_path
    from hgprompt_edge.artifacts.tasks.device_files import ADAPT, BANK

    for file in files:
        signature_path(file).unlink(missing_ok=True)
    if not adapt:
        remove_unused([folder / name for name in (BANK, ADAPT)])
    drop_adapters(folder)
    return [sign_file(file, sign) for file in files] if sign else []


def _document(
    found: Mapping[str, Verification], results: Mapping[str, Int8], signed: Sequence[Path]
) -> dict[str, object]:
    """Make the JSON document of what was written."""
    tasks = {
        name: vars(checked) | (int8_document(results[name]) if name in results else {})
        for name, checked in found.items()
    }
    return {"tasks": tasks} | ({"signatures": [str(path) for path in signed]} if signed else {})


def _print_files(
    folder: Path,
    names: Files,
    first: Bundle,
    precision: Precision,
    found: Mapping[str, Verification],
) -> None:
    """Name the files with their sizes, and how near to PyTorch each task is."""
    from hgprompt_edge.artifacts.tasks.device_files import SUFFIX

    size = sum((folder / name).stat().st_size for name in names.names) / 1e6
    out.print(
        f"{folder}: {first.backbone}, {first.preprocessing.image_size} px, {size:.1f} MB; "
        f"{names.default} has {first.task} folded in",
        soft_wrap=True,
    )
    how = "equal to" if precision is Precision.FP32 else "near"
    for name, checked in found.items():
        file = folder / f"{name}{SUFFIX}"
        out.print(
            f"{file}: {file.stat().st_size / 1000:.0f} KB, {how} PyTorch on {checked.images} "
            f"images (largest difference {checked.max_abs_diff:.1e}, bound {checked.bound:.1e})",
            soft_wrap=True,
        )


def _check_there(folder: Path, names: Files, precision: Precision) -> None:
    """Refuse to replace a device folder of another format or precision: that is a slip."""
    from hgprompt_edge.artifacts.tasks.device_files import files_of
    from hgprompt_edge.runtime.device_folder import folder_graph

    there = files_of(folder)
    if there is None:
        return
    folder_graph(folder)  # which refuses two graphs
    if there != names:
        raise UserError(
            f"--output {folder}: holds {there.graph}, which is of another --format; name another "
            "folder"
        )
    try:
        facts, _ = opened(folder)
    except UserError:
        return  # damaged: the export mends it
    if facts.precision != precision.value:
        raise UserError(
            f"--output {folder}: holds a backbone in {facts.precision}; add --precision "
            f"{facts.precision}, or name another folder"
        )


def _print_adapt(folder: Path) -> None:
    """Name what tasks need to be adapted."""
    from hgprompt_edge.artifacts.tasks.device_files import ADAPT, BANK
    from hgprompt_edge.artifacts.tasks.folder_bank import count_prompts

    bank, graph = folder / BANK, folder / ADAPT
    count = count_prompts(bank)
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    out.print(
        f"{bank}: {bank.stat().st_size / 1e6:.1f} MB, the {prompts} that the tasks mix, each once",
        soft_wrap=True,
    )
    out.print(
        f"{graph}: {graph.stat().st_size / 1e6:.1f} MB, its gradient equal to PyTorch's for each "
        "task",
        soft_wrap=True,
    )


def _check_tasks(folder: Path, contents: Sequence[Bundle]) -> None:
    """Refuse a folder with other tasks than these: they would be left on another backbone."""
    from hgprompt_edge.artifacts.tasks.device_files import task_paths

    others = set(task_paths(folder)) - {bundle.task for bundle in contents}
    if others:
        add = command_line("device", "add", folder, "BUNDLE")
        raise UserError(
            f"--output {folder}: serves {some(sorted(others))}, too; name all bundles, another "
            f"folder, or add one with `{add}`"
        )


def _check_options(context: typer.Context, folder: Path, bundles: int) -> None:
    check_storable(str(folder), "--output: the folder")
    for name in ALONE:
        if options.is_given(context, name):
            raise UserError(
                f"--{name.replace('_', '-')}: not for a device folder, whose prompts are folded; "
                "leave it out, or export one bundle to a file"
            )
    if bundles > 1 and options.is_given(context, "data"):
        raise UserError(
            "--data: the images of several bundles are looked for where they were at the fit; "
            "leave it out, or export one and add the others with `hgedge device add`"
        )
    if folder.suffix:
        raise UserError(
            f"--output {folder}: several bundles become a folder; give a name without an ending"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: a file; name a folder for several bundles")
