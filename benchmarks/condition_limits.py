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
from limits_report import LIMITS, limits_section
from rows import read_rows, write_rows
from targets import load_target

from hgprompt_edge import load_backbone
from hgprompt_edge.bundle import Bundle, read_bundle
from hgprompt_edge.tasks import Task
from hgprompt_edge.tasks.conditions import CONDITIONS, TINTS, Pixels, corrupt
from hgprompt_edge.transfer.choice import Judge
from hgprompt_edge.transfer.condition import starting_tokens
from hgprompt_edge.transfer.condition_trainer import (
    ConditionRecipe,
    ConditionTrainer,
    seen_under,
)
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import extract_features
from hgprompt_edge.vit.heads import Head, accuracy
from hgprompt_edge.vit.train import fastest_precision

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
    done = {(row["task"], row["shift"], row["epochs"]) for row in read_rows(LIMITS)}
    wanted = [c for c in options.conditions if (name, c, options.epochs) not in done]
    if not wanted:
        return
    backbone = load_backbone("bundled")
    task = load_target(name, backbone, options.data, 0)
    assert task is not None
    bundle = read_bundle(options.bundles / f"{name}.hgbundle")
    for row in measure(bundle, backbone, task, wanted, options.epochs):
        rows = read_rows(LIMITS)  # anew: another process may have written
        write_rows(LIMITS, [*rows, {"task": name} | row])
        print(row, flush=True)


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, conditions: list[str], epochs: int
) -> Iterator[dict[str, Any]]:
    """Train a prompt for each shift and compare it with the one that the bundle has."""
    recipe = replace(ConditionRecipe(), epochs=epochs, precision=fastest_precision())
    head = Head(torch.from_numpy(bundle.head_weight), torch.from_numpy(bundle.head_bias))
    train, validation = (
        seen_under(backbone, images.pixels, bundle.prompt)
        for images in (task.train, task.validation)
    )
    judging = Judge(FeatureStore(backbone), task, seed=bundle.seed).training_head(bundle.prompt)
    start = starting_tokens(bundle, backbone)
    assert bundle.condition_tokens is not None
    own = {
        about["name"]: t
        for about, t in zip(bundle.conditions, bundle.condition_tokens, strict=True)
    }

    def percent(pixels: Pixels, tokens: Any) -> float:
        prompt = None if tokens is None else tokens.astype(np.float32)
        features = extract_features(backbone, pixels, prompt)
        return round(100 * accuracy(judging.logits(features), task.validation.labels), 2)

    for condition in conditions:
        trainer = ExactTrainer(backbone, recipe, condition, start, head, train, validation)
        exact = trainer.run().tokens
        shifted = corrupt(task.validation.pixels, condition, SEVERITY)
        yield {
            "shift": condition,
            "epochs": epochs,
            "clean": percent(task.validation.pixels, bundle.prompt),
            "before": percent(shifted, bundle.prompt),
            "condition_prompt": percent(shifted, own[condition]),
            "exact_prompt": percent(shifted, exact),
        }


if __name__ == "__main__":
    main()
