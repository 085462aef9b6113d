"""Measure what more pixels and what folded prompts are worth on `dinov2-small`, and what they cost.

    python benchmarks image_sizes --data ../shared/assets/datasets   # resumes if killed
    python benchmarks image_sizes --only-report   # docs/results/image_sizes.md from the rows

Targets, images and seeds are those of benchmarks/transfer.py. The mix is learned at 112 pixels. A
cell is a target and a seed; its rows go to a file of their own in `--work` as it ends, so that
several processes (`--part 1/2`, `--part 2/2`) can share the cells; all are gathered into
benchmarks/results/image_sizes.json.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.cli.image_sizes import way
from hgprompt_edge.compare.image_sizes import Load, measure_sizes
from hgprompt_edge.compare.image_sizes_figure import Spot, draw_curves
from hgprompt_edge.figures.style import new_figure, save
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.runtime.cpu import cpu_name
from shared.pages import ROOT, fill, listed, table, write_page
from shared.rows import Rows, add_rows, distinct, mean_of, read_rows, results_file, select
from shared.study import Options, cells_of, known_rows, run_study, study_parser
from shared.targets import BACKBONE, GROUPS, TEST, TRAIN, load_target

SIZES = (112, 168, 224)
TARGETS = ("chars34-scene", "grocery81", "deeppcb", "flowers17", "neu-cls", "fresh-rings")
"""Two of each group."""
RESULTS = results_file("image_sizes")
KEYS = ("backbone", "task", "seed", "train", "image_size", "folded")
"""Rows of the same values of these are of the same run."""
FIGURE = ROOT / "docs" / "images" / "image-sizes.png"
BUDGETS = (1.2, 2.0, 3.0, 5.0)
"""Latencies, as ratios to no prompt at the smallest size, that a user may have to spend."""


def main() -> None:
    options = study_parser(__doc__, TARGETS, (0, 1, 2), ".image-sizes").parse_args()
    run_study(options, run, RESULTS, KEYS)
    draw(read_rows(RESULTS))
    write_page("image_sizes", report())


def run(options: Options) -> None:
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
        add_rows(options.work / f"{name}_{seed}.json", *rows)


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
    found = select(rows, image_size=size, folded=folded)
    return float(np.mean([mean_of(select(found, task=name), key) for name in names]))


def report() -> str:
    """Make the page: a table for each group, and the figure."""
    rows = read_rows(RESULTS)
    return fill(
        "image_sizes",
        rows=len(rows),
        backbone=BACKBONE,
        seeds=f"seed{'s' * (len(distinct(rows, 'seed')) > 1)} {listed(distinct(rows, 'seed'))}",
        train=TRAIN,
        test=TEST,
        width=f"{np.mean([100 * (row['high'] - row['low']) / 2 for row in rows]):.1f}",
        figure=FIGURE.name,
        groups="\n\n".join(section(rows, *group) for group in present(rows).items()),
        machines="; ".join(distinct(rows, "cpu")),
    )


def section(rows: Rows, group: str, names: list[str]) -> str:
    """Table of a group: each way, then the best within each latency."""
    measured = {
        (size, folded): [
            mean(rows, names, size, folded, key)
            for key in ("accuracy", "latency_ratio", "milliseconds")
        ]
        for size, folded in ways(rows)
    }
    body = [
        (
            *(size, way(folded)),
            *(f"{100 * mean(rows, [name], size, folded, 'accuracy'):.1f}" for name in names),
            *(f"{100 * accuracy:.1f}", f"{ratio:.2f}", f"{milliseconds:.0f}"),
        )
        for (size, folded), (accuracy, ratio, milliseconds) in measured.items()
    ]
    said = []
    for budget in BUDGETS:
        size, folded = max(
            (which for which, (_, ratio, _) in measured.items() if ratio <= budget),
            key=lambda which: (measured[which][0], -which[0], -which[1]),
        )
        said.append(
            f"- Up to {budget:g} times the latency: {way(folded)} at {size} pixels, "
            f"{100 * measured[size, folded][0]:.1f} %."
        )
    heads = ("pixels", "way", *names, "mean", "latency", "ms")
    title = f"## {group.capitalize()}\n\nTest accuracy in %, mean over seeds:"
    return "\n\n".join([title, table(heads, body), "\n".join(said)])


def draw(rows: Rows) -> None:
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
    save(figure, FIGURE)


if __name__ == "__main__":
    main()
