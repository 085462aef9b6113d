"""`hgedge device adapters`: tasks as adapter files of ONNX Runtime, and what makes these wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    EXIT_BAD_INPUT,
    fail,
    note,
    out,
    print_json,
    reports_errors,
)
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.text import command_line
from hgprompt_edge.errors import UserError, some

Folder = Annotated[
    Path, typer.Argument(help="Device folder that `hgedge export` wrote.", show_default=False)
]


@reports_errors
def adapters(folder: Folder, json: options.Json = False) -> None:
    """Write each task as an adapter file of ONNX Runtime, at the weights in force."""
    from hgprompt_edge.runtime.adapters import GRAPH, write_adapters
    from hgprompt_edge.runtime.device_folder import folder_graph
    from hgprompt_edge.state.lock import only_one

    with only_one(folder_graph(folder).parent, "device"):
        written, failed = write_adapters(folder)
        for name in failed:
            drop_adapters(folder, name)
    problem = (
        f"{folder}: no adapter for {some(list(failed))}; the others were written" if failed else ""
    )
    if json:
        print_json(
            {
                "graph": str(folder / GRAPH),
                "adapters": [
                    {"path": str(each.path), "version": each.version and each.version.id}
                    for each in written
                ],
                "failed": {name: _why(folder, name, error) for name, error in failed.items()},
            }
        )
        if problem:
            fail(problem, EXIT_BAD_INPUT)
        return
    out.print(
        f"{folder / GRAPH}: on the weights of backbone.onnx; NaN without an adapter", soft_wrap=True
    )
    for each in written:
        learned = each.version is not None and each.version.images > 0
        which = f"version {each.version.id}" if each.version and learned else "as exported"
        out.print(
            f"{each.path}: {each.path.stat().st_size / 1000:.0f} KB, {which}, checked in "
            "onnxruntime on its own images",
            soft_wrap=True,
        )
    for name, error in failed.items():
        note(_why(folder, name, error))
    if problem:
        fail(problem, EXIT_BAD_INPUT)


def _why(folder: Path, name: str, error: UserError) -> str:
    """Say why a task has no adapter; a command in it names the task."""
    reset = command_line("state", "reset", "--model", folder / f"{name}.hgtask")
    return as_options(error).replace("`hgedge state reset`", f"`{reset}`")


def drop_adapters(folder: Path, task: str | None = None) -> None:
    """Remove the adapter of a task that has changed, or all of a folder, and say so."""
    from hgprompt_edge.runtime.adapters import old_adapters

    if old := old_adapters(folder, task):
        for path in old:
            path.unlink()
        again = command_line("device", "adapters", folder)
        note(f"removed {', '.join(map(str, old))}, made before; write them again with `{again}`")


def note_old_adapter(path: Path) -> None:
    """Say where a task has an adapter with the weights of before."""
    from hgprompt_edge.runtime.adapters import old_adapters

    if path.suffix == ".hgtask" and (old := old_adapters(path.parent, path.stem)):
        again = command_line("device", "adapters", path.parent)
        note(f"{old[0]}: holds the weights of before; write it again with `{again}`")
