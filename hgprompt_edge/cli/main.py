"""The command `hgedge`. Each command lives in its own file; heavy imports happen inside it."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from hgprompt_edge.cli import backbone, cache, device, prompt, state
from hgprompt_edge.cli.adapt import adapt
from hgprompt_edge.cli.bench import bench
from hgprompt_edge.cli.compare import compare
from hgprompt_edge.cli.condition import condition
from hgprompt_edge.cli.doctor import doctor
from hgprompt_edge.cli.evaluate import evaluate
from hgprompt_edge.cli.export import export
from hgprompt_edge.cli.fit import fit
from hgprompt_edge.cli.merge import merge
from hgprompt_edge.cli.monitor import monitor
from hgprompt_edge.cli.predict import predict
from hgprompt_edge.cli.shared.commands import Commands
from hgprompt_edge.cli.shared.console import prepare_output
from hgprompt_edge.cli.tasks import tasks
from hgprompt_edge.cli.tune import tune
from hgprompt_edge.cli.verify import verify
from hgprompt_edge.cores import fewer_cores

app = typer.Typer(
    name="hgedge",
    cls=Commands,
    help="Combine visual prompts for a frozen ViT, fold them into one model, run it on a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
SERVER, DEVICE, ASSETS, CHECKS = "On the server", "On the device", "Assets", "Checks"
app.command(rich_help_panel=SERVER)(fit)
app.command(rich_help_panel=SERVER)(compare)
app.command(rich_help_panel=SERVER)(tune)
app.command(rich_help_panel=SERVER)(condition)
app.command(rich_help_panel=SERVER)(export)
app.command(rich_help_panel=SERVER)(merge)
app.command(rich_help_panel=DEVICE)(predict)
app.command(rich_help_panel=DEVICE)(evaluate)
app.command(rich_help_panel=DEVICE)(monitor)
app.command(rich_help_panel=DEVICE)(adapt)
app.add_typer(state.app, name="state", rich_help_panel=DEVICE)
app.add_typer(device.app, name="device", rich_help_panel=DEVICE)
app.command(rich_help_panel=DEVICE)(bench)
app.add_typer(prompt.app, name="prompt", rich_help_panel=ASSETS)
app.add_typer(backbone.app, name="backbone", rich_help_panel=ASSETS)
app.command(rich_help_panel=ASSETS)(tasks)
app.add_typer(cache.app, name="cache", rich_help_panel=ASSETS)
app.command(rich_help_panel=CHECKS)(verify)
app.command(rich_help_panel=CHECKS)(doctor)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"hgedge {version('hgprompt-edge')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Combine visual prompts for a frozen ViT, fold them into one model, run it on a device."""


def main() -> None:
    """Entry point of the console script."""
    # Where cores are shared, threads that spin while they wait cost a fit four times its time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Libraries count the machine's cores, not those that a container may use.
    if cores := fewer_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    prepare_output()
    app()


if __name__ == "__main__":
    main()
