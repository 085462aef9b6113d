"""`hgedge export`: fold a bundle into one model file, proven equal to PyTorch."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import note, out, print_json, reports_errors
from hgprompt_edge.cli.server import needs_server
from hgprompt_edge.errors import UserError


class Format(str, Enum):
    """File formats of exported models."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(str, Enum):
    """Precisions of exported models."""

    FP32 = "fp32"
    FP16 = "fp16"


SUFFIXES = {Format.ONNX: ".onnx", Format.OPENVINO: ".xml"}


@reports_errors
@needs_server
def export(
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
        typer.Option(help="fp16 halves an OpenVINO file; its logits are near, not equal."),
    ] = Precision.FP32,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset: 23 is the fastest, 20 runs on onnxruntime from 1.20 on.",
            show_default=False,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Private key (PEM, elliptic curve) to sign the model with.", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Fold prompt and head into the frozen ViT and write one verified model file."""
    from hgprompt_edge.bundle import newest_bundle, read_bundle
    from hgprompt_edge.device.bench import file_bytes
    from hgprompt_edge.device.signature import check_signer
    from hgprompt_edge.device.signature import sign as sign_model
    from hgprompt_edge.export.graph import OPSET
    from hgprompt_edge.export.onnx_file import export_onnx
    from hgprompt_edge.files import check_writable, sha256_file
    from hgprompt_edge.vit.backbone import load_backbone

    _check_options(file_format, precision, opset)
    start = time.perf_counter()
    if sign is not None:
        check_signer(sign)
    if bundle is None:
        bundle = newest_bundle(Path())
        note(f"exporting {bundle}, the newest bundle here")
    content, digest = read_bundle(bundle), sha256_file(bundle)
    path = output or bundle.with_suffix(SUFFIXES[file_format])
    check_writable(path.parent, "--output")
    size = content.preprocessing.image_size
    backbone = load_backbone(content.backbone, checkpoint=checkpoint, image_size=size)
    if file_format is Format.OPENVINO:
        from hgprompt_edge.export import openvino_file

        stored = openvino_file.Precision(precision.value)
        checked = openvino_file.export_openvino(
            content, backbone, path, precision=stored, bundle_sha256=digest
        )
    else:
        checked = export_onnx(content, backbone, path, opset=opset or OPSET, bundle_sha256=digest)
    signature = None if sign is None else sign_model(path, sign)
    seconds = time.perf_counter() - start
    if json:
        print_json(
            {"model": str(path), "seconds": round(seconds, 2), **vars(checked)}
            | ({"signature": str(signature)} if signature else {})
        )
        return
    how = "near" if precision is Precision.FP16 else "equal to"
    out.print(
        f"{path}: {file_bytes(path) / 1e6:.1f} MB, {how} PyTorch on {checked.images} images "
        f"(largest difference {checked.max_abs_diff:.1e}, bound {checked.bound:.1e})",
        soft_wrap=True,
    )
    if signature is not None:
        out.print(f"{signature}: signed with {sign}", soft_wrap=True)
    out.print(f"next: hgedge predict --model {path} IMAGE...", soft_wrap=True)


def _check_options(file_format: Format, precision: Precision, opset: int | None) -> None:
    if file_format is Format.OPENVINO and opset is not None:
        raise UserError("--opset: an OpenVINO model has none; leave it out or use --format onnx")
    if file_format is Format.ONNX and precision is Precision.FP16:
        raise UserError(
            "--precision fp16: for OpenVINO models; add --format openvino or leave it out"
        )
