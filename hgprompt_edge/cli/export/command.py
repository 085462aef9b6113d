"""`hgedge export`: fold a bundle into one model file, proven equal to PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli.export.choices import Format, Precision, Weights
from hgprompt_edge.cli.export.device import FOLDER, export_folder
from hgprompt_edge.cli.export.one_file import Plan, export_file
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, reports_errors
from hgprompt_edge.cli.shared.server import needs_server
from hgprompt_edge.errors import UserError


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
    _check_options(file_format, precision, opset)
    _check_int8_alone(context, precision)
    place = None if output is None else Path(output)
    if len(bundles or ()) > 1 or _is_folder(output):
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
    plan = Plan(
        bundle=bundles[0] if bundles else _newest(),
        output=place,
        file_format=file_format,
        precision=precision,
        opset=opset,
        runtime=adapt or weights is Weights.RUNTIME,
        adapt=adapt,
        task=task,
        data=data,
        max_drop=max_drop,
        accept_unproven=accept_unproven,
        control=accuracy_control,
        training_hashes=training_hashes,
        checkpoint=checkpoint,
        sign=sign,
    )
    plan.check()
    export_file(plan, json)


def _newest() -> Path:
    from hgprompt_edge.artifacts.bundle_file import newest_bundle

    bundle = newest_bundle(Path())
    note(f"exporting {bundle}, the newest bundle here")
    return bundle


def _is_folder(output: str | None) -> bool:
    """Whether a device folder is asked for: one that is there, or a name with a slash behind."""
    from hgprompt_edge.artifacts.tasks.device_files import graph_of

    return output is not None and (output.endswith(("/", os.sep)) or bool(graph_of(Path(output))))


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
