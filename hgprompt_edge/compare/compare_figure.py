"""The figure of a comparison: accuracy with intervals, weights, the two terms over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.compare.run import Result
from hgprompt_edge.figures.accuracies import AccuracyRow, draw_accuracies
from hgprompt_edge.figures.style import ORANGE, drawable, legend_below, new_figure, save, style
from hgprompt_edge.fit.figure import draw_terms
from hgprompt_edge.maths.proportions import Proportion

TITLES = {
    **{name: ROW_TITLES[name] for name in ("none", "best_source", "uniform")},
    "spot": "similarity (SPoT)",
    "h_only": "no conflict term",
    "alignment_only": "alignment only",
    "gradient_free": "gradient-free (LoraHub)",
    "soup": "greedy soup",
    "prediction_average": "prediction average",
    "hgprompt": ROW_TITLES["learned"],
    "hgprompt_guarded": "kept by fit",
    "two_folded": "two folded prompts",
    "three_folded": "three folded prompts",
    "tune": "kept by fit, then tuned",
    "tune_guarded": "kept by fit with tuning",
    "vpt_scratch": "VPT from scratch",
}
FROM_FIT = {"hgprompt_guarded", "two_folded", "three_folded", "tune_guarded"}
"""Rows of what `fit` can write, by its options."""


def draw_comparison(
    task: str,
    sources: Sequence[str],
    results: Sequence[Result],
    history: Sequence[dict[str, Any]],
    path: Path,
) -> None:
    """Write a PNG of three panels; `history` is that of the learned weights, or empty."""
    with style():
        figure = new_figure(15, max(4.5, 1.6 + 0.34 * len(results)))
        axes = figure.subplot_mosaic("AWH;AWR", width_ratios=(1.2, 1.4, 0.9))
        _draw_accuracy(axes["A"], results)
        _draw_weights(axes["W"], sources, results)
        draw_terms(axes["H"], axes["R"], history)
        title = f"{task}: ways to use source prompts"
        figure.suptitle(drawable(title), parse_math=False, x=0.01, ha="left", fontsize=11)
        save(figure, path)


def _draw_accuracy(axes: Axes, results: Sequence[Result]) -> None:
    draw_accuracies(axes, [_row(result) for result in results])
    reference = next((r for r in results if r.method == "none"), None)
    if reference is not None and reference.accuracy is not None:
        axes.axvline(100 * reference.accuracy, color=ORANGE, linestyle=":", label="no prompt")
    legend_below(axes)
    tested = any(result.accuracy is not None for result in results)
    part = "with 95 % interval" if tested else "on held-out images"
    axes.set_title(f"accuracy in % {part}; bold: what fit can ship")


def _row(result: Result) -> AccuracyRow:
    """Test accuracy with its interval; without a test part the held-out one, which has none."""
    title, shipped = TITLES[result.method], result.method in FROM_FIT
    if result.accuracy is None or result.low is None or result.high is None:
        held_out = Proportion(*(result.val_accuracy,) * 3)
        return AccuracyRow(title, held_out, None, shipped)
    return AccuracyRow(title, None, Proportion(result.accuracy, result.low, result.high), shipped)


def _draw_weights(axes: Axes, sources: Sequence[str], results: Sequence[Result]) -> None:
    mixed = [result for result in results if np.abs(result.weights).any()]
    if not mixed:
        axes.set_axis_off()
        return
    table = np.array([result.weights for result in mixed]).reshape(len(mixed), len(sources))
    limit = max(1.0, float(np.abs(table).max()))
    axes.imshow(table, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    for row, weights in enumerate(table):
        for column, weight in enumerate(weights):
            colour = "white" if abs(weight) > 0.6 * limit else "black"
            text = f"{weight:.2f}".replace("0.", ".", 1) if abs(weight) >= 0.005 else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(
        range(len(sources)),
        [drawable(source) for source in sources],
        rotation=35,
        rotation_mode="anchor",
        ha="right",
        fontsize=8,
        parse_math=False,
    )
    axes.set_yticks(range(len(mixed)), [TITLES[result.method] for result in mixed], fontsize=8)
    axes.set_title("weight of each prompt (mean of its layers)")
