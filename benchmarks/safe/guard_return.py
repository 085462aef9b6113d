"""Whether a device goes back to the initial weights with the light, and only then: on validation.

    python benchmarks guard_return --data ../shared/assets/datasets --bundles DIR
    python benchmarks adapt --only-report                     # the page from the rows

In force is nine tenths of a condition prompt, as after adapting to that condition. A device without
labels then sees clean images, of all classes or of half of them, or images under the condition
still. Accuracy is over all validation images, under a head that was fitted on the training images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.adapt.losses import statistics_distance
from hgprompt_edge.adapt.starts import TOWARDS
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import CONDITIONS, SEVERITIES, corrupt
from safe.guard import CLEAN, StudyLearner, judging
from shared.device_study import (
    UNLABELLED,
    device_parser,
    load_study,
    load_tiny,
)
from shared.rows import Row, Rows, results_file, write_rows

RESULTS = results_file("guard_return")


def main() -> None:
    options = device_parser(__doc__).parse_args()
    backbone = load_tiny()
    rows: Rows = []
    for name in options.tasks:
        bundle, fitted, task = load_study(name, backbone, options)
        learner = StudyLearner(judging(bundle, fitted, task), fitted)
        rows += [{"task": name} | row for row in measure(learner, task)]
    write_rows(RESULTS, rows)


def measure(learner: StudyLearner, task: Task) -> Iterator[Row]:
    """Rows of what is in force and what is seen: distances and accuracies under either weights."""
    labels, bank = task.validation.labels, learner.predictor.bank
    assert bank is not None
    assert learner.clean is not None
    classes = np.unique(labels)
    order = np.random.default_rng(5).permutation(len(labels))
    half = np.isin(labels[order], classes[: len(classes) // 2])
    cases = [(0, "all"), (0, "half"), *((severity, "all") for severity in SEVERITIES)]
    for condition in CONDITIONS:
        corner = np.eye(len(bank.names))[bank.names.index(condition)]
        in_force = (1 - TOWARDS) * learner.initial + TOWARDS * corner
        for severity, part in cases:
            pixels = task.validation.pixels
            if severity:
                pixels = corrupt(pixels, condition, severity, 0)
            seen = (order[half] if part == "half" else order)[:UNLABELLED]
            row: Row = {"in_force": condition, "shift": condition if severity else CLEAN}
            row |= {"severity": severity, "classes": part, "seen": len(seen)}
            for name, mix in (("in_force", in_force), ("factory", learner.initial)):
                features = learner.features(pixels, mix)
                distance, _ = statistics_distance(features[seen], learner.clean)
                row[f"distance_{name}"] = round(distance, 4)
                row[f"accuracy_{name}"] = round(accuracy(learner.head.logits(features), labels), 4)
            yield row


if __name__ == "__main__":
    main()
