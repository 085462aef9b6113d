"""How many standard errors the guard asks for with labels: chosen on validation images.

    python benchmarks guard_labelled --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks adapt --only-report                     # the page from the rows

A cell is a task under a shift. The mix is learned from a few labelled validation images a class,
under a head that was fitted on the training images alone, and measured on the other validation
images. Only `adapt` looks at test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import numpy as np

from hgprompt_edge.adapt.guard.measures import accuracy, log_loss, standard_error
from hgprompt_edge.adapt.loop import adapt_labelled
from hgprompt_edge.adapt.proposal import Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import SHIFTS, corrupt
from safe.guard import StudyLearner, judging
from shared.device_study import device_parser, load_study, load_tiny
from shared.rows import Row, add_rows, read_rows, results_file, select

RESULTS = results_file("guard_labelled")
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
    parser = device_parser(__doc__)
    parser.add_argument("--severities", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--images", type=int, nargs="*", default=[5, 2], help="a class, labelled")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    backbone = load_tiny()
    for name in options.tasks:
        run(name, backbone, options)


def run(name: str, backbone: Backbone, options: argparse.Namespace) -> None:
    done = {tuple(row[key] for key in CELL) for row in select(read_rows(RESULTS), task=name)}
    every = product(options.seeds, options.images, options.severities, SHIFTS)
    wanted = [(shift, severity, images, seed) for seed, images, severity, shift in every]
    missing = [cell for cell in wanted if cell not in done]
    if missing:
        bundle, fitted, task = load_study(name, backbone, options)
        bundle = judging(bundle, fitted, task)
        for row in measure(bundle, fitted, task, missing):
            add_rows(RESULTS, {"task": name} | row)


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, cells: list[tuple[str, int, int, int]]
) -> Iterator[Row]:
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
