"""`hgedge device adapters`: tasks as adapter files of ONNX Runtime, and what makes these wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, reports_errors

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
        written = write_adapters(folder)
    if json:
        print_json(
            {
                "graph": str(folder / GRAPH),
                "adapters": [
                    {"path": str(each.path), "version": each.version and each.version.id}
                    for each in written
                ],
            }
        )
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


def drop_adapters(folder: Path, task: str | None = None) -> None:
    """Remove the adapter of a task that has changed, or all of a folder, and say so."""
    from hgprompt_edge.runtime.adapters import old_adapters

    if old := old_adapters(folder, task):
        for path in old:
            path.unlink()
        note(
            f"removed {', '.join(map(str, old))}, made before; write them again with "
            f"`hgedge device adapters {folder}`"
        )


def note_old_adapter(path: Path) -> None:
    """Say where a task has an adapter with the weights of before."""
    from hgprompt_edge.runtime.adapters import old_adapters

    if path.suffix == ".hgtask" and (old := old_adapters(path.parent, path.stem)):
        note(
            f"{old[0]}: holds the weights of before; write it again with "
            f"`hgedge device adapters {path.parent}`"
        )
