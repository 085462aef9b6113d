"""Measure whether learned weights transfer better than what a user would do otherwise.

    python benchmarks/transfer.py --data ../shared/assets/datasets       # hours; resumes if killed
    python benchmarks/transfer.py --data ... --part 1/2 & ... --part 2/2   # on two processes
    python benchmarks/transfer.py --only-report                          # figures from the rows

Every target meets the bank of `tiny` without the sources of its own family. A cell is one target,
seed, bank and number of training images; its rows go to a file of their own in `--work`, so a
killed run goes on where it was. The seed draws the training and validation images and everything
random in the methods; the test part is the same for all. Cells that the results file or `--work`
holds already are not run again: remove both after a change of the bank or of a method.

All rows are gathered into benchmarks/results/transfer.json, from which docs/TRANSFER.md and its
figures are drawn (benchmarks/transfer_report.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rows import gather_rows, read_rows
from targets import TARGETS, few, load_target
from transfer_report import RESULTS, is_bank_study, write_report

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.files import write_bytes
from hgprompt_edge.prompts import PromptBank
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.baselines import METHODS, Budget
from hgprompt_edge.transfer.checks import leave_out_family
from hgprompt_edge.transfer.compare import compare
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.fastest import choose_compute

KEYS = ("backbone", "images_per_class", "bank_size", "task", "seed", "method")
"""Rows of the same values of these are of the same run."""
MAIN_METHODS = ("none", "best_source", "uniform", "hgprompt", "hgprompt_guarded")
SIZES = (2, 5, 10, 80)
SIZE_TARGETS = ("flowers17", "dtd10", "weather4", "digits")
BUDGET = Budget(evaluations=20, spot_steps=6, tune_steps=10)


@dataclass(frozen=True)
class Cell:
    """One run of `compare`: all its rows share task, seed, bank and training images."""

    task: str
    seed: int
    images_per_class: int | None = None
    bank_size: int | None = None
    backbone: str = "tiny"
    methods: tuple[str, ...] = tuple(METHODS)

    @property
    def key(self) -> str:
        """Name of its file."""
        parts = (self.backbone, self.task, self.seed, self.images_per_class, self.bank_size)
        rows = "" if self.methods == tuple(METHODS) else "_main"
        return "_".join("all" if part is None else str(part) for part in parts) + rows

    def is_in(self, rows: list[dict[str, Any]]) -> bool:
        """Whether these rows hold all of its methods."""
        found = {
            row["method"]
            for row in rows
            if (row["backbone"], row["task"], row["seed"]) == (self.backbone, self.task, self.seed)
            and row["images_per_class"] == self.images_per_class
            and (row["bank_size"] == self.bank_size or self.bank_size is None)
            and is_bank_study(row) == (self.bank_size is not None)
        }
        return found >= set(self.methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--bank", type=Path, help="another bank than the bundled one")
    parser.add_argument("--checkpoint", type=Path, help="weights that the bank was trained on")
    parser.add_argument("--name", default="tiny", help="what the rows call the backbone")
    parser.add_argument("--banks", type=int, nargs="*", default=[], help="sizes of the bank")
    parser.add_argument("--main-rows", action="store_true", help="only the main methods")
    parser.add_argument("--sizes", action="store_true", help="2, 5, 10 and 80 images a class")
    parser.add_argument("--part", default="1/1", help="this share of the cells: 1/2, 2/2")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.transfer"))
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    if not options.only_report:
        if options.data is None:
            raise SystemExit("name the folder of the data sets with --data")
        run(options)
    gather_rows(RESULTS, options.work, KEYS)
    write_report()


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    bank = read_bank(options.bank or "tiny")
    backbone = load_backbone(
        "tiny" if options.checkpoint is None else None, checkpoint=options.checkpoint
    )
    backbone = backbone.with_compute(choose_compute(backbone).compute)
    part, parts = (int(word) for word in options.part.split("/"))
    landed = read_rows(RESULTS)
    for cell in list(cells(options))[part - 1 :: parts]:
        path = options.work / f"{cell.key}.json"
        if path.exists() or cell.is_in(landed):
            continue
        task = load_target(cell.task, backbone, options.data, cell.seed)
        if task is None:
            print(f"{cell.task}: its images are not here", flush=True)
            continue
        rows = run_cell(cell, task, backbone, bank)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(rows).encode())
        shown = ", ".join(f"{row['method']} {100 * row['accuracy']:.1f}" for row in rows)
        print(f"{cell.key} ({sum(row['seconds'] for row in rows):.0f} s): {shown}", flush=True)


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seeds outermost, so that a run that is cut short has whole seeds."""
    methods = MAIN_METHODS if options.main_rows else tuple(METHODS)
    for seed in options.seeds:
        for name in options.targets:
            if options.sizes:
                for count in SIZES:
                    yield Cell(name, seed, count, None, options.name, MAIN_METHODS)
            elif options.banks:
                for size in options.banks:
                    yield Cell(name, seed, None, size, options.name, MAIN_METHODS)
            else:
                yield Cell(name, seed, None, None, options.name, methods)


def run_cell(cell: Cell, task: Task, backbone: Backbone, bank: PromptBank) -> list[dict[str, Any]]:
    if cell.images_per_class is not None:
        # Validation shrinks with the rest: a user with two images a class has no 200 to validate.
        held = max(1, round(cell.images_per_class / 4))
        task = replace(
            task,
            train=few(task.train, cell.images_per_class, cell.seed),
            validation=few(task.validation, held, cell.seed),
        )
    if cell.bank_size is not None:
        others, _ = leave_out_family(bank, task)
        if len(others.prompts) < cell.bank_size:
            raise SystemExit(f"{cell.task} meets {len(others.prompts)} sources: too few")
        bank = replace(bank, prompts=others.prompts[: cell.bank_size])
    contest, results = compare(
        bank, backbone, task, methods=cell.methods, budget=BUDGET, seed=cell.seed
    )
    return [
        {
            "backbone": cell.backbone,
            "task": cell.task,
            "family": task.family,
            "seed": cell.seed,
            "bank_size": len(contest.bank.prompts),
            "images_per_class": cell.images_per_class,
            "method": result.method,
            "accuracy": result.accuracy,
            "val_accuracy": result.val_accuracy,
            "image_passes": result.image_passes,
            "seconds": round(result.seconds, 2),
            "effective_sources": round(result.effective_sources, 3),
        }
        for result in results
    ]


if __name__ == "__main__":
    main()
