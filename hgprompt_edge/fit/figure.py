"""The figure of a fit: weights, the two terms over the steps, and what each choice is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hgprompt_edge.artifacts.bundle import ROW_TITLES, Bundle
from hgprompt_edge.files import atomic_path
from hgprompt_edge.prompts.bank import source_shares

BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#9aa5b1"


def draw_fit(bundle: Bundle, history: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG: three panels that a person understands without the text."""
    figure = Figure(figsize=(12, 3.8), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_weights(left, bundle)
    draw_terms(middle, history)
    _draw_table(right, bundle)
    # A name may hold dollar signs, which are no formula.
    title = f"{bundle.task}: kept by held-out images: {ROW_TITLES[bundle.choice]}"
    figure.suptitle(title, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_weights(axes: Axes, bundle: Bundle) -> None:
    names = [source["name"] for source in bundle.sources]
    weights, shares = bundle.learned_weights, source_shares(bundle.learned_weights)
    axes.barh(range(len(names)), shares, color=BLUE)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("weight (they sum to 1)", loc="left")
    axes.axvline(1 / len(names), color=GREY, linestyle=":", label="equal weights")
    if weights.ndim == 2:
        rows = np.repeat(np.arange(len(names)), weights.shape[1])
        axes.plot(weights.flatten(), rows, ".", color=ORANGE, label="in each layer")
    edge = weights.reshape(len(names), -1).max(1)  # [N], the right of what is drawn in each row
    for row, (share, right) in enumerate(zip(shares, edge, strict=True)):
        axes.text(right, row, f"  {share:.2f}", va="center", fontsize=8)
    axes.set_xlim(0, max(1.15 * float(edge.max()), 1.3 / len(names)))
    axes.invert_yaxis()
    axes.set_title("learned weight of each prompt")
    legend_below(axes)


def draw_terms(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """Draw the two terms of the objective over the steps."""
    other = axes.twinx()
    steps = range(len(history))
    axes.plot(steps, [row["H_d"] for row in history], color=BLUE)
    other.plot(steps, [row["R"] for row in history], color=ORANGE)
    axes.set_ylabel("H-score less noise (more is better)", color=BLUE)
    axes.set_xlabel("step", loc="left")
    other.set_ylabel("gradient conflict R (less is better)", color=ORANGE)
    axes.set_title("the two terms of the objective")


def legend_below(axes: Axes) -> None:
    """Put the legend under the right end of the axis, where it hides nothing."""
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.06), fontsize=8, frameon=False)


def _draw_table(axes: Axes, bundle: Bundle) -> None:
    positions = range(len(bundle.table))
    validation = [100 * row.val_accuracy for row in bundle.table]
    bars = axes.bar([p - 0.2 for p in positions], validation, 0.4, color=GREY, label="validation")
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    values = list(validation)
    if all(row.test_accuracy is not None for row in bundle.table):
        test = [100 * (row.test_accuracy or 0.0) for row in bundle.table]
        bars = axes.bar([p + 0.2 for p in positions], test, 0.4, color=BLUE, label="test")
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
        values += test
    # Differences of a few points are what matters here, so the axis does not start at zero; the
    # room above 100 % is the legend's.
    limits = (max(0.0, min(values) - 10), min(112.0, max(values) + 8))
    axes.set_ylim(*limits)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 100])
    axes.set_ylim(*limits)
    names = [ROW_TITLES[row.method].replace(" ", "\n") for row in bundle.table]
    axes.set_xticks(list(positions), names)
    axes.set_title("accuracy in %")
    axes.legend(loc="upper left", ncols=2, fontsize=8)
