"""What better condition prompts could bring back: those for the very shift they are measured under.

    python benchmarks/condition_limits.py --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks/condition_limits.py                            # the section from the rows

The recipe is that of `hgedge condition`, the operation and its parameters those of the study at
severity 3, which no condition prompt of a bundle has seen. Accuracy of validation images under a
head that was fitted on the training images alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapt import TASKS
from limits_report import EXACT, LIMITS, OWN, limits_section
from rows import read_rows, write_rows
from targets import load_target

from hgprompt_edge import load_backbone
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import CONDITIONS, TINTS, Pixels, corrupt
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.heads import Head, accuracy
from hgprompt_edge.training.condition_prompts import starting_tokens
from hgprompt_edge.training.condition_trainer import (
    ConditionRecipe,
    ConditionTrainer,
    Tokens,
    seen_under,
)

SEVERITY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--bundles", type=Path, help="folder of TASK.hgbundle")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS))
    parser.add_argument("--epochs", type=int, default=ConditionRecipe().epochs)
    options = parser.parse_args()
    if options.data is not None:
        torch.set_num_threads(1)
        for name in options.tasks:
            run(name, options)
    print(limits_section())


class ExactTrainer(ConditionTrainer):
    """Trains under the shift that is measured."""

    def corrupted(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Other noise each time, the tint of seed 0 always."""
        seed = len(TINTS) * int(rng.integers(1000))
        return corrupt(pixels, self.condition, SEVERITY, seed)


def run(name: str, options: argparse.Namespace) -> None:
    done = {
        (row["task"], row["shift"])
        for row in read_rows(LIMITS)
        if (row["method"], row["epochs"]) == (EXACT, options.epochs)
    }
    wanted = [c for c in options.conditions if (name, c) not in done]
    if not wanted:
        return
    backbone = load_backbone("tiny")
    task = load_target(name, backbone, options.data, 0)
    assert task is not None
    bundle = read_bundle(options.bundles / f"{name}.hgbundle")
    for found in measure(bundle, backbone, task, wanted, options.epochs):
        rows = read_rows(LIMITS)  # anew: another process may have written
        new = [{"task": name} | row for row in found]
        write_rows(LIMITS, [*rows, *(row for row in new if row not in rows)])
        print(*new, sep="\n", flush=True)


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, conditions: list[str], epochs: int
) -> Iterator[list[dict[str, Any]]]:
    """Train a prompt for each shift and compare it with the one that the bundle has."""
    usual = ConditionRecipe(seed=bundle.seed)
    fast = backbone.in_precision(choose_compute(backbone).compute.precision)
    head = Head(torch.from_numpy(bundle.head_weight), torch.from_numpy(bundle.head_bias))
    train, validation = (
        seen_under(backbone, images.pixels, bundle.prompt)
        for images in (task.train, task.validation)
    )
    judging = Judge(FeatureStore(backbone), task, seed=bundle.seed).training_head(bundle.prompt)
    start = starting_tokens(bundle, backbone)
    assert bundle.condition_tokens is not None
    names = [about["name"] for about in bundle.conditions]
    own = dict(zip(names, bundle.condition_tokens.astype(np.float32), strict=True))

    def measured(pixels: Pixels, tokens: Tokens | None) -> float:
        features = extract_features(backbone, pixels, tokens)
        return round(accuracy(judging.logits(features), task.validation.labels), 6)

    for condition in conditions:
        recipe = replace(usual, epochs=epochs)
        trainer = ExactTrainer(fast, recipe, condition, start, head, train, validation)
        exact = trainer.run().tokens
        shifted = corrupt(task.validation.pixels, condition, SEVERITY)
        prompts = ((OWN, usual.epochs, own[condition]), (EXACT, epochs, exact))
        yield [
            {
                "shift": condition,
                "severity": SEVERITY,
                "method": method,
                "epochs": trained,
                "seed": bundle.seed,
                "accuracy_clean": measured(task.validation.pixels, bundle.prompt),
                "accuracy_before": measured(shifted, bundle.prompt),
                "accuracy_after": measured(shifted, tokens),
            }
            for method, trained, tokens in prompts
        ]


if __name__ == "__main__":
    main()
