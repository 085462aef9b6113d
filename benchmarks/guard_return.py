"""Whether a device goes back to the initial weights with the light, and only then: on validation.

    python benchmarks/guard_return.py --data ../shared/assets/datasets --bundles DIR
    python benchmarks/guard_return.py                                # the table from the rows

In force is nine tenths of a condition prompt, as after adapting to that condition. A device without
labels then sees clean images, of all classes or of half of them, or images under the condition
still. Accuracy is over all validation images, under a head that was fitted on the training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapt import TASKS, UNLABELLED
from guard import CLEAN, StudyLearner, judging
from guard_report import GUARD_RETURN, return_table
from rows import read_rows, write_rows
from targets import load_target

from hgprompt_edge import load_backbone
from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.adapt.losses import statistics_distance
from hgprompt_edge.adapt.starts import TOWARDS
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import CONDITIONS, SEVERITIES, corrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--bundles", type=Path, help="folder of TASK.hgbundle")
    options = parser.parse_args()
    if options.data is not None:
        torch.set_num_threads(1)
        backbone, rows = load_backbone("tiny"), []
        for name in TASKS:
            task = load_target(name, backbone, options.data, 0)
            assert task is not None
            bundle = judging(read_bundle(options.bundles / f"{name}.hgbundle"), backbone, task)
            for row in measure(StudyLearner(bundle, backbone), task):
                rows.append({"task": name} | row)
                print(rows[-1], flush=True)
        write_rows(GUARD_RETURN, rows)
    print("\n".join(return_table(read_rows(GUARD_RETURN))))


def measure(learner: StudyLearner, task: Task) -> Iterator[dict[str, Any]]:
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
            row: dict[str, Any] = {"in_force": condition, "shift": condition if severity else CLEAN}
            row |= {"severity": severity, "classes": part, "seen": len(seen)}
            for name, mix in (("in_force", in_force), ("initial", learner.initial)):
                features = learner.features(pixels, mix)
                distance, _ = statistics_distance(features[seen], *learner.clean)
                row[f"distance_{name}"] = round(distance, 4)
                row[f"accuracy_{name}"] = round(accuracy(learner.head.logits(features), labels), 4)
            yield row


if __name__ == "__main__":
    main()
