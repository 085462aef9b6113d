"""`hgedge merge`: what many devices learned becomes the mix of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, print_next, reports_errors
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.cli.shared.server import needs_server

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.state.merge import Delivery, Merged


@reports_errors
@needs_server
def merge(
    files: Annotated[
        list[Path],
        typer.Argument(help="What `hgedge state send` wrote: files, or a folder of them."),
    ],
    path: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            help="Bundle that the devices' model came from (default: the newest here).",
            show_default=False,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Bundle file (default: BUNDLE.merged.hgbundle).",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Average the mixing weights that devices learned, and write a bundle with them."""
    from hgprompt_edge.artifacts.bundle_file import SUFFIX, newest_bundle, read_bundle, write_bundle
    from hgprompt_edge.backbones.fitted import backbone_of
    from hgprompt_edge.cli.shared.outputs import check_output
    from hgprompt_edge.fit.merged_bundle import is_folded, with_mix
    from hgprompt_edge.state.merge import merge as average
    from hgprompt_edge.state.merge import read_updates, summary

    if path is None:
        path = newest_bundle(Path())
        note(f"merging into {path}, the newest bundle here")
    target = output or path.with_name(f"{path.stem.removesuffix('.merged')}.merged{SUFFIX}")
    check_output(target, "--output", SUFFIX)
    bundle = read_bundle(path)
    delivery = read_updates(files, bundle)
    refused = [as_options(sentence) for sentence in delivery.refused]
    for sentence in (*refused, *delivery.idle):
        note(f"left out {sentence}")
    merged = average(delivery.updates)
    about = summary(delivery, merged)
    with working("folding the mix"):
        backbone = backbone_of(bundle, checkpoint)
        result = with_mix(bundle, merged.weights, about, backbone)
    write_bundle(target, result)
    if json:
        shares = dict(zip(map(str, delivery.paths), map(float, merged.shares), strict=True))
        document = {"bundle": str(target), **about, "shares": shares}
        left = {"refused": refused, "idle": list(delivery.idle)}
        print_json({**document, **left, "folded": is_folded(result)})
        return
    _print_devices(delivery, merged)
    out.print(_mix_table(result, merged))
    if not is_folded(result):
        chosen = "a tuned prompt" if result.choice == "tuned" else "no prompt"
        note(
            f"{bundle.task} was fitted to {chosen}, so only models exported with --adapt use the "
            "mix"
        )
    devices = "1 device" if about["devices"] == 1 else f"{about['devices']} devices"
    out.print(f"{target}: the mix of {devices}, {about['images']:,} images")
    print_next("export", target, *(() if is_folded(result) else ("--adapt",)))


def _print_devices(delivery: Delivery, merged: Merged) -> None:
    for path, share in zip(delivery.paths, merged.shares, strict=True):
        if not share:
            note(f"left out {path}: too far from what most of the devices learned")
    if any(update.head_bias is not None for update in delivery.updates):
        note("some devices also changed the bias of their head; only the mix is merged")


def _mix_table(bundle: Bundle, merged: Merged) -> Table:
    from hgprompt_edge.artifacts.bank_entries import bank_entries

    table = Table(box=None, pad_edge=False)
    table.add_column("prompt")
    table.add_column("merged weight", justify="right")
    table.add_column("")
    for entry, weight in zip(bank_entries(bundle), merged.weights, strict=True):
        table.add_row(entry.name, f"{weight:.3f}", "━" * round(30 * float(weight)))
    return table
