"""What the studies over targets and seeds share: options, whose turn a cell is, rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from shared.rows import RESULTS, Rows, gather_rows, read_rows

Options = argparse.Namespace
Cell = TypeVar("Cell")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script, described by the first line of its docstring."""
    return argparse.ArgumentParser(description=(doc or "").split("\n")[0])


def study_parser(
    doc: str | None, targets: Sequence[str], seeds: Sequence[int], work: str
) -> argparse.ArgumentParser:
    """Options of every study; a cell is a target and a seed."""
    parser = make_parser(doc)
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(seeds))
    parser.add_argument("--targets", nargs="*", default=list(targets))
    add_sharing(parser, work)
    return parser


def add_sharing(parser: argparse.ArgumentParser, work: str) -> None:
    """Options by which several processes share the cells of a study."""
    parser.add_argument("--part", default="1/1", help="this share of the cells: 1/2, 2/2")
    parser.add_argument("--work", type=Path, default=RESULTS.parent / work)
    parser.add_argument("--only-report", action="store_true")


def run_study(
    options: Options,
    run: Callable[[Options], None],
    results: Path,
    keys: Sequence[str],
    needed: Sequence[str] = ("data",),
) -> None:
    """Run the cells that are missing and gather all rows into `results`.

    A page without evidence is not written: where there are no rows, this ends.
    """
    if not options.only_report:
        for name in needed:
            if getattr(options, name) is None:
                raise SystemExit(f"--{name}: name the folder, or use --only-report")
        import torch

        torch.set_num_threads(1)
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)
    gather_rows(results, options.work, keys)
    if not read_rows(results):
        raise SystemExit(f"{results}: no rows yet; run without --only-report first")


def mine(options: Options, cells: Sequence[Cell]) -> Sequence[Cell]:
    """Take the cells that are this process's, by `--part`."""
    part, parts = (int(word) for word in options.part.split("/"))
    return cells[part - 1 :: parts]


def cells_of(options: Options) -> Sequence[tuple[str, int]]:
    """Targets and seeds that are this process's, all targets of a seed first."""
    return mine(options, [(name, seed) for seed in options.seeds for name in options.targets])


def known_rows(options: Options, results: Path) -> Rows:
    """Rows that are there already: gathered ones, and those of finished cells in `--work`."""
    found = read_rows(results)
    for path in sorted(options.work.glob("*.json")):
        found += read_rows(path)
    return found
