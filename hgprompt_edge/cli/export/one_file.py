"""`hgedge export mine.hgbundle`: one bundle becomes one model file."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.export.choices import SUFFIXES, Format, Precision
from hgprompt_edge.cli.export.report import int8_document, print_file, print_others, print_trials
from hgprompt_edge.cli.export.write import (
    files_to_sign,
    note_no_statistics,
    remove_old,
    write_float,
    write_int8,
)
from hgprompt_edge.cli.shared.console import note, out, print_json, print_next
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.kept_state import state_kept
from hgprompt_edge.cli.shared.outputs import check_output
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.errors import UserError
from hgprompt_edge.paths import check_storable

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.data import FoundTask
    from hgprompt_edge.export.int8.quantize import Int8
    from hgprompt_edge.export.verify import Verification


@dataclass(frozen=True)
class Plan:
    """What the options ask for.

    Attributes
    ----------
    runtime
        Whether the mix comes from a bank beside the model.
    adapt
        Whether a device is to adapt the model; so it is `runtime`, too.
    control
        Whether NNCF searches for layers that stay in float.
    """

    bundle: Path
    output: Path | None
    file_format: Format
    precision: Precision
    opset: int | None
    runtime: bool
    adapt: bool
    task: str | None
    data: Path | None
    max_drop: float
    accept_unproven: bool
    control: bool
    training_hashes: bool
    checkpoint: Path | None
    sign: Path | None

    @property
    def path(self) -> Path:
        """Where the model goes."""
        return self.output or self.bundle.with_suffix(SUFFIXES[self.file_format])

    def check(self) -> None:
        """Refuse options that do not go together."""
        int8 = self.precision is Precision.INT8
        if self.runtime and int8 and self.file_format is Format.OPENVINO:
            raise UserError(
                f"{'--adapt' if self.adapt else '--weights runtime'}: int8 models of OpenVINO have "
                "the mix folded in; use --format onnx, or another precision"
            )
        if self.control and not (int8 and self.file_format is Format.OPENVINO):
            raise UserError(
                "--accuracy-control: only for int8 OpenVINO models; add --format openvino "
                "--precision int8 or leave it out"
            )


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    graph
        Whether the graph of the gradient is beside the model.
    int8
        What int8 costs; None in another precision.
    """

    path: Path
    prompts: int
    graph: bool
    checked: Verification
    int8: Int8 | None
    signatures: tuple[Path, ...]


def export_file(plan: Plan, json: bool) -> None:
    """Write one model, and print what was written."""
    start = time.perf_counter()
    written = _carry_out(plan)
    if json:
        print_json(_document(written, time.perf_counter() - start))
    else:
        _print(plan, written)


def _carry_out(plan: Plan) -> Written:
    from hgprompt_edge.artifacts.bank_entries import has_prompts
    from hgprompt_edge.artifacts.bundle_file import read_bundle
    from hgprompt_edge.artifacts.signature import check_signer, sign

    if plan.sign is not None:
        check_signer(plan.sign)
    bundle, path = read_bundle(plan.bundle), plan.path
    if not plan.training_hashes:
        bundle = replace(bundle, trained=None)
    if plan.runtime:
        note_no_statistics(plan.bundle, bundle)
    graph = plan.adapt and has_prompts(bundle)
    _check_name(path, plan.file_format)
    kept = state_kept(path, bundle, adapts=plan.runtime)
    found = None
    if plan.precision is Precision.INT8:
        found = find_images_of(bundle, plan.task, plan.data)
    checked, int8 = _write(plan, bundle, found, graph)
    remove_old(path, plan.runtime, graph)
    if kept:
        note(kept)
    signatures = [sign(file, plan.sign) for file in files_to_sign(path, graph)] if plan.sign else []
    return Written(path, len(bundle.folded), graph, checked, int8, tuple(signatures))


def _write(
    plan: Plan, bundle: Bundle, found: FoundTask | None, graph: bool
) -> tuple[Verification, Int8 | None]:
    """Write the model; in int8 by the images that were found."""
    from hgprompt_edge.files import sha256_file

    digest = sha256_file(plan.bundle)
    with working("loading the backbone"):
        from hgprompt_edge.backbones.fitted import backbone_of  # PyTorch takes seconds

        backbone = backbone_of(bundle, plan.checkpoint)
    if found is not None:
        int8 = write_int8(
            bundle,
            backbone,
            plan.path,
            found,
            max_drop=plan.max_drop,
            accept_unproven=plan.accept_unproven,
            control=plan.control,
            bundle_sha256=digest,
            runtime_weights=plan.runtime,
            adapt=graph,
        )
        return int8.verification, int8
    with working("exporting"):
        checked = write_float(
            bundle, backbone, plan.path, plan.precision, plan.opset, digest, plan.runtime, graph
        )
    return checked, None


def _document(written: Written, seconds: float) -> dict[str, Any]:
    """Make the JSON document of an export."""
    document: dict[str, Any] = {
        "model": str(written.path),
        "seconds": round(seconds, 2),
        **vars(written.checked),
        "folded_prompts": written.prompts,
    }
    if written.signatures:
        document["signatures"] = [str(signature) for signature in written.signatures]
    return document | (int8_document(written.int8) if written.int8 else {})


def _print(plan: Plan, written: Written) -> None:
    """Print what int8 costs, the files, and what to run next."""
    if written.int8 is not None:
        print_trials(written.int8, plan.max_drop)
    print_file(written.path, written.checked, plan.precision, written.prompts)
    print_others(written.path, plan.runtime, written.graph)
    for signature in written.signatures:
        out.print(f"{signature}: signed with {plan.sign}", soft_wrap=True)
    print_next("predict", "--model", written.path, "IMAGE...")


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
    check_output(path, "--output", wanted)
