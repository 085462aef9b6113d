"""How many standard errors the guard asks for with labels: chosen on validation images.

    python benchmarks/guard_labelled.py --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks/guard_labelled.py                          # the table from the rows

A cell is a task under a shift. The mix is learned from a few labelled validation images a class,
under a head that was fitted on the training images alone, and measured on the other validation
images. Only `benchmarks/adapt.py` looks at test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapt import TASKS
from guard import StudyLearner, judging
from guard_report import GUARD_LABELLED, labelled_table
from rows import read_rows, write_rows
from targets import load_target

from hgprompt_edge import load_backbone
from hgprompt_edge.adapt.guard.measures import accuracy, log_loss, standard_error
from hgprompt_edge.adapt.loop import adapt_labelled
from hgprompt_edge.adapt.proposal import Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import SHIFTS, corrupt

CELL = ("shift", "severity", "images_per_class", "seed")
HELD_OUT = (
    "log_loss_before",
    "log_loss_after",
    "standard_error",
    "accuracy_before",
    "accuracy_after",
    "distance_before",
    "distance_after",
)
"""Figures that the guard judges by."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--bundles", type=Path, help="folder of TASK.hgbundle")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--severities", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--images", type=int, nargs="*", default=[5, 2], help="a class, labelled")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    if options.data is not None:
        torch.set_num_threads(1)
        run(options)
    print("\n".join(labelled_table(read_rows(GUARD_LABELLED))))


def run(options: argparse.Namespace) -> None:
    backbone, rows = load_backbone("tiny"), read_rows(GUARD_LABELLED)
    done = {tuple(row[name] for name in ("task", *CELL)) for row in rows}
    for name in options.tasks:
        cells = [
            (shift, severity, images, seed)
            for seed in options.seeds
            for images in options.images
            for severity in options.severities
            for shift in SHIFTS
            if (name, shift, severity, images, seed) not in done
        ]
        if not cells:
            continue
        task = load_target(name, backbone, options.data, 0)
        assert task is not None
        bundle = judging(read_bundle(options.bundles / f"{name}.hgbundle"), backbone, task)
        for row in measure(bundle, backbone, task, cells):
            rows.append({"task": name} | row)
            write_rows(GUARD_LABELLED, rows)
            print(rows[-1], flush=True)


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, cells: list[tuple[str, int, int, int]]
) -> Iterator[dict[str, Any]]:
    """Rows of cells: what the guard sees, and what is true."""
    learner = StudyLearner(bundle, backbone)
    labels, initial = task.validation.labels, Weights(learner.initial, learner.head)
    for cell in cells:
        shift, severity, images, seed = cell
        order = np.random.default_rng([seed, 6]).permutation(len(labels))
        shots = np.concatenate([order[labels[order] == c][:images] for c in np.unique(labels)])
        others = np.setdiff1d(order, shots)
        pixels = corrupt(task.validation.pixels, shift, severity, seed)
        found = adapt_labelled(learner, pixels[shots], labels[shots], initial, seed=seed)
        old, new = (
            learner.head.logits(learner.features(pixels[others], mix))
            for mix in (learner.initial, found.weights.mix)
        )
        gain = log_loss(old, labels[others]) - log_loss(new, labels[others])
        yield {
            **dict(zip(CELL, cell, strict=True)),
            "seen": len(shots),
            "images": len(others),
            "steps": found.steps,
            "accuracy_before": round(accuracy(old, labels[others]), 4),
            "accuracy_after": round(accuracy(new, labels[others]), 4),
            "gain": round(float(gain.mean()), 4),
            "gain_error": round(standard_error(gain), 4),
            **{f"held_out_{name}": round(found.verdict.figures[name], 4) for name in HELD_OUT},
        }


if __name__ == "__main__":
    main()
