"""Accuracies as dots with their intervals, a row for each way: the one plot for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from hgprompt_edge.figures.style import BLUE, GREY, drawable
from hgprompt_edge.maths.proportions import Proportion


@dataclass(frozen=True)
class AccuracyRow:
    """One row of the plot.

    Attributes
    ----------
    title
        What was measured.
    held_out, test
        Accuracies in [0, 1] with their intervals; None: not known, and not drawn.
    bold
        Whether it is the row to look at.
    """

    title: str
    held_out: Proportion | None
    test: Proportion | None
    bold: bool = False


def draw_accuracies(axes: Axes, rows: Sequence[AccuracyRow]) -> None:
    """Draw the rows from the top down; test accuracies carry their value."""
    for row, content in enumerate(rows):
        both = content.held_out is not None and content.test is not None
        if content.held_out is not None:
            _dot(axes, content.held_out, row - (0.16 if both else 0), GREY, "held-out images", row)
        if content.test is not None:
            _dot(axes, content.test, row + (0.16 if both else 0), BLUE, "test images", row)
        shown = content.test or content.held_out
        if shown is not None:
            axes.annotate(
                f"{100 * shown.value:.1f}",
                (1.01, row),
                xycoords=("axes fraction", "data"),
                va="center",
                fontweight="bold" if content.bold else "normal",
            )
    axes.set_yticks(range(len(rows)), [drawable(row.title) for row in rows], parse_math=False)
    for label, content in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if content.bold else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e9ec")
    axes.set_axisbelow(True)


def _dot(
    axes: Axes, accuracy: Proportion, height: float, colour: str, label: str, row: int
) -> None:
    ends = [100 * accuracy.low, 100 * accuracy.high]
    axes.plot(ends, [height] * 2, color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
    axes.plot(
        [100 * accuracy.value],
        [height],
        "o",
        color=colour,
        markersize=5,
        label=label if row == 0 else None,
    )
