"""docs/ADAPT.md and its figure, drawn from benchmarks/results/adapt.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rows import read_rows

from hgprompt_edge.tasks.conditions import CONDITIONS, SHIFTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adapt.json"
PAGE = ROOT / "docs" / "ADAPT.md"
FIGURE = ROOT / "docs" / "images" / "adapt.png"
METHODS = {
    "mix": "mix, with labels",
    "mix_sources": "mix of the sources alone",
    "head": "head alone",
    "prompt_full": "whole prompt (PyTorch)",
    "feature_mean": "feature mean, no labels",
    "mix_unlabelled": "mix, no labels",
    "forward_only": "tokens by CMA-ES (FOA), no labels",
}
PAGE_TEXT = """# What adapting on the device recovers

Written by `benchmarks/adapt.py` from [its rows](../benchmarks/results/adapt.json): {rows} rows,
{tasks}; severity {severities}; {seeds}. A
device sees {images} labelled images a class (or 100 without labels) of a shifted test part, and is
measured on the rest of it. *Recovered* is the share of the accuracy lost to the shift that comes
back, over all tasks: the sum of the gains by the sum of the losses. After the guard: where it keeps
the old weights, nothing is recovered.

{table}

![Recovered accuracy by shift](images/adapt.png)

{worst}

The whole prompt, the feature mean and FOA's search have no guard. Condition prompts were trained
with other operations and parameters than the shifts have
([the module](../hgprompt_edge/tasks/conditions.py) lists both); none are for rotation and fog.
Accuracy by task, under the guard (before -> after, clean):

{details}
"""


def write_report() -> None:
    rows = read_rows(RESULTS)
    if not rows:
        return
    draw(rows)
    PAGE.write_text(
        PAGE_TEXT.format(
            rows=len(rows),
            tasks=", ".join(sorted({row["task"] for row in rows})),
            severities=", ".join(map(str, sorted({row["severity"] for row in rows}))),
            seeds=f"{len({row['seed'] for row in rows})} seed(s), so no interval",
            images=" or ".join(
                map(str, sorted({row["images_per_class"] for row in rows} - {None}))
            ),
            table="\n".join(table(rows)),
            worst="\n".join(worst(rows)),
            details="\n".join(details(rows)),
        )
    )


def recovered(rows: list[dict[str, Any]], method: str, shifts: tuple[str, ...]) -> float:
    """Sum of the gains by the sum of the losses; NaN where there are none."""
    chosen = [row for row in rows if row["method"] == method and row["shift"] in shifts]
    lost = sum(row["accuracy_clean"] - row["accuracy_before"] for row in chosen)
    gained = sum(row["accuracy_after"] - row["accuracy_before"] for row in chosen)
    return gained / lost if lost > 0 else float("nan")


def present(rows: list[dict[str, Any]]) -> list[str]:
    return [shift for shift in SHIFTS if any(row["shift"] == shift for row in rows)]


def percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f} %"


def table(rows: list[dict[str, Any]]) -> list[str]:
    shifts = present(rows)
    lines = [
        f"| recovered | {' | '.join(shifts)} | with a condition prompt | without |",
        "| --- |" + " --- |" * (len(shifts) + 2),
    ]
    without = tuple(shift for shift in SHIFTS if shift not in CONDITIONS)
    for method, title in METHODS.items():
        cells = [percent(recovered(rows, method, (shift,))) for shift in shifts]
        cells += [percent(recovered(rows, method, group)) for group in (CONDITIONS, without)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def worst(rows: list[dict[str, Any]]) -> list[str]:
    """List the worst change of each guarded method, in points."""
    lines = []
    for method in ("mix", "mix_unlabelled"):
        changes = [
            (100 * (row["accuracy_after"] - row["accuracy_before"]), row)
            for row in rows
            if row["method"] == method
        ]
        if not changes:
            continue
        change, row = min(changes, key=lambda pair: pair[0])
        taken = sum(row["taken"] for _, row in changes)
        mean = np.mean([change for change, _ in changes])
        lines.append(
            f"- {METHODS[method]}: taken over in {taken} of {len(changes)} cases, {mean:+.1f} "
            f"points on average, worst {change:+.1f} ({row['task']}, {row['shift']})."
        )
    return lines


def details(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| task | shift | clean | before | mix | mix, no labels | whole prompt |"]
    lines.append("| --- |" + " --- |" * 6)
    found = {
        (row["task"], row["shift"], row["severity"], row["seed"], row["method"]): row
        for row in rows
    }
    for key in sorted({key[:4] for key in found}):
        mix = found.get((*key, "mix"))
        if mix is None:
            continue
        cells = [mix["accuracy_clean"], mix["accuracy_before"]]
        cells += [
            found[(*key, method)]["accuracy_after"] if (*key, method) in found else np.nan
            for method in ("mix", "mix_unlabelled", "prompt_full")
        ]
        shown = " | ".join(f"{100 * value:.1f}" for value in cells)
        lines.append(f"| {key[0]} | {key[1]}, severity {key[2]} | {shown} |")
    return lines


def draw(rows: list[dict[str, Any]]) -> None:
    shifts = present(rows)
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(METHODS)
    for index, (method, title) in enumerate(METHODS.items()):
        shares = [100 * recovered(rows, method, (shift,)) for shift in shifts]
        places = np.arange(len(shifts)) + (index - len(METHODS) / 2 + 0.5) * width
        axes.bar(places, np.clip(shares, -60, 110), width, label=title)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(np.arange(len(shifts)), shifts)
    axes.set_ylabel("recovered of what was lost (%)")
    axes.legend(fontsize=8, ncols=3, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    plt.close(figure)
