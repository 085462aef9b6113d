"""What the studies over targets and seeds share: options, whose turn a cell is, rows and page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rows import gather_rows, read_rows

Rows = list[dict[str, Any]]
Options = argparse.Namespace


def study_parser(
    doc: str | None, targets: Sequence[str], seeds: Sequence[int], work: str
) -> argparse.ArgumentParser:
    """Options of every study; a cell is a target and a seed."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(seeds))
    parser.add_argument("--targets", nargs="*", default=list(targets))
    parser.add_argument("--part", default="1/1", help="this share of the cells: 1/2, 2/2")
    parser.add_argument("--work", type=Path, default=Path("benchmarks") / work)
    parser.add_argument("--only-report", action="store_true")
    return parser


def run_study(
    options: Options, run: Callable[[Options], None], results: Path, keys: Sequence[str]
) -> Rows:
    """Run the cells that are missing, gather all rows into `results` and return them.

    A page without evidence is not written: where there are no rows, this ends.
    """
    if not options.only_report:
        if options.data is None:
            raise SystemExit("name the folder of the data sets with --data")
        run(options)
    gather_rows(results, options.work, keys)
    rows = read_rows(results)
    if not rows:
        raise SystemExit(f"{results}: no rows yet; run without --only-report first")
    return rows


def cells_of(options: Options) -> list[tuple[str, int]]:
    """Targets and seeds that are this process's, all targets of a seed first."""
    part, parts = (int(word) for word in options.part.split("/"))
    cells = [(name, seed) for seed in options.seeds for name in options.targets]
    return cells[part - 1 :: parts]


def known_rows(options: Options, results: Path) -> Rows:
    """Rows that are there already: gathered ones, and those of finished cells in `--work`."""
    return read_rows(results) + [
        row for path in sorted(options.work.glob("*.json")) for row in read_rows(path)
    ]
