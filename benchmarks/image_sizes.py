"""Measure what more pixels and what folded prompts are worth on `dinov2-small`, and what they cost.

    python benchmarks/image_sizes.py --data ../shared/assets/datasets   # resumes if killed
    python benchmarks/image_sizes.py --only-report   # docs/results/image_sizes.md from the rows

Targets, images and seeds are those of benchmarks/transfer.py. The mix is learned at 112 pixels. A
cell is a target and a seed; its rows go to a file of their own in `--work` as it ends, so that
several processes (`--part 1/2`, `--part 2/2`) can share the cells; all are gathered into
benchmarks/results/image_sizes.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rows import write_rows
from study import Rows, cells_of, known_rows, run_study, study_parser
from transfer import BACKBONE, GROUPS, TEST, TRAIN, load_target

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.cli.image_sizes import way
from hgprompt_edge.compare.image_sizes import Load, measure_sizes
from hgprompt_edge.compare.image_sizes_figure import Spot, draw_curves
from hgprompt_edge.figures.style import new_figure, save
from hgprompt_edge.files import write_bytes
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.runtime.cpu import cpu_name

SIZES = (112, 168, 224)
TARGETS = ("chars34-scene", "grocery81", "deeppcb", "flowers17", "neu-cls", "fresh-rings")
"""Two of each group."""
RESULTS = Path(__file__).parent / "results" / "image_sizes.json"
KEYS = ("backbone", "task", "seed", "train", "image_size", "folded")
"""Rows of the same values of these are of the same run."""
DOCS = Path(__file__).parent.parent / "docs"
PAGE, FIGURE = DOCS / "results" / "image_sizes.md", DOCS / "images" / "image-sizes.png"
BUDGETS = (1.2, 2.0, 3.0, 5.0)
"""Latencies, as ratios to no prompt at the smallest size, that a user may have to spend."""


def main() -> None:
    options = study_parser(__doc__, TARGETS, (0, 1, 2), ".image-sizes").parse_args()
    rows = run_study(options, run, RESULTS, KEYS)
    draw(rows, FIGURE)
    write_bytes(PAGE, report(rows).encode())


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    bank = read_bank(BACKBONE)
    backbones = {size: load_backbone(BACKBONE, image_size=size) for size in SIZES}
    compute = choose_compute(backbones[bank.image_size]).compute
    backbones = {size: backbone.with_compute(compute) for size, backbone in backbones.items()}
    known = {(row["task"], row["seed"]) for row in known_rows(options, RESULTS)}
    for name, seed in cells_of(options):
        if (name, seed) in known:
            continue
        load = partial(load_target, name, data=options.data, seed=seed)
        rows = run_cell(name, bank, backbones, load, seed)
        write_rows(options.work / f"{name}_{seed}.json", rows)
        shown = (f"{r['image_size']}/{r['folded']} {100 * r['accuracy']:.1f}" for r in rows)
        print(f"{name} {seed}: {', '.join(shown)}", flush=True)


def run_cell(
    name: str, bank: PromptBank, backbones: dict[int, Backbone], load: Load, seed: int
) -> Rows:
    points = measure_sizes(bank, backbones, load, seed=seed)
    return [
        {
            "backbone": BACKBONE,
            "task": name,
            "seed": seed,
            "train": TRAIN,
            "test": len(point.correct),
            "image_size": point.image_size,
            "folded": point.folded,
            "choice": point.choice,
            "folded_prompts": point.passes,
            "pooling": point.pooling,
            "val_accuracy": point.val_accuracy,
            "accuracy": point.accuracy,
            "low": point.low,
            "high": point.high,
            "milliseconds": round(point.milliseconds, 2),
            "latency_ratio": round(point.ratio, 3),
            "cpu": cpu_name(),
        }
        for point in points
    ]


def present(rows: Rows) -> dict[str, list[str]]:
    """Targets that have rows, by group; groups without any are left out."""
    known = {row["task"] for row in rows}
    found = {group: [n for n in names if n in known] for group, names in GROUPS.items()}
    return {group: names for group, names in found.items() if names}


def ways(rows: Rows) -> list[tuple[int, int]]:
    """Image sizes and most folded prompts, in order."""
    return sorted({(row["image_size"], row["folded"]) for row in rows})


def mean(rows: Rows, names: list[str], size: int, folded: int, key: str) -> float:
    """Mean over targets, each the mean over its seeds."""
    values = [
        [r[key] for r in rows if (r["task"], r["image_size"], r["folded"]) == (name, size, folded)]
        for name in names
    ]
    return float(np.mean([np.mean(each) for each in values]))


def report(rows: Rows) -> str:
    """Make the page: a table for each group, and the figure."""
    groups, seeds = present(rows), sorted({row["seed"] for row in rows})
    width = np.mean([100 * (row["high"] - row["low"]) / 2 for row in rows])
    lines = [
        "# More pixels, or more prompts",
        "",
        f"Written by `benchmarks/image_sizes.py` from {len(rows)} rows: `{BACKBONE}`, "
        f"seeds {', '.join(map(str, seeds))}, at most {TRAIN} training and {TEST} test "
        "images, no source of the target's family. The mix is learned at 112 pixels, the size of "
        "the prompts; at other sizes the same mix is used, with pooling and heads of that size. "
        "Where held-out images prefer one prompt to an average, `fit --folded 3` keeps one.",
        "",
        "Latency is that of one image on one thread in float32 (PyTorch, in turns in one process), "
        "as a ratio to no prompt at 112 pixels, and in milliseconds. The images have at most 128 "
        "pixels and are enlarged. The 95 % interval of one accuracy over the test images of one "
        f"seed is ± {width:.1f} points.",
        "",
        f"![Accuracy against latency](../images/{FIGURE.name})",
    ]
    for group, names in groups.items():
        lines += ["", f"## {group.capitalize()}", "", "Test accuracy in %, mean over seeds:", ""]
        lines += table(rows, names)
        lines += ["", *best(rows, names)]
    machines = "; ".join(sorted({row["cpu"] for row in rows}))
    return "\n".join([*lines, "", f"CPU: {machines}"]) + "\n"


def table(rows: Rows, names: list[str]) -> list[str]:
    heads = ["pixels", "way", *names, "mean", "latency", "ms"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for size, folded in ways(rows):
        cells = [f"{100 * mean(rows, [name], size, folded, 'accuracy'):.1f}" for name in names]
        cells.append(f"{100 * mean(rows, names, size, folded, 'accuracy'):.1f}")
        cells.append(f"{mean(rows, names, size, folded, 'latency_ratio'):.2f}")
        cells.append(f"{mean(rows, names, size, folded, 'milliseconds'):.0f}")
        lines.append(f"| {size} | {way(folded)} | " + " | ".join(cells) + " |")
    return lines


def best(rows: Rows, names: list[str]) -> list[str]:
    """Say which way has the best mean accuracy within each latency."""
    lines = []
    for budget in BUDGETS:
        affordable = [
            (mean(rows, names, size, folded, "accuracy"), -size, -folded)
            for size, folded in ways(rows)
            if mean(rows, names, size, folded, "latency_ratio") <= budget
        ]
        accuracy, size, folded = max(affordable)
        lines.append(
            f"- Up to {budget:g} times the latency: {way(-folded)} at {-size} pixels, "
            f"{100 * accuracy:.1f} %."
        )
    return lines


def draw(rows: Rows, path: Path) -> None:
    """Write a PNG with a panel for each group: means over its targets."""
    groups = present(rows)
    figure = new_figure(5 * len(groups), 4.5)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (group, names) in zip(panels, groups.items(), strict=True):
        curves: dict[int, list[Spot]] = {}
        for size, folded in ways(rows):
            ratio = mean(rows, names, size, folded, "latency_ratio")
            accuracy = mean(rows, names, size, folded, "accuracy")
            curves.setdefault(size, []).append(Spot(ratio, accuracy))
        draw_curves(axes, curves)
        axes.set_title(f"{group}: {', '.join(names)}")
    save(figure, path)


if __name__ == "__main__":
    main()
