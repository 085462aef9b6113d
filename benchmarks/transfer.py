"""Measure what mixing is worth on `dinov2-small`: few training images, real and fresh targets.

    python benchmarks/transfer.py --data ../shared/assets/datasets     # resumes if killed
    python benchmarks/transfer.py --only-report        # docs/results/transfer.md from the rows

At most 400 training (a fifth of them validates) and 400 test images a target, with `--per-class 5`
five images a class; no source of the target's family. A cell is a target and a seed; the seed draws
the training images and everything random in the methods. Its rows go to a file of their own in
`--work` as it ends, so that several processes (`--part 1/2`, `--part 2/2`) can share the cells; all
are gathered into benchmarks/results/transfer.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh_tasks import FRESH, load_fresh
from rows import read_rows, write_rows
from study import cells_of, known_rows, run_study, study_parser
from targets import joined

from hgprompt_edge import load_backbone, load_task, read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.compare.run import compare
from hgprompt_edge.data import Images, Task
from hgprompt_edge.files import write_bytes
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.prompts.bank import PromptBank

BACKBONE = "dinov2-small"
RESULTS = Path(__file__).parent / "results" / "transfer.json"
KEYS = ("backbone", "protocol", "task", "seed", "per_class", "image_size", "method")
"""Rows of the same values of these are of the same run."""
PAGE = Path(__file__).parent.parent / "docs" / "results" / "transfer.md"
GROUPS = {
    "natural": (
        *("cifar100", "flowers17", "dtd10", "grocery81", "clothing10", "houses4", "weather4"),
        *("pacs-photo", "pacs-art-painting", "pacs-cartoon", "pacs-sketch"),
    ),
    "specialised": ("neu-cls", "magnetic-tile", "deeppcb", "trashnet", "pneumonia-mnist"),
    "structured": ("chars34-scene", *FRESH),
}
ORDER = (
    *("chars34-scene", "neu-cls", "deeppcb", "trashnet", "clothing10", "fresh-corners"),
    *("flowers17", "magnetic-tile", "houses4", "fresh-clock", "weather4", "pneumonia-mnist"),
    *("dtd10", "fresh-rings", "fresh-bars", "pacs-sketch", "pacs-photo", "fresh-symmetry"),
    *("grocery81", "cifar100", "pacs-cartoon", "pacs-art-painting", "fresh-path"),
)
"""All groups early, so that a run that is cut short has some of each."""
METHODS = (
    *("none", "best_source", "uniform", "soup", "prediction_average"),
    *("hgprompt", "hgprompt_guarded", "two_folded", "three_folded"),
)
TITLES = {
    "none": "no prompt",
    "best_source": "best source",
    "uniform": "uniform",
    "soup": "greedy soup",
    "prediction_average": "all averaged (N passes)",
    "hgprompt": "learned mix",
    "hgprompt_guarded": "kept by fit",
    "two_folded": "two folded",
    "three_folded": "three folded",
}
TRAIN, TEST, RESAMPLES = 400, 400, 10_000
CLAIMS = (
    ("best_source", "none"),
    ("hgprompt", "best_source"),
    ("hgprompt", "none"),
    ("hgprompt", "uniform"),
    ("hgprompt", "soup"),
    ("hgprompt_guarded", "none"),
    ("hgprompt_guarded", "best_source"),
    ("hgprompt", "prediction_average"),
    ("two_folded", "prediction_average"),
    ("three_folded", "none"),
    ("three_folded", "prediction_average"),
)


def main() -> None:
    parser = study_parser(__doc__, ORDER, (0, 1, 2), ".transfer")
    parser.add_argument("--per-class", type=int, help="training images a class; else 400 in all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    rows = run_study(parser.parse_args(), run, RESULTS, KEYS)
    write_bytes(PAGE, report(rows).encode())


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    bank, backbone = read_bank(BACKBONE), load_backbone(BACKBONE)
    backbone = backbone.with_compute(choose_compute(backbone).compute)
    keys = ("task", "seed", "per_class", "method")
    known = {tuple(row[key] for key in keys) for row in known_rows(options, RESULTS)}
    for name, seed in cells_of(options):
        cell = name, seed, options.per_class
        wanted = [each for each in options.methods if (*cell, each) not in known]
        if not wanted:
            continue
        task = load_target(name, backbone.preprocessing, options.data, seed, options.per_class)
        rows = run_cell(task, backbone, bank, seed, options.per_class, wanted)
        path = options.work / ("_".join(map(str, cell)) + ".json")
        write_rows(path, read_rows(path) + rows)
        shown = ", ".join(f"{row['method']} {100 * row['accuracy']:.1f}" for row in rows)
        print(f"{name} {seed}: {shown}", flush=True)


def run_cell(
    task: Task,
    backbone: Backbone,
    bank: PromptBank,
    seed: int,
    per_class: int | None,
    methods: Sequence[str],
) -> list[dict[str, Any]]:
    _, results = compare(bank, backbone, task, methods=methods, seed=seed)
    return [
        {
            "backbone": BACKBONE,
            "protocol": "other families",
            "task": task.name,
            "family": task.family,
            "seed": seed,
            "image_size": backbone.image_size,
            "per_class": per_class,
            "train": len(task.train) + len(task.validation),
            "test": len(task.test),
            "method": result.method,
            "folded_prompts": result.inference_passes,
            "accuracy": result.accuracy,
            "image_passes": result.image_passes,
            "seconds": round(result.seconds, 1),
            "effective_sources": round(result.effective_sources, 2),
        }
        for result in results
    ]


def load_target(
    name: str, preprocessing: Preprocessing, data: Path, seed: int, per_class: int | None = None
) -> Task:
    """Load a target cut to `TRAIN` training and `TEST` test images, classes as even as they are.

    With `per_class` to so many training images a class, where there are as many.
    """
    fresh = name in FRESH
    task = (
        load_fresh(name, preprocessing, seed)
        if fresh
        else load_task(name, preprocessing, data=data / name, seed=seed)
    )
    if fresh and per_class is None:
        return task
    count = TRAIN if per_class is None else per_class * len(task.classes)
    drawn = even(joined(task.train, task.validation), count, seed)
    rng = np.random.default_rng(seed)
    held = np.zeros(len(drawn), bool)
    for label in np.unique(drawn.labels):
        rows = rng.permutation(np.flatnonzero(drawn.labels == label))
        held[rows[: max(1, round(len(rows) / 5))]] = len(rows) > 1
    parts = (drawn.subset(np.flatnonzero(mask)) for mask in (~held, held))
    train, validation = parts
    return replace(task, train=train, validation=validation, test=even(task.test, TEST, 0))


def even(images: Images, count: int, seed: int) -> Images:
    """Take `count` images, one of each class in turn."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    turns = np.zeros(len(images), int)
    for label in np.unique(images.labels):
        rows = order[images.labels[order] == label]
        turns[rows] = np.arange(len(rows))
    rows = order[np.argsort(turns[order], kind="stable")][:count]
    return images.subset(np.sort(rows))


def report(rows: list[dict[str, Any]]) -> str:
    """Make the page: accuracies, and differences with intervals; again for few images a class."""
    many = [row for row in rows if row["per_class"] is None]
    lines = [
        "# What mixing is worth on dinov2-small",
        "",
        f"Written by `benchmarks/transfer.py`. {described(many)}, at most {TRAIN} training and "
        f"{TEST} test images, 112 pixels, each way with its own best head, no source of the "
        "target's family. Targets without a row have not been run yet. With several folded prompts "
        "the average is taken where held-out images say so, else one prompt.",
        "",
        "Test accuracy in %, mean over the seeds that were run:",
        "",
        *accuracies(many),
        "",
        "Differences in points. The interval (95 %, bootstrap) is over families, each the mean of "
        "its targets and seeds; with fewer than three families there is none.",
        "",
        *differences(many),
    ]
    for count in sorted({row["per_class"] for row in rows} - {None}):
        few = [row for row in rows if row["per_class"] == count]
        lines += ["", f"## {count} training images a class", "", f"{described(few)}.", ""]
        lines += [*accuracies(few), "", *differences(few)]
    return "\n".join(lines) + "\n"


def described(rows: list[dict[str, Any]]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    targets = len({row["task"] for row in rows})
    return f"{targets} targets, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def accuracies(rows: list[dict[str, Any]]) -> list[str]:
    """Table of the targets, in the order of the groups, by the methods that were run."""
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    lines = [
        "| target | seeds | " + " | ".join(TITLES[m] for m in methods) + " |",
        "| --- |" + " --- |" * (1 + len(methods)),
    ]
    for group, names in GROUPS.items():
        for name in names:
            count = len({row["seed"] for row in rows if row["task"] == name})
            if count:
                cells = [f"{100 * mean(rows, name, method):.1f}" for method in methods]
                lines.append(f"| {name} ({group}) | {count} | " + " | ".join(cells) + " |")
    return lines


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Table of `CLAIMS`, by group and in all."""
    methods = {row["method"] for row in rows}
    lines = [
        "| difference | natural | specialised | structured | specialised and structured | all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    unions = (("natural",), ("specialised",), ("structured",), ("specialised", "structured"))
    for one, other in CLAIMS:
        if methods >= {one, other}:
            cells = [difference(rows, union, one, other) for union in (*unions, tuple(GROUPS))]
            lines.append(f"| {TITLES[one]} - {TITLES[other]} | " + " | ".join(cells) + " |")
    return lines


def mean(rows: list[dict[str, Any]], task: str, method: str) -> float:
    found = [r["accuracy"] for r in rows if (r["task"], r["method"]) == (task, method)]
    return float(np.mean(found))


def difference(rows: list[dict[str, Any]], groups: Sequence[str], one: str, other: str) -> str:
    """Mean difference over families with its interval."""
    families: dict[str, list[float]] = {}
    for name in (name for group in groups for name in GROUPS[group]):
        found = [row for row in rows if row["task"] == name]
        if found:
            gain = 100 * (mean(rows, name, one) - mean(rows, name, other))
            families.setdefault(found[0]["family"] or name, []).append(gain)
    if not families:
        return ""
    gains = np.array([np.mean(values) for values in families.values()])
    if len(gains) < 3:
        return f"{gains.mean():+.1f} ({len(gains)} families)"
    picks = np.random.default_rng(0).integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.quantile(gains[picks].mean(1), [0.025, 0.975])
    return f"{gains.mean():+.1f} ({low:+.1f} to {high:+.1f}; {len(gains)} families)"


if __name__ == "__main__":
    main()
