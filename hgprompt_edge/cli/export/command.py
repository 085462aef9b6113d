"""`hgedge export`: fold a bundle into one model file, proven equal to PyTorch."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.cli.export.choices import SUFFIXES, Format, Precision, Weights
from hgprompt_edge.cli.export.device import FOLDER, export_folder
from hgprompt_edge.cli.export.report import int8_document, print_file, print_others, print_trials
from hgprompt_edge.cli.export.write import (
    files_to_sign,
    note_no_statistics,
    remove_old,
    write_float,
    write_int8,
)
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, print_next, reports_errors
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.kept_state import state_kept
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.cli.shared.server import needs_server
from hgprompt_edge.errors import UserError
from hgprompt_edge.paths import check_storable

if TYPE_CHECKING:
    from hgprompt_edge.export.int8.quantize import Int8


@reports_errors
@needs_server
def export(
    context: typer.Context,
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundle that fit wrote (default: the newest one here); several become one device "
            "folder, with one backbone for all.",
            show_default=False,
        ),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="File format.")] = Format.ONNX,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Model file (default: TASK.onnx), or a device folder, with a slash at the end.",
            show_default=False,
        ),
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
            "--adapt",
            help="--weights runtime, and NAME.adapt.onnx for `hgedge adapt` on a device; for a "
            "device folder bank.safetensors and adapt.onnx, once for all tasks.",
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
    from hgprompt_edge.artifacts.bank_entries import has_prompts
    from hgprompt_edge.artifacts.bundle_file import read_bundle
    from hgprompt_edge.artifacts.signature import check_signer
    from hgprompt_edge.artifacts.signature import sign as sign_model
    from hgprompt_edge.cli.shared.outputs import check_output
    from hgprompt_edge.files import sha256_file

    bundle = bundles[0] if bundles else None
    place = None if output is None else Path(output)
    if len(bundles or ()) > 1 or _is_folder(output):
        _check_options(file_format, precision, opset)
        _check_int8_alone(context, precision)
        export_folder(
            context,
            bundles or [_newest()],
            place or FOLDER,
            file_format=file_format,
            precision=precision,
            opset=opset,
            adapt=adapt,
            training_hashes=training_hashes,
            data=data,
            max_drop=max_drop,
            accept_unproven=accept_unproven,
            checkpoint=checkpoint,
            sign=sign,
            json=json,
        )
        return
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
            "--accuracy-control: only for int8 OpenVINO models; add --format openvino --precision "
            "int8 or leave it out"
        )
    start = time.perf_counter()
    if sign is not None:
        check_signer(sign)
    bundle = bundle or _newest()
    content, digest = read_bundle(bundle), sha256_file(bundle)
    if not training_hashes:
        content = replace(content, trained=None)
    path = place or bundle.with_suffix(SUFFIXES[file_format])
    if runtime:
        note_no_statistics(bundle, content)
    graph = adapt and has_prompts(content)
    _check_name(path, file_format)
    check_output(path, "--output")
    kept = state_kept(path, content, adapts=runtime)
    found = find_images_of(content, task, data) if precision is Precision.INT8 else None
    with working("loading the backbone"):
        from hgprompt_edge.backbones.fitted import backbone_of  # PyTorch takes seconds

        backbone = backbone_of(content, checkpoint)
    result: Int8 | None = None
    if found is not None:
        result = write_int8(
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
            checked = write_float(content, backbone, path, precision, opset, digest, runtime, graph)
    remove_old(path, runtime, graph)
    if kept:
        note(kept)
    signatures = [sign_model(file, sign) for file in files_to_sign(path, graph)] if sign else []
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {"model": str(path), "seconds": round(seconds, 2), **vars(checked)}
            | {"folded_prompts": len(content.folded)}
            | ({"signatures": [str(signature) for signature in signatures]} if sign else {})
            | (int8_document(result) if result else {})
        )
        return
    if result is not None:
        print_trials(result, max_drop)
    print_file(path, checked, precision, len(content.folded))
    print_others(path, runtime, graph)
    for signature in signatures:
        out.print(f"{signature}: signed with {sign}", soft_wrap=True)
    print_next("predict", "--model", path, "IMAGE...")


def _newest() -> Path:
    from hgprompt_edge.artifacts.bundle_file import newest_bundle

    bundle = newest_bundle(Path())
    note(f"exporting {bundle}, the newest bundle here")
    return bundle


def _is_folder(output: str | None) -> bool:
    """Whether a device folder is asked for: one that is there, or a name with a slash behind."""
    from hgprompt_edge.artifacts.tasks.device_files import graph_of

    return output is not None and (output.endswith(("/", os.sep)) or bool(graph_of(Path(output))))


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


def _check_int8_alone(context: typer.Context, precision: Precision) -> None:
    """Refuse what would be ignored without int8."""
    if precision is Precision.INT8:
        return
    for name in ("data", "task", "max_drop", "accept_unproven"):
        if options.is_given(context, name):
            raise UserError(
                f"--{name.replace('_', '-')}: only for int8 models; add --precision int8 or "
                "leave it out"
            )


def _check_options(file_format: Format, precision: Precision, opset: int | None) -> None:
    if precision is Precision.INT8 and opset is not None:
        raise UserError("--opset: int8 models have a fixed opset; leave it out")
    if file_format is Format.OPENVINO and opset is not None:
        raise UserError("--opset: OpenVINO models have no opset; leave it out or use --format onnx")
    if file_format is Format.ONNX and precision is Precision.FP16:
        raise UserError(
            "--precision fp16: only for OpenVINO models; add --format openvino or leave it out"
        )
