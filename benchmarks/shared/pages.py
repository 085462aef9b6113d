"""Pages of docs/results: a text with gaps, from `benchmarks/pages`, filled with tables and figures.

A gap is a name in double braces, `{{name}}`. Prose is edited in the text, never in the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hgprompt_edge.files import write_bytes

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "benchmarks" / "pages"
GAP = re.compile(r"\{\{(\w+)\}\}")


def fill(name: str, /, **figures: object) -> str:
    """Fill the gaps of `benchmarks/pages/NAME.md`.

    Raises
    ------
    ValueError
        A gap without a figure, or a figure without a gap.
    """
    text = (TEXTS / f"{name}.md").read_text()
    gaps = set(GAP.findall(text))
    if gaps != set(figures):
        raise ValueError(f"{name}.md: gaps and figures differ: {sorted(gaps ^ set(figures))}")
    return GAP.sub(lambda gap: str(figures[gap[1]]), text)


def write_page(name: str, text: str) -> None:
    """Write docs/results/NAME.md."""
    path = ROOT / "docs" / "results" / f"{name}.md"
    write_bytes(path, text.encode())
    print(path)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table."""
    return "\n".join([line(heads), line(["---"] * len(heads)), lines(rows)]).rstrip()


def lines(rows: Iterable[Sequence[object]]) -> str:
    """Write rows of a table, without its head."""
    return "\n".join(line(row) for row in rows)


def line(cells: Sequence[object]) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def percent(share: float, digits: int = 0) -> str:
    """Format a share: `44 %`; `-` for NaN."""
    return "-" if np.isnan(share) else f"{100 * share:.{digits}f} %"


def points(gain: float) -> str:
    """Format a difference of shares in points: `+2.5`."""
    return f"{100 * gain:+.1f}"


def listed(values: Iterable[object]) -> str:
    """Separate by commas."""
    return ", ".join(map(str, values))
