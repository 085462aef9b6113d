"""What better condition prompts could bring back: those for the very shift they are measured under.

    python benchmarks condition_limits --data ../shared/assets/datasets --bundles DIR   # resumes

The recipe is that of `hgedge condition`, the operation and its parameters those of the study at
severity 3, which no condition prompt of a bundle has seen. Accuracy of validation images under a
head that was fitted on the training images alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from helps.recovered import recovered, with_interval
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import CONDITIONS, TINTS, Pixels, corrupt
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.heads import accuracy, logits_of
from hgprompt_edge.training.condition_prompts import starting_tokens
from hgprompt_edge.training.condition_trainer import (
    ConditionRecipe,
    ConditionTrainer,
    Tokens,
    seen_under,
)
from shared.device_study import device_parser, load_study, load_tiny
from shared.pages import listed, percent, table
from shared.rows import Rows, add_rows, distinct, read_rows, results_file, select

RESULTS = results_file("condition_limits")
OWN, EXACT = "condition_prompt", "exact_prompt"
SEVERITY = 3


def main() -> None:
    parser = device_parser(__doc__)
    parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS))
    parser.add_argument("--epochs", type=int, default=ConditionRecipe().epochs)
    options = parser.parse_args()
    backbone = load_tiny()
    for name in options.tasks:
        run(name, backbone, options)


class ExactTrainer(ConditionTrainer):
    """Trains under the shift that is measured."""

    def corrupted(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Other noise each time, the tint of seed 0 always."""
        seed = len(TINTS) * int(rng.integers(1000))
        return corrupt(pixels, self.condition, SEVERITY, seed)


def run(name: str, backbone: Backbone, options: argparse.Namespace) -> None:
    done = select(read_rows(RESULTS), task=name, method=EXACT, epochs=options.epochs)
    wanted = [each for each in options.conditions if not select(done, shift=each)]
    if wanted:
        bundle, fitted, task = load_study(name, backbone, options)
        for found in measure(bundle, fitted, task, wanted, options.epochs):
            rows = read_rows(RESULTS)
            new = [{"task": name} | row for row in found]
            add_rows(RESULTS, *(row for row in new if row not in rows))


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, conditions: list[str], epochs: int
) -> Iterator[Rows]:
    """Train a prompt for each shift and compare it with the one that the bundle has."""
    usual = ConditionRecipe(seed=bundle.seed)
    fast = backbone.in_precision(choose_compute(backbone).compute.precision)
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
        return round(accuracy(logits_of(judging, features), task.validation.labels), 6)

    for condition in conditions:
        recipe = replace(usual, epochs=epochs)
        trainer = ExactTrainer(fast, recipe, condition, start, bundle.head, train, validation)
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


def limits_figures() -> dict[str, str]:
    """Figures of the page about adaptation."""
    rows = read_rows(RESULTS)
    usual = [row for row in rows if row["epochs"] in distinct(select(rows, method=OWN), "epochs")]
    longer = [
        f"{row['task']} under {row['shift']} {100 * row['accuracy_after']:.1f} "
        f"({row['epochs']} epochs)"
        for row in rows
        if row not in usual
    ]
    ahead = {
        shift: recovered(usual, EXACT, (shift,)) - recovered(usual, OWN, (shift,))
        for shift in CONDITIONS
    }
    return {
        "limits_table": limits_table(usual),
        "longer": f"Trained for another time: {listed(longer)}.\n" if longer else "",
        "own": percent(recovered(usual, OWN, CONDITIONS)),
        "exact": percent(recovered(usual, EXACT, CONDITIONS)),
        "own_interval": with_interval(usual, OWN, CONDITIONS),
        "exact_interval": with_interval(usual, EXACT, CONDITIONS),
        "widest": max(ahead, key=lambda shift: ahead[shift]),
    }


def limits_table(rows: Rows) -> str:
    """Accuracies before, with the condition prompt, and with one for this shift."""
    tasks = distinct(rows, "task")
    body = []
    for shift in CONDITIONS:
        cells = []
        for task in tasks:
            own, exact = (
                select(rows, task=task, shift=shift, method=method)[0] for method in (OWN, EXACT)
            )
            values = own["accuracy_before"], own["accuracy_after"], exact["accuracy_after"]
            cells.append(listed(f"{100 * value:.1f}" for value in values))
        shares = [percent(recovered(rows, method, (shift,))) for method in (OWN, EXACT)]
        body.append((shift, *cells, *shares))
    return table(("shift", *tasks, "condition prompt", "a prompt for this shift"), body)


if __name__ == "__main__":
    main()
