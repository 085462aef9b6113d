"""The figure of a comparison: accuracy with intervals, weights, the two terms over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.compare.run import Result
from hgprompt_edge.files import atomic_path
from hgprompt_edge.fit.figure import BLUE, GREY, ORANGE, draw_terms, legend_below

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
    "tune": "learned mix, then tuned",
    "vpt_scratch": "VPT from scratch",
}
OURS = {"hgprompt", "hgprompt_guarded", "two_folded", "three_folded", "tune"}


def draw_comparison(
    task: str,
    sources: Sequence[str],
    results: Sequence[Result],
    history: Sequence[dict[str, Any]],
    path: Path,
) -> None:
    """Write a PNG of three panels; `history` is that of the learned weights, or empty."""
    figure = Figure(figsize=(15, 5), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1.3, 1))
    _draw_accuracy(left, results)
    _draw_weights(middle, sources, results)
    if history:
        draw_terms(right, history)
    else:
        right.set_axis_off()
    figure.suptitle(f"{task}: ways to use source prompts", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_accuracy(axes: Axes, results: Sequence[Result]) -> None:
    for row, result in enumerate(results):
        colour = BLUE if result.method in OURS else GREY
        mean, low, high = result.val_accuracy, result.val_accuracy, result.val_accuracy
        if result.accuracy is not None and result.low is not None and result.high is not None:
            mean, low, high = result.accuracy, result.low, result.high
        whiskers = [[100 * (mean - low)], [100 * (high - mean)]]
        axes.errorbar([100 * mean], [row], xerr=whiskers, fmt="o", color=colour, capsize=3)
        axes.text(100 * mean, row - 0.3, f"{100 * mean:.1f}", ha="center", fontsize=8)
    reference = next((r for r in results if r.method == "none"), None)
    if reference is not None and reference.accuracy is not None:
        axes.axvline(100 * reference.accuracy, color=ORANGE, linestyle=":", label="no prompt")
        legend_below(axes)
    axes.set_yticks(range(len(results)), [TITLES[result.method] for result in results])
    axes.set_ylim(len(results) - 0.4, -0.7)  # from the top down, with room for the first label
    tested = any(result.accuracy is not None for result in results)
    part = "test images, 95 % interval over them" if tested else "validation images"
    axes.set_xlabel("accuracy in %")
    axes.set_title(part)


def _draw_weights(axes: Axes, sources: Sequence[str], results: Sequence[Result]) -> None:
    mixed = [result for result in results if np.abs(result.weights).any()]
    table = np.array([result.weights for result in mixed]).reshape(len(mixed), len(sources))
    limit = max(1.0, float(np.abs(table).max())) if table.size else 1.0
    axes.imshow(table, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    for row, weights in enumerate(table):
        for column, weight in enumerate(weights):
            colour = "white" if abs(weight) > 0.6 * limit else "black"
            text = f"{weight:.2f}".replace("0.", ".", 1) if abs(weight) >= 0.005 else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(
        range(len(sources)), sources, rotation=35, ha="right", fontsize=8, parse_math=False
    )
    axes.set_yticks(range(len(mixed)), [TITLES[result.method] for result in mixed], fontsize=8)
    axes.set_title("weight of each prompt (mean of its layers)")
