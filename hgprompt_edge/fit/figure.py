"""The figure of a fit: what each choice is worth, the weights, and the objective over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hgprompt_edge.artifacts.bundle import ROW_TITLES, Bundle, Row
from hgprompt_edge.data import Task
from hgprompt_edge.figures.accuracies import AccuracyRow, draw_accuracies
from hgprompt_edge.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    drawable,
    legend_below,
    new_figure,
    save,
    style,
)
from hgprompt_edge.maths.proportions import Proportion, wilson

ROW_HEIGHT = 0.2
"""Inches for each prompt."""


def draw_fit(bundle: Bundle, images: Task, history: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of three parts; `history` is `HGPrompt.history_`, perhaps empty."""
    with style():
        figure = new_figure(12, max(3.6, 1.4 + ROW_HEIGHT * len(bundle.sources)))
        axes = figure.subplot_mosaic("AWH;AWR", width_ratios=(1.1, 1.0, 0.9))
        accuracies = axes["A"]
        draw_accuracies(accuracies, [_row(row, bundle, images) for row in bundle.table])
        accuracies.set_title("accuracy in % with 95 % interval; bold: kept")
        legend_below(accuracies)
        _draw_weights(axes["W"], bundle)
        draw_terms(axes["H"], axes["R"], history)
        # A name may hold dollar signs, which are no formula.
        title = f"{bundle.task}: {ROW_TITLES[bundle.choice]} kept"
        figure.suptitle(drawable(title), parse_math=False, x=0.01, ha="left", fontsize=11)
        save(figure, path)


def _row(row: Row, bundle: Bundle, images: Task) -> AccuracyRow:
    return AccuracyRow(
        ROW_TITLES[row.method],
        _interval(row.val_accuracy, len(images.validation)),
        _interval(row.test_accuracy, len(images.test)),
        row.method == bundle.choice,
    )


def _interval(accuracy: float | None, images: int) -> Proportion | None:
    return None if accuracy is None or not images else wilson(round(accuracy * images), images)


def _draw_weights(axes: Axes, bundle: Bundle) -> None:
    learned = bundle.learned_mix
    names, weights, shares = learned.names, learned.values, learned.shares
    axes.barh(range(len(names)), shares, color=BLUE, alpha=0.85, label="mean of the layers")
    axes.set_yticks(range(len(names)), [drawable(name) for name in names], parse_math=False)
    axes.axvline(1 / len(names), color=GREY, linestyle=":", label="equal weights")
    if learned.by_layer:
        rows = np.repeat(np.arange(len(names)), weights.shape[1])
        axes.plot(weights.flatten(), rows, ".", color=ORANGE, markersize=3, label="each layer")
    for row, share in enumerate(shares):
        axes.annotate(f"{share:.2f}", (1.01, row), xycoords=("axes fraction", "data"), va="center")
    axes.set_xlim(0, max(1.05 * float(weights.max()), 1.3 / len(names)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title("learned mixing weights")
    legend_below(axes)


def draw_terms(upper: Axes, lower: Axes, history: Sequence[dict[str, Any]]) -> None:
    """Draw the two terms of the objective over the steps, one above the other; none: nothing."""
    if not history:
        upper.set_axis_off()
        lower.set_axis_off()
        return
    steps = range(len(history))
    upper.plot(steps, [row["H_d"] for row in history], color=BLUE)
    upper.set_title("H-score less noise (more is better)")
    lower.plot(steps, [row["R"] for row in history], color=ORANGE)
    lower.set_title("gradient conflict R (less is better)")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.locator_params(axis="x", integer=True)
