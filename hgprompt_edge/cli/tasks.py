"""`hgedge tasks`: the data sets that `--task` knows by name."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import out, print_json, reports_errors

GENERATED = "drawn"
BY_HAND = "by hand"


@reports_errors
def tasks(json: options.Json = False) -> None:
    """List the tasks that --task knows: classes, family, and where the images come from."""
    rows = _rows()
    if json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("task", "group", "classes", "family", "images"):
        table.add_column(title, justify="right" if title == "classes" else "left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)
    out.print(
        "no source prompt of a task's own family is used for it; "
        "`hgedge fit --task NAME` says where images that are missing belong",
        soft_wrap=True,
    )


def _rows() -> list[dict[str, Any]]:
    from hgprompt_edge.data.generated import KINDS
    from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS
    from hgprompt_edge.data.vtab import VTAB

    rows = [
        {
            "task": task.name,
            "group": task.group,
            "classes": task.classes,
            "family": task.family,
            "images": "--download" if task.name in LAYOUTS else BY_HAND,
        }
        for task in VTAB.values()
    ]
    rows.append(
        {
            "task": "digits",
            "group": "",
            "classes": 10,
            "family": "digits",
            "images": "scikit-learn",
        }
    )
    return rows + [
        {
            "task": name,
            "group": "generated",
            "classes": len(kind.classes),
            "family": kind.family,
            "images": GENERATED,
        }
        for name, kind in KINDS.items()
    ]
