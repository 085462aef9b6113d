"""How the bounds of the guard without labels were chosen: on validation images.

    python benchmarks guard --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks adapt --only-report                     # the page from the rows

A cell is a task under a shift. The mix is learned without labels from a hundred validation images,
under a head that was fitted on the training images alone, and measured on all of them. `mix` moves
the mix, `bias` the head's bias, too; `start` and `start_bias` are the mix that the descent began
at. Only `adapt` looks at test images.

Rows of severity 0 are of clean images: of all classes, of half of them and of one, whose statistics
are off although nothing has changed. Under a shift, too, a device may see half of the classes only;
accuracy is over all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge import export_onnx
from hgprompt_edge.adapt.gradient import AdaptGraph, Floats, Pixels
from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.adapt.guard.unlabelled import judge_unlabelled
from hgprompt_edge.adapt.learner import GradientLearner
from hgprompt_edge.adapt.loop import learn_unlabelled
from hgprompt_edge.adapt.losses import statistics_distance
from hgprompt_edge.adapt.optimizer import Descent, Point, Settings
from hgprompt_edge.adapt.proposal import Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import SHIFTS, corrupt
from hgprompt_edge.export.verify import reference_logits
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.runtime.predictor import Predictor
from shared.device_study import (
    UNLABELLED,
    device_parser,
    in_parts,
    load_study,
    load_tiny,
)
from shared.rows import Row, add_rows, read_rows, results_file, select

RESULTS = results_file("guard")
CLEAN = "none"
"""The shift of severity 0."""
BIASED = {"mix": "bias", "start": "start_bias"}
"""Names of the same mixes with the bias."""
FIGURES = ("agreement", "classes_before", "classes_after", "entropy_before", "entropy_after")
"""Of the guard's verdict on a mix, alone and with the bias."""


def main() -> None:
    parser = device_parser(__doc__)
    parser.add_argument("--severities", type=int, nargs="*", default=[3, 1, 0])
    parser.add_argument("--classes", nargs="*", default=["all", "half", "one"])
    options = parser.parse_args()
    backbone = load_tiny()
    for severity in options.severities:
        for name in options.tasks:
            run(name, severity, backbone, options)


def run(name: str, severity: int, backbone: Backbone, options: argparse.Namespace) -> None:
    done = select(read_rows(RESULTS), task=name, severity=severity)
    shifts = SHIFTS if severity else (CLEAN,)
    parts = [part for part in options.classes if not (severity and part == "one")]
    missing = [
        (shift, part)
        for part in parts
        for shift in shifts
        if not select(done, shift=shift, classes=part)
    ]
    if missing:
        bundle, fitted, task = load_study(name, backbone, options)
        bundle = judging(bundle, fitted, task)
        for row in measure(bundle, fitted, task, missing, severity):
            add_rows(RESULTS, {"task": name, "severity": severity} | row)


class StudyLearner(GradientLearner):
    """Learns as a device does; features come from the model, without their gradient.

    Attributes
    ----------
    began, ended
        Where the last descent did so, whatever was proposed.
    """

    began: Point
    ended: Point

    def __init__(self, bundle: Bundle, backbone: Backbone) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            export_onnx(bundle, backbone, path, runtime_weights=True, adapt=True)
            self.predictor = Predictor(path, threads=1)
            assert self.predictor.bank is not None
            graph = AdaptGraph(adapt_path(path), self.predictor.bank, threads=1, micro_batch=4)
        super().__init__(graph, Settings())

    def features(self, images: Pixels, mix: npt.ArrayLike) -> Floats:
        """Features `[n, D]` of `images [n, S, S, 3]`."""
        self.predictor.set_weights(mix)
        return in_parts(self.predictor.features, images)

    def learn(self, images: Pixels, labels: Any, start: Point, *given: Any) -> Descent:
        """Descend, and remember from where to where."""
        found = super().learn(images, labels, start, *given)
        self.began, self.ended = start, found.point
        return found


def judging(bundle: Bundle, backbone: Backbone, task: Task) -> Bundle:
    """Give the bundle a head that has not seen the validation images."""
    judge = Judge(FeatureStore(backbone), task, seed=bundle.seed)
    head = judge.training_head(bundle.prompt)
    bundle = replace(bundle, head=head.as_float32())
    return replace(bundle, probe_logits=reference_logits(bundle, backbone, bundle.probe_images))


def measure(
    bundle: Bundle, backbone: Backbone, task: Task, cases: list[tuple[str, str]], severity: int
) -> Iterator[Row]:
    """Rows of shifts and which classes (`all`, `half`, `one`) the device sees images of."""
    learner, labels = StudyLearner(bundle, backbone), task.validation.labels
    order, classes = np.random.default_rng(5).permutation(len(labels)), np.unique(labels)
    counts = {"all": len(classes), "half": len(classes) // 2, "one": 1}
    initial = Weights(learner.initial, learner.head)
    assert learner.clean is not None
    for shift, part in cases:
        seen = order[np.isin(labels[order], classes[: counts[part]])][:UNLABELLED]
        pixels = task.validation.pixels
        if shift != CLEAN:
            pixels = corrupt(pixels, shift, severity, 0)
        before = learner.features(pixels, learner.initial)
        found = learn_unlabelled(learner, pixels[seen], initial, (before[seen], before[seen]))
        old = learner.head.logits(before)
        accuracies, judged = {"before": accuracy(old, labels)}, {}
        distances = {"before": statistics_distance(before[seen], learner.clean)[0]}
        for name, point in (("mix", learner.ended), ("start", learner.began)):
            after = learner.features(pixels, point.mix)
            distances[name] = statistics_distance(after[seen], learner.clean)[0]
            following = learner.head.following(after[seen], learner.clean.mean)
            for key, head in ((name, learner.head), (BIASED[name], following)):
                logits = head.logits(after)
                accuracies[key] = accuracy(logits, labels)
                judged[key] = judge_unlabelled(
                    old[seen], old[seen], logits[seen], (distances["before"], distances[name])
                ).figures
        yield {
            "shift": shift,
            "classes": part,
            "seen": len(seen),
            "images": len(pixels),
            "steps": found.steps,
            **{f"accuracy_{name}": round(value, 4) for name, value in accuracies.items()},
            **{f"distance_{name}": round(value, 4) for name, value in distances.items()},
            **{
                f"{name}_{figure}": round(figures[figure], 4)
                for name, figures in judged.items()
                for figure in FIGURES
            },
        }


if __name__ == "__main__":
    main()
