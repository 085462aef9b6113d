"""Share of the accuracy lost to a shift that a method brings back."""

from __future__ import annotations

from collections.abc import Sequence

from shared.intervals import bootstrap
from shared.pages import percent
from shared.rows import Row, Rows


def lost(row: Row) -> float:
    return float(row["accuracy_clean"] - row["accuracy_before"])


def gained(row: Row) -> float:
    return float(row["accuracy_after"] - row["accuracy_before"])


def of_method(rows: Rows, method: str, shifts: Sequence[str]) -> Rows:
    """Rows of a method under these shifts."""
    return [row for row in rows if row["method"] == method and row["shift"] in shifts]


def recovered(rows: Rows, method: str, shifts: Sequence[str]) -> float:
    """Sum of the gains by the sum of the losses; NaN where there are none."""
    chosen = of_method(rows, method, shifts)
    losses = sum(map(lost, chosen))
    return sum(map(gained, chosen)) / losses if losses > 0 else float("nan")


def with_interval(rows: Rows, method: str, shifts: Sequence[str]) -> str:
    """Recovered share with its interval; seeds of a task and shift are drawn together."""
    cells: dict[tuple[str, str], Rows] = {}
    for row in of_method(rows, method, shifts):
        cells.setdefault((row["task"], row["shift"]), []).append(row)
    if not cells:
        return "-"
    sums = [[sum(map(part, found)) for found in cells.values()] for part in (gained, lost)]
    low, high = bootstrap(*sums)
    return f"{percent(recovered(rows, method, shifts))} ({100 * low:.0f} to {100 * high:.0f})"
