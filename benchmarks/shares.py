"""Share of the accuracy lost to a shift that a method brings back."""

from __future__ import annotations

from typing import Any

import numpy as np


def recovered(rows: list[dict[str, Any]], method: str, shifts: tuple[str, ...]) -> float:
    """Sum of the gains by the sum of the losses; NaN where there are none."""
    chosen = [row for row in rows if row["method"] == method and row["shift"] in shifts]
    lost = sum(row["accuracy_clean"] - row["accuracy_before"] for row in chosen)
    gained = sum(row["accuracy_after"] - row["accuracy_before"] for row in chosen)
    return gained / lost if lost > 0 else float("nan")


def with_interval(rows: list[dict[str, Any]], method: str, shifts: tuple[str, ...]) -> str:
    """Recovered share with its interval; seeds of a task and shift are drawn together."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] == method and row["shift"] in shifts:
            groups.setdefault((row["task"], row["shift"]), []).append(row)
    if not groups:
        return "-"
    rng, cells = np.random.default_rng(0), list(groups.values())
    drawn = [
        recovered([row for i in rng.integers(len(cells), size=len(cells)) for row in cells[i]],
                  method, shifts)
        for _ in range(2000)
    ]  # fmt: skip
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{percent(recovered(rows, method, shifts))} ({100 * low:.0f} to {100 * high:.0f})"


def percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f} %"
