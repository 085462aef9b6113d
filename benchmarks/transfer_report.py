"""Tables and figures of the transfer study, from the rows in benchmarks/results alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ablate import TARGETS as ABLATION_TARGETS
from cube import Cube, Row, cube
from matplotlib.figure import Figure
from rows import read_rows
from scipy.stats import rankdata
from tune import RESULTS as TUNE_RESULTS
from tune import tune_tables

from hgprompt_edge.files import atomic_path, write_bytes
from hgprompt_edge.transfer.compare_figure import OURS, TITLES
from hgprompt_edge.transfer.figure import BLUE, GREY, ORANGE

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "transfer.json"
PAGE = ROOT / "docs" / "TRANSFER.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- tables: made by benchmarks/transfer_report.py -->", "<!-- end of tables -->"
LINES = ("none", "best_source", "uniform", "hgprompt", "hgprompt_guarded")
TRAINED = ("tune", "vpt_scratch")
"""Train a prompt of the target's own; measured on fewer cells than the others."""
PICKED_ON = (*ABLATION_TARGETS, "fashion-mnist")
"""Targets on which weights for each layer, and the start beside them, were compared with what else
there is before they were kept."""


def write_report() -> None:
    """Draw the figures and put the tables between the markers of the page."""
    rows: list[Row] = json.loads(RESULTS.read_text())
    full = [row for row in rows if row["images_per_class"] is None]
    tiny = [row for row in full if row["backbone"] == "tiny"]
    study = [row for row in tiny if not is_bank_study(row)]
    main = cube([row for row in study if row["method"] in LINES])
    every = cube([row for row in study if row["method"] not in TRAINED])
    trained = cube([row for row in study if row["method"] in (*LINES, *TRAINED)])
    parts = [
        "### The main rows\n",
        main_tables(main, study),
        accuracy_table(main),
        claims(main, study),
        "![Differences](images/transfer.png)\n",
        "### All methods\n",
        main_tables(every, study),
        accuracy_table(every),
        "![Differences, all methods](images/transfer-all.png)\n",
        "### A prompt of the target's own\n",
        main_tables(trained, study),
        accuracy_table(trained),
    ]
    draw_differences(main, IMAGES / "transfer.png")
    draw_differences(every, IMAGES / "transfer-all.png")
    sizes = [row for row in rows if row["images_per_class"] is not None]
    if sizes:
        parts += ["### By images a class\n", series(sizes + same_tasks(sizes, tiny))]
        draw_series(sizes + same_tasks(sizes, tiny), IMAGES / "transfer-sizes.png")
        parts.append("![By images a class](images/transfer-sizes.png)\n")
    banks = [row for row in tiny if is_bank_study(row)]
    if banks:
        parts += ["### By number of sources\n", bank_table(banks)]
    for name in sorted({row["backbone"] for row in full} - {"tiny"}):
        rows_there = [row for row in full if row["backbone"] == name]
        other = cube(rows_there)
        parts += [f"### Another backbone: {name}\n", main_tables(other, rows_there)]
        parts.append(accuracy_table(other))
    tuned = read_rows(TUNE_RESULTS)
    if tuned:
        parts += ["### Tune with a fifth of the passes\n", tune_tables(tuned)]
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    body = "\n".join(parts)
    write_bytes(PAGE, f"{before}{BEGIN}\n\n{body}\n{END}{after}".encode())


def is_bank_study(row: Row) -> bool:
    return row["backbone"] == "tiny" and row["bank_size"] in (2, 4, 16, 32)


def main_tables(main: Cube, rows: Sequence[Row]) -> str:
    """One row a method: accuracy, rank, what ours gain over it, what it costs."""
    ranks = np.mean([rankdata(-row) for row in main.by_task], axis=0)
    gains = [paired(main, ours) for ours in ("hgprompt", "hgprompt_guarded")]
    lines = [
        f"{len(main.tasks)} targets, {main.seeds} each. Accuracy on test images in %, differences "
        "in points with 95 % intervals; seconds are those with the cache as it was.\n",
        "| method | accuracy | rank | HGPrompt, raw, less this | never worse less this "
        "| image passes | seconds | sources |",
        "| --- " * 8 + "|",
    ]
    for index, method in enumerate(main.methods):
        mine = [row for row in rows if row["method"] == method and row["task"] in main.tasks]
        passes, seconds, sources = (
            np.mean([row[key] for row in mine])
            for key in ("image_passes", "seconds", "effective_sources")
        )
        lines.append(
            f"| {TITLES[method]} | {main.by_task[:, index].mean():.2f} | {ranks[index]:.1f} "
            f"| {gains[0][index]} | {gains[1][index]} | {passes:,.0f} | {seconds:.1f} "
            f"| {sources:.1f} |"
        )
    return "\n".join(lines) + "\n"


def paired(main: Cube, ours: str) -> list[str]:
    """Say what `ours` gains over each method, on the same targets and seeds."""
    column = main.column(ours)
    mean, low, high = main.bootstrap(lambda x: (x[:, [column]] - x).mean(0))
    return [
        "" if i == column else f"{mean[i]:+.2f} ({low[i]:+.2f} to {high[i]:+.2f})"
        for i in range(len(mean))
    ]


def accuracy_table(main: Cube) -> str:
    """One row a target, one column a method; the best in bold."""
    lines = [
        "| target | " + " | ".join(TITLES[method] for method in main.methods) + " |",
        "| --- " * (len(main.methods) + 1) + "|",
    ]
    for task, values in zip(main.tasks, main.by_task, strict=True):
        cells = [f"**{v:.1f}**" if v == values.max() else f"{v:.1f}" for v in values]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    mean = " | ".join(f"{v:.2f}" for v in main.by_task.mean(0))
    return "\n".join([*lines, f"| mean | {mean} |"]) + "\n"


def claims(main: Cube, rows: Sequence[Row]) -> str:
    """State the targets of the study, and what came out."""
    effective = [
        np.mean(
            [
                row["effective_sources"]
                for row in rows
                if row["method"] == "hgprompt" and row["task"] == task
            ]
        )
        for task in main.tasks
    ]
    several = sum(value >= 2 for value in effective)
    lines = [f"Two sources or more in effect on {several} of {len(effective)} targets."]
    for method in ("hgprompt", "hgprompt_guarded"):
        worse = losses(main, method)
        named = f": {', '.join(worse)}" if worse else ""
        lines.append(
            f"{TITLES[method]}: worse than no prompt by more than its interval on {len(worse)} of "
            f"{len(main.tasks)} targets{named}."
        )
    unseen = main.without(PICKED_ON)
    for method in ("hgprompt", "hgprompt_guarded"):
        gains = dict(zip(unseen.methods, paired(unseen, method), strict=True))
        words = ", ".join(f"{TITLES[name]} {gains[name]}" for name in LINES[:3])
        lines.append(
            f"{TITLES[method]}, on the {len(unseen.tasks)} targets on which nothing about it was "
            f"picked ({', '.join(unseen.tasks)}), less {words}."
        )
    return "\n".join(lines) + "\n"


def losses(main: Cube, method: str) -> list[str]:
    """Targets where `method` is below no prompt by more than the interval over seeds."""
    found = []
    for task, cell in zip(main.tasks, main.cells, strict=True):
        difference = cell[:, main.column(method)] - cell[:, main.column("none")]
        error = difference.std(ddof=1) / np.sqrt(len(cell)) if len(cell) > 1 else 0.0
        if difference.mean() + 1.96 * error < 0:
            found.append(task)
    return found


def same_tasks(some: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Rows of the main study, all images, for the targets and methods of `some`."""
    tasks, methods = ({row[key] for row in some} for key in ("task", "method"))
    return [
        row
        for row in rows
        if row["task"] in tasks and row["method"] in methods and not is_bank_study(row)
    ]


def by_size(rows: Sequence[Row]) -> dict[int | None, Cube]:
    sizes = sorted({row["images_per_class"] for row in rows}, key=lambda n: (n is None, n))
    return {n: cube([row for row in rows if row["images_per_class"] == n]) for n in sizes}


def series(rows: Sequence[Row]) -> str:
    """Mean accuracy by number of images a class."""
    cubes = by_size(rows)
    methods = next(iter(cubes.values())).methods
    lines = [
        "| images a class | targets | " + " | ".join(TITLES[m] for m in methods) + " |",
        "| --- " * (len(methods) + 2) + "|",
    ]
    for size, each in cubes.items():
        values = " | ".join(f"{v:.2f}" for v in each.by_task.mean(0))
        lines.append(f"| {size or 'all'} | {len(each.tasks)} | {values} |")
    return "\n".join(lines) + "\n"


def bank_table(rows: Sequence[Row]) -> str:
    """Mean accuracy by number of sources."""
    lines: list[str] = []
    for size in sorted({row["bank_size"] for row in rows}):
        each = cube([row for row in rows if row["bank_size"] == size])
        if not lines:
            titles = " | ".join(TITLES[m] for m in each.methods)
            lines = [f"| sources | targets | {titles} |", "| --- " * (len(each.methods) + 2) + "|"]
        values = " | ".join(f"{v:.2f}" for v in each.by_task.mean(0))
        lines.append(f"| {size} | {len(each.tasks)} | {values} |")
    return "\n".join(lines) + "\n"


def draw_differences(main: Cube, path: Path) -> None:
    """Each method less no prompt: the mean with its interval, and every target as a dot."""
    reference = main.column("none")
    mean, low, high = main.bootstrap(lambda x: (x - x[:, [reference]]).mean(0))
    dots = main.by_task - main.by_task[:, [reference]]
    height = 1.5 + 0.3 * len(main.methods)
    figure = Figure(figsize=(9, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row, method in enumerate(main.methods):
        colour = BLUE if method in OURS else GREY
        axes.scatter(dots[:, row], np.full(len(dots), row), s=12, color=colour, alpha=0.4)
        whiskers = [[mean[row] - low[row]], [high[row] - mean[row]]]
        axes.errorbar([mean[row]], [row], xerr=whiskers, fmt="D", color=colour, capsize=4)
    axes.axvline(0, color=ORANGE, linestyle=":")
    axes.set_yticks(range(len(main.methods)), [TITLES[method] for method in main.methods])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy less that of no prompt, in points")
    axes.set_title(
        f"{len(main.tasks)} targets (dots: mean over seeds); diamonds: mean and 95 % interval"
    )
    save(figure, path)


def draw_series(rows: Sequence[Row], path: Path) -> None:
    """Less no prompt, by number of images a class."""
    cubes = by_size(rows)
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    labels = [str(size or "all") for size in cubes]
    for method in LINES[1:]:
        found = [
            each.bootstrap(lambda x, e=each, m=method: (x[:, e.column(m)] - x[:, 0]).mean(0)[None])
            for each in cubes.values()
        ]
        mean, low, high = (np.array([part[i][0] for part in found]) for i in range(3))
        style = "-" if method in OURS else "--"
        axes.errorbar(
            labels, mean, yerr=[mean - low, high - mean], label=TITLES[method], ls=style, capsize=3
        )
    axes.axhline(0, color=ORANGE, linestyle=":")
    axes.set_xlabel("training images a class")
    axes.set_ylabel("accuracy less no prompt, in points")
    axes.legend()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


if __name__ == "__main__":
    write_report()
