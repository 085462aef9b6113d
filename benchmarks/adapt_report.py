"""docs/ADAPT.md's table and figure, drawn from benchmarks/results/adapt.json."""

from __future__ import annotations

from pathlib import Path

from rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adapt.json"
FIGURE = ROOT / "docs" / "images" / "adapt.png"


def write_report() -> None:
    print(len(read_rows(RESULTS)))
