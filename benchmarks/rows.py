"""Rows of figures as a JSON list, one row a line, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hgprompt_edge.files import write_bytes


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of the file; none where there is no file yet."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the file, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_bytes(path, f"[\n{lines}\n]\n".encode())


def gather_rows(results: Path, work: Path, keys: Sequence[str]) -> None:
    """Add the rows of the files in `work` to the results; a newer row of the same keys replaces."""
    found = read_rows(results)
    for path in sorted(work.glob("*.json")):
        found += json.loads(path.read_text())
    rows = {tuple(str(row[key]) for key in keys): row for row in found}
    if rows:
        write_rows(results, (row for _, row in sorted(rows.items())))
