"""Accuracies of methods by target and seed, their means and paired intervals.

Means are taken over seeds first, so that every target counts alike. Intervals are 95 % percentile
bootstraps that draw targets, and seeds within them, with replacement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.transfer.baselines import METHODS

RESAMPLES = 4000

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]


class Cube:
    """Accuracies `[targets][seeds, methods]` of the cells that have all the methods."""

    def __init__(self, tasks: Sequence[str], methods: Sequence[str], cells: list[Floats]) -> None:
        self.tasks, self.methods, self.cells = tuple(tasks), tuple(methods), cells

    def column(self, method: str) -> int:
        """Index of a method."""
        return self.methods.index(method)

    @property
    def by_task(self) -> Floats:
        """`[targets, methods]`, means over seeds."""
        return np.stack([cell.mean(0) for cell in self.cells])

    def without(self, tasks: Sequence[str]) -> Cube:
        """Leave these targets out."""
        kept = [row for row, task in enumerate(self.tasks) if task not in tasks]
        return Cube([self.tasks[i] for i in kept], self.methods, [self.cells[i] for i in kept])

    @property
    def seeds(self) -> str:
        """How many seeds a target has, in words."""
        least, most = min(map(len, self.cells)), max(map(len, self.cells))
        if least < most:
            return f"{least} to {most} seeds"
        return "1 seed" if most == 1 else f"{most} seeds"

    def bootstrap(self, statistic: Callable[[Floats], Floats]) -> tuple[Floats, Floats, Floats]:
        """Value and interval of a statistic of `[targets, methods]`."""
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(RESAMPLES):
            picked = rng.integers(0, len(self.cells), len(self.cells))
            means = [
                cell[rng.integers(0, len(cell), len(cell))].mean(0)
                for cell in (self.cells[i] for i in picked)
            ]
            drawn.append(statistic(np.stack(means)))
        low, high = np.quantile(np.stack(drawn), [0.025, 0.975], axis=0)
        return statistic(self.by_task), low, high


def cube(rows: Sequence[Row], order: Sequence[str] = tuple(METHODS)) -> Cube:
    """Cells of these rows that have all the methods found in them, in this order."""
    present = {row["method"] for row in rows}
    methods = [method for method in order if method in present]
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["task"]][row["seed"]][row["method"]] = row["accuracy"]
    tasks, cells = [], []
    for task, seeds in found.items():
        whole = [[cell[m] for m in methods] for cell in seeds.values() if len(cell) == len(methods)]
        if whole:
            tasks.append(task)
            cells.append(100 * np.array(whole))
    return Cube(tasks, methods, cells)
