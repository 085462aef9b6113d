"""`hgedge export`: fold a bundle into one model file, proven equal to PyTorch."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    note,
    out,
    print_json,
    print_next,
    progress_bar,
    reports_errors,
    working,
)
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.left_out import note_left_out
from hgprompt_edge.cli.shared.server import needs_server
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import check_storable

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import FoundTask
    from hgprompt_edge.export.int8.quantize import Int8
    from hgprompt_edge.export.verify import Verification


class Format(str, Enum):
    """File formats of exported models."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(str, Enum):
    """Precisions of exported models."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Weights(str, Enum):
    """Where the mixing weights are."""

    FOLDED = "folded"
    RUNTIME = "runtime"


SUFFIXES = {Format.ONNX: ".onnx", Format.OPENVINO: ".xml"}


@reports_errors
@needs_server
def export(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle that fit wrote (default: the newest one here).", show_default=False
        ),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="File format.")] = Format.ONNX,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Model file (default: TASK.onnx).", show_default=False),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="fp16 halves an OpenVINO file; int8 needs the images of the fit."),
    ] = Precision.FP32,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset: 23 is the fastest, 20 runs on onnxruntime from 1.20 on.",
            show_default=False,
        ),
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, help="int8: points of accuracy that may be lost."),
    ] = 1.0,
    accept_unproven: Annotated[
        bool,
        typer.Option(
            "--accept-unproven",
            help="int8: write the model, too, where the images are too few to say what it loses.",
        ),
    ] = False,
    weights: Annotated[
        Weights,
        typer.Option(
            help="runtime: the mix comes from NAME.bank.safetensors, so that new weights need no "
            "new model."
        ),
    ] = Weights.FOLDED,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt", help="--weights runtime, and NAME.adapt.onnx for `hgedge adapt` on a device."
        ),
    ] = False,
    accuracy_control: Annotated[
        bool,
        typer.Option(
            "--accuracy-control",
            help="int8 for OpenVINO: search which layers must stay in float (minutes).",
        ),
    ] = False,
    training_hashes: Annotated[
        bool,
        typer.Option(
            help="Keep 40 bytes of each training image in the model, by which `hgedge evaluate` "
            "finds it among others; no pixels."
        ),
    ] = True,
    checkpoint: options.Checkpoint = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Private key (PEM, elliptic curve) to sign the model with; its passphrase, if it "
            "has one, is taken from HGEDGE_KEY_PASSPHRASE.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Fold prompt and head into the frozen ViT and write one verified model file."""
    from hgprompt_edge.artifacts.bundle import has_prompts, newest_bundle, read_bundle
    from hgprompt_edge.artifacts.signature import check_signer
    from hgprompt_edge.artifacts.signature import sign as sign_model
    from hgprompt_edge.files import check_output, sha256_file

    _check_options(file_format, precision, opset)
    _check_int8_alone(context, precision)
    runtime = adapt or weights is Weights.RUNTIME
    if runtime and precision is Precision.INT8 and file_format is Format.OPENVINO:
        raise UserError(
            f"{'--adapt' if adapt else '--weights runtime'}: int8 models of OpenVINO have the mix "
            "folded in; use --format onnx, or another precision"
        )
    if accuracy_control and (file_format, precision) != (Format.OPENVINO, Precision.INT8):
        raise UserError(
            "--accuracy-control: NNCF does it, for OpenVINO; add --format openvino "
            "--precision int8 or leave it out"
        )
    start = time.perf_counter()
    if sign is not None:
        check_signer(sign)
    if bundle is None:
        bundle = newest_bundle(Path())
        note(f"exporting {bundle}, the newest bundle here")
    content, digest = read_bundle(bundle), sha256_file(bundle)
    if not training_hashes:
        content = replace(content, trained=None)
    path = output or bundle.with_suffix(SUFFIXES[file_format])
    if (adapt or weights is Weights.RUNTIME) and content.clean is None:
        note(
            f"{bundle} holds no statistics of clean images, without which `hgedge adapt` learns "
            "nothing from images without labels; run `hgedge fit` again"
        )
    graph = adapt and has_prompts(content)
    _check_name(path, file_format)
    check_output(path, "--output")
    found = find_images_of(content, task, data) if precision is Precision.INT8 else None
    with working("loading the backbone"):
        from hgprompt_edge.backbones.fitted import backbone_of  # PyTorch takes seconds

        backbone = backbone_of(content, checkpoint)
    result: Int8 | None = None
    if found is not None:
        result = _quantize(
            content,
            backbone,
            path,
            found,
            max_drop=max_drop,
            accept_unproven=accept_unproven,
            control=accuracy_control,
            bundle_sha256=digest,
            runtime_weights=runtime,
            adapt=graph,
        )
        checked = result.verification
    else:
        with working("exporting"):
            checked = _write(content, backbone, path, precision, opset, digest, runtime, graph)
    _remove_old(path, runtime, graph)
    signatures = [sign_model(file, sign) for file in _signed(path, graph)] if sign else []
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {"model": str(path), "seconds": round(seconds, 2), **vars(checked)}
            | {"folded_prompts": len(content.folded)}
            | ({"signatures": [str(signature) for signature in signatures]} if sign else {})
            | (_int8_document(result) if result else {})
        )
        return
    if result is not None:
        _print_trials(result, max_drop)
    _print_file(path, checked, precision, len(content.folded))
    _print_others(path, runtime, graph)
    for signature in signatures:
        out.print(f"{signature}: signed with {sign}", soft_wrap=True)
    print_next("predict", "--model", path, "IMAGE...")


def _remove_old(path: Path, runtime: bool, adapt: bool) -> None:
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
    if old := [file for file in old if file.exists()]:
        for file in old:
            file.unlink()
        names = ", ".join(map(str, old))
        note(f"removed {names}, of an earlier export; this model does not use them")


def _signed(path: Path, adapt: bool) -> list[Path]:
    """Return the models to sign; that of `path` names the bank by its digest."""
    from hgprompt_edge.artifacts.device_bank import adapt_path

    return [path, adapt_path(path)] if adapt else [path]


def _write(
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


def _print_file(path: Path, checked: Verification, precision: Precision, prompts: int) -> None:
    from hgprompt_edge.runtime.bench import file_bytes

    several = f"{prompts} folded prompts, " if prompts > 1 else ""
    how = "near" if precision is not Precision.FP32 else "equal to"
    out.print(
        f"{path}: {file_bytes(path) / 1e6:.1f} MB, {several}{how} PyTorch on {checked.images} "
        f"images (largest difference {checked.max_abs_diff:.1e}, bound {checked.bound:.1e})",
        soft_wrap=True,
    )


def _print_others(path: Path, runtime: bool, adapt: bool) -> None:
    """Name what was written beside the model, which has to go with it."""
    from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank

    if runtime:
        bank = bank_path(path)
        size = bank.stat().st_size / 1e6
        content = read_bank(bank)
        mixes = f"what the device mixes: {', '.join(content.names)}"
        what = mixes if content.mixer else "the head, which the device can move"
        out.print(f"{bank}: {size:.1f} MB, {what}", soft_wrap=True)
    if adapt:
        graph = adapt_path(path)
        size = graph.stat().st_size / 1e6
        out.print(f"{graph}: {size:.1f} MB, its gradient equal to PyTorch's", soft_wrap=True)


def _check_name(path: Path, file_format: Format) -> None:
    """Refuse a folder, and a name that is not of the format: it may be the bundle's own."""
    check_storable(str(path), "--output: the model")  # runtimes take UTF-8 alone
    wanted = SUFFIXES[file_format]
    if path.suffix == SUFFIXES[Format.OPENVINO] != wanted:
        raise UserError(
            f"--output {path}: {path.suffix} is for OpenVINO models; add --format openvino or "
            f"choose a name that ends in {wanted}"
        )
    if path.is_dir():
        raise UserError(f"--output {path}: a folder; name a file, as {path / f'NAME{wanted}'}")
    if path.suffix != wanted:
        kind = "an OpenVINO" if file_format is Format.OPENVINO else "an ONNX"
        raise UserError(
            f"--output {path}: the name of {kind} model ends in {wanted}; choose one that does"
        )


def _quantize(
    bundle: Bundle,
    backbone: Backbone,
    path: Path,
    found: FoundTask,
    **how: Any,
) -> Int8:
    from hgprompt_edge.export.int8.quantize import export_int8

    with progress_bar() as report:
        images = found.load(bundle.preprocessing, progress=partial(report, "reading images"))
        if images.digest != bundle.split_digest:
            note(f"{images.data or images.name}: not the images on which {bundle.task} was fitted")
        note_left_out(images.unreadable, images.left_out)
        return export_int8(bundle, backbone, path, images, report=report, **how)


def _int8_document(result: Int8) -> dict[str, Any]:
    test = result.test and vars(result.test) | {"images": result.test_images}
    return {
        "images": result.images,
        "accuracy_fp32": result.float_accuracy,
        "tried": [vars(trial) for trial in result.tried],
        "proven": result.proven,
        "images_needed": result.needed,
        "test": test,
    }


def _print_trials(result: Int8, max_drop: float) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("int8 scheme")
    table.add_column(f"{result.images} held-out images", justify="right")
    table.add_column("change (90 % interval)", justify="right")
    table.add_row("(float32)", f"{100 * result.float_accuracy:.1f} %", "")
    tests = [result.test] if result.test else []
    for trial in [*result.tried, *([result.bf16] if result.bf16 else []), *tests]:
        name = f"{result.test_images} test images" if trial is result.test else trial.scheme
        table.add_row(name, f"{100 * trial.accuracy:.1f} %", trial.change)
    out.print(table)
    if not result.proven:
        would = f"about {result.needed:,}" if result.needed else "no number of"
        note(
            f"not proven to keep within --max-drop {max_drop:g} on so few images; {would} images "
            "would decide"
        )


def _check_int8_alone(context: typer.Context, precision: Precision) -> None:
    """Refuse what would be ignored without int8."""
    if precision is Precision.INT8:
        return
    for name in ("data", "task", "max_drop", "accept_unproven"):
        if options.is_given(context, name):
            raise UserError(
                f"--{name.replace('_', '-')}: for int8 alone; add --precision int8 or leave it out"
            )


def _check_options(file_format: Format, precision: Precision, opset: int | None) -> None:
    if precision is Precision.INT8 and opset is not None:
        raise UserError("--opset: int8 models come in one opset alone; leave it out")
    if file_format is Format.OPENVINO and opset is not None:
        raise UserError("--opset: an OpenVINO model has none; leave it out or use --format onnx")
    if file_format is Format.ONNX and precision is Precision.FP16:
        raise UserError(
            "--precision fp16: for OpenVINO models; add --format openvino or leave it out"
        )
