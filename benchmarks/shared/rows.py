"""Rows of figures: a JSON list in a file, one row a line, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgprompt_edge.files import write_bytes

Row = dict[str, Any]
Rows = list[Row]
RESULTS = Path(__file__).parents[1] / "results"


def results_file(name: str) -> Path:
    """File of the rows of a benchmark."""
    return RESULTS / f"{name}.json"


def read_rows(path: Path) -> Rows:
    """Rows of the file; none where there is no file yet."""
    rows: Rows = json.loads(path.read_text()) if path.exists() else []
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_bytes(path, f"[\n{lines}\n]\n".encode())


def add_rows(path: Path, *rows: Row) -> None:
    """Append rows to the file as they are measured, and print them."""
    write_rows(path, [*read_rows(path), *rows])  # read anew: another process may have written
    print(*rows, sep="\n", flush=True)


def gather_rows(results: Path, work: Path, keys: Sequence[str]) -> None:
    """Add the rows of the files in `work` to the results; a newer row of the same keys replaces."""
    found = read_rows(results)
    for path in sorted(work.glob("*.json")):
        found += read_rows(path)
    rows = {tuple(str(row[key]) for key in keys): row for row in found}
    if rows:
        write_rows(results, (row for _, row in sorted(rows.items())))


def select(rows: Iterable[Row], **wanted: Any) -> Rows:
    """Take the rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def distinct(rows: Iterable[Row], key: str) -> list[Any]:
    """Values of a key, sorted, each once."""
    return sorted({row[key] for row in rows})


def mean_of(rows: Sequence[Row], key: str) -> float:
    """Mean of the values of a key; NaN without rows."""
    return float(np.mean([row[key] for row in rows])) if rows else float("nan")
