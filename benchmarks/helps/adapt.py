"""Measure what adapting on the device recovers of the accuracy that a shift costs.

    python benchmarks adapt --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks adapt_memory --bundles DIR                             # peak_rss_mb
    python benchmarks adapt --only-report        # docs/results/adapt.md from the rows

`--bundles` holds TASK.hgbundle with condition prompts, a quarter of an hour each on one core:

    hgedge fit --task TASK --data DATA/TASK --output DIR/TASK.hgbundle \
        --conditions dark,blur,noise,cast,jpeg,lowres        # digits needs no --data

The test part is split once: from one share the device sees its images, on the other accuracy is
measured. Everything runs through the product's device code on the exported models; `prompt_full`,
prompt tuning by backpropagation in PyTorch, is the upper bound. A cell is a task, shift, severity
and seed; its rows are appended to the results as soon as it is done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from helps.adapt_cases import Case, Device
from helps.adapt_methods import METHODS, WITHOUT_LABELS
from helps.adapt_report import RESULTS, draw, report
from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.data.conditions import CONDITIONS, SHIFTS, corrupt
from shared.device_study import UNLABELLED, device_parser, load_tiny
from shared.pages import write_page
from shared.rows import Row, add_rows, read_rows
from shared.study import add_sharing, mine, run_study

KEYS = ("task", "shift", "severity", "images_per_class", "method", "seed")
"""Rows of the same values of these are of the same run."""
SEEN_SHARE = 0.4
"""Of the test part: where the device's images come from."""


def main() -> None:
    parser = device_parser(__doc__, required=False)
    parser.add_argument("--shifts", nargs="*", default=list(SHIFTS))
    parser.add_argument("--severities", type=int, nargs="*", default=[3, 2, 1])
    parser.add_argument("--images", type=int, nargs="*", default=[5], help="a class, with labels")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    add_sharing(parser, ".adapt")
    run_study(parser.parse_args(), run, RESULTS, KEYS, needed=("data", "bundles"))
    draw()
    write_page("adapt", report())


def run(options: argparse.Namespace) -> None:
    backbone = load_tiny()
    devices: dict[str, Device] = {}
    for cell in mine(options, list(cells(options))):
        path = options.work / f"{cell.key}.json"
        known = {row["method"] for row in read_rows(path)}
        missing = [name for name in options.methods if name not in known]
        if not missing:
            continue
        if cell.task not in devices:
            devices[cell.task] = Device.load(cell.task, backbone, options)
        add_rows(path, *run_cell(cell, devices[cell.task], missing))


@dataclass(frozen=True)
class Cell:
    """One task under one shift, as a device with so many labelled images a class meets it."""

    task: str
    shift: str
    severity: int
    seed: int
    images_per_class: int

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.task}_{self.shift}_{self.severity}_{self.seed}_{self.images_per_class}"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seeds and severities outermost, so that a run that is cut short is whole up to there."""
    for seed in options.seeds:
        for count in options.images:
            for severity in options.severities:
                for shift in options.shifts:
                    for task in options.tasks:
                        yield Cell(task, shift, severity, seed, count)


def run_cell(cell: Cell, device: Device, methods: Sequence[str]) -> Iterator[Row]:
    rng = np.random.default_rng([cell.seed, 1])
    order = rng.permutation(len(device.test))
    cut = int(SEEN_SHARE * len(order))
    seen, measured = order[:cut], order[cut:]
    labels = device.test.labels
    shifted = corrupt(device.test.pixels, cell.shift, cell.severity, cell.seed)
    shots = np.concatenate(
        [seen[labels[seen] == c][: cell.images_per_class] for c in np.unique(labels)]
    )
    case = Case(
        device, shifted[shots], labels[shots], shifted[seen[:UNLABELLED]], shifted[measured],
        labels[measured], cell.seed,
    )  # fmt: skip
    clean = accuracy(device.logits(device.test.pixels[measured], device.initial), labels[measured])
    before = case.measure(device.initial)
    for method in methods:
        began = time.perf_counter()
        outcome = METHODS[method](case)
        yield {
            "task": cell.task,
            "bundle": device.digest,
            "shift": cell.shift,
            "severity": cell.severity,
            "seen": cell.shift in CONDITIONS,
            "images_per_class": None if method in WITHOUT_LABELS else cell.images_per_class,
            "method": method,
            "seed": cell.seed,
            "accuracy_clean": clean,
            "accuracy_before": before,
            "accuracy_after": outcome.after if outcome.taken else before,
            "accuracy_unguarded": outcome.after,
            "taken": outcome.taken,
            "figures": {name: round(value, 4) for name, value in outcome.figures.items()},
            "steps": outcome.steps,
            "seconds": round(time.perf_counter() - began + case.memory.take_saved(), 2),
            "peak_rss_mb": None,  # of a process of its own: adapt_memory.py
        }


if __name__ == "__main__":
    main()
