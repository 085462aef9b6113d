"""`hgedge verify`: check an exported model later, on a device or a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    EXIT_CHECK_FAILED,
    fail,
    out,
    print_json,
    reports_errors,
)
from hgprompt_edge.cli.shared.opened import check_one_task
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.cli.shared.server import SERVER_PACKAGES, is_installed
from hgprompt_edge.errors import UserError
from hgprompt_edge.paths import why_not

if TYPE_CHECKING:
    from hgprompt_edge.runtime.verify import Check


@reports_errors
def verify(
    model: Annotated[Path, typer.Argument(help="Model that `hgedge export` wrote.")],
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) that it must be signed with.", show_default=False),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle it must be made from; with PyTorch installed, also compare with that.",
            show_default=False,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    json: options.Json = False,
) -> None:
    """Check files, signature, origin and logits of a model; exit code 1 if a check fails."""
    from hgprompt_edge.runtime.verify import describe_signature, verify_model

    if checkpoint is not None and bundle is None:
        raise UserError(
            f"--checkpoint {checkpoint}: only used to compare with PyTorch; add --bundle or leave "
            "it out"
        )
    if bundle is not None and not bundle.is_file():
        raise UserError(f"--bundle {bundle}: {why_not(bundle, 'file')}; check the path")
    check_one_task(model)
    with working("verifying"):
        checks = verify_model(model, key=key, bundle=bundle)
    failed = [check for check in checks if check.ok is False]
    if bundle is not None and not failed and all(map(is_installed, SERVER_PACKAGES)):
        with working("comparing with PyTorch"):
            checks += _on_a_server(model, bundle, checkpoint)
        failed = [check for check in checks if check.ok is False]
    checks = [replace(check, detail=as_options(check.detail)) for check in checks]
    words = as_options(describe_signature(model, checks))
    if json:
        found = [vars(check) for check in checks]
        print_json({"model": str(model), "ok": not failed, "checks": found, "signature": words})
    else:
        _print_table(checks)
        out.print(words, soft_wrap=True, markup=False)
    if failed:
        names = ", ".join(check.name for check in failed)
        fail(f"{model}: does not pass ({names}); copy or export it again", EXIT_CHECK_FAILED)


def _on_a_server(model: Path, bundle: Path, checkpoint: Path | None) -> list[Check]:
    from hgprompt_edge.artifacts.bundle_file import read_bundle
    from hgprompt_edge.backbones.fitted import backbone_of
    from hgprompt_edge.export.recheck import recheck

    content = read_bundle(bundle)
    backbone = backbone_of(content, checkpoint)
    return recheck(model, content, backbone)


def _print_table(checks: list[Check]) -> None:
    words = {True: "ok", False: "FAILED", None: ""}
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row(check.name, words[check.ok], check.detail)
    out.print(table)
