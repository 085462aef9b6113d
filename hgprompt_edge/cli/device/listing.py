"""`hgedge device list`: what a device folder serves, and which of it cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hgprompt_edge.cli.device.adapters import Folder
from hgprompt_edge.cli.device.folder import default_of, opened, read_task_of
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

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.tasks.task_file import TaskFile


@reports_errors
def list_tasks(folder: Folder, json: options.Json = False) -> None:
    """Print the tasks: classes, folded prompts, size, origin; exit code 2 if one is broken."""
    from hgprompt_edge.artifacts.tasks.device_files import task_paths

    facts, width = opened(folder)
    default = facts.default if (folder / default_of(folder)).exists() else ""
    rows = []
    for name, path in task_paths(folder).items():
        found: TaskFile | UserError
        try:
            found = read_task_of(path, folder, facts, width)
        except UserError as error:
            found = error
        rows.append({"task": name, **_row(path, found), "default": name == default})
    broken = [row for row in rows if row["error"]]
    if json:
        print_json({"backbone": facts.backbone, "precision": facts.precision, "tasks": rows})
    else:
        out.print(
            f"{folder}: {facts.backbone}, {facts.preprocessing.image_size} px", soft_wrap=True
        )
        out.print(_table(rows, default_of(folder)))
        for row in broken:
            note(row["error"])
    if broken:
        names = [row["task"] for row in broken]
        remove = command_line("device", "remove", folder, names[0])
        fail(f"{folder}: {some(names)} cannot be used; `{remove}` removes a task", EXIT_BAD_INPUT)


def _row(path: Path, found: TaskFile | UserError) -> dict[str, Any]:
    if isinstance(found, UserError):
        nothing = dict.fromkeys(("classes", "folded_prompts", "bundle_sha256", "adapts"))
        return {**nothing, "bytes": path.stat().st_size, "error": as_options(found)}
    return {
        "classes": len(found.metadata.classes),
        "folded_prompts": found.metadata.folded_prompts,
        "bytes": path.stat().st_size,
        "bundle_sha256": found.metadata.bundle_sha256,
        "adapts": found.bank is not None,
        "error": None,
    }


def _table(rows: list[dict[str, Any]], default: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("task", "classes", "prompts", "KB", "from bundle"):
        table.add_column(column, justify="left" if column in ("task", "from bundle") else "right")
    for row in rows:
        whole = not row["error"]
        table.add_row(
            row["task"] + (f" (in {default})" if row["default"] else ""),
            str(row["classes"]) if whole else "",
            str(row["folded_prompts"]) if whole else "",
            f"{row['bytes'] / 1000:.0f}",
            row["bundle_sha256"][:12] if whole else "(broken)",
        )
    return table
