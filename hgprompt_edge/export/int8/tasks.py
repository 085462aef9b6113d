"""Whether a task keeps its accuracy on an int8 backbone that takes prompt and head as inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.tasks.task_tensors import TaskTensors
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data.task import Images, Task
from hgprompt_edge.errors import CheckError
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.graph.tasks import head_tensors
from hgprompt_edge.export.int8.held_out import Features, HeldOut, features_of, hold_out
from hgprompt_edge.export.int8.measure import on_test_images, own_reference, right_in_any_batch
from hgprompt_edge.export.int8.quantize import Measured
from hgprompt_edge.export.int8.search import Judge, check_images
from hgprompt_edge.export.int8.trials import Trial, refusal, unproven
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.paired import Paired, paired
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.engines.engine import Engine

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TaskJudge:
    """A task's images, and what the backbone is given for it.

    Attributes
    ----------
    path
        Of the task's file, for messages.
    width
        Of the features that the backbone gives.
    """

    path: Path
    bundle: Bundle
    images: Task
    given: TaskTensors
    width: int
    features: Features
    held: HeldOut

    def measure(self, engine: Engine) -> Paired:
        """Hold a backbone against float32 on held-out images, under heads that saw other ones."""
        labels = self.held.images.labels
        if not len(labels):
            return Paired(0, 0, 0)
        right = np.zeros(len(labels), bool)
        for rows, heads in self.held.folds:
            right[rows] = self._right(engine, self.held.images.subset(rows), heads)
        return paired(self.held.floating.astype(np.float64), right.astype(np.float64))

    @property
    def judge(self) -> Judge:
        """For `try_schemes`."""
        return Judge(self.measure, self.held.accuracy)

    def on_test_images(self, engine: Engine) -> tuple[Trial | None, int]:
        """Hold a backbone against float32 on test images under the bundle's head; how many, too."""
        judge = partial(self._right, engine, heads=None)
        return on_test_images(self.bundle, self.images, self.features, judge)

    def reference(self, engine: Engine) -> Reference | None:
        """Measure what the task's own images look like on a backbone, see `own_reference`."""
        given = self.given.inputs()
        return own_reference(
            lambda pixels: engine.run_all(pixels, given)[1], self.bundle, self.images
        )

    def _right(self, engine: Engine, images: Images, heads: Sequence[Head] | None) -> Right:
        """Which images are right `[n]` under heads for the graph's features, or the bundle's."""
        given = self.given
        if heads is not None:
            weight, bias = head_tensors(heads, self.width)
            given = replace(given, head_weight=weight, head_bias=bias)
        return right_in_any_batch(
            engine, images, given.inputs(), lambda logits: logits.argmax(1) == images.labels
        )


def judge_of(
    path: Path, bundle: Bundle, images: Task, given: TaskTensors, backbone: Backbone, on: Rewrites
) -> TaskJudge:
    """Make the judge of a task from the images of its fit.

    Raises
    ------
    UserError
        They are not those images, or too few.
    """
    check_images(bundle, images)
    features = features_of(bundle, backbone)
    held = hold_out(bundle, backbone, images, features, on)
    return TaskJudge(path, bundle, images, given, backbone.feature_dim, features, held)


def measured(
    judge: TaskJudge, engine: Engine, tried: Sequence[Trial], found: Paired, max_drop: float
) -> Measured:
    """Sum up what a task loses on the backbone that was chosen, the last of those tried."""
    proven = tried[-1].holds(max_drop)
    test, test_images = judge.on_test_images(engine)
    return Measured(
        tried=tuple(tried),
        images=len(judge.held.images),
        float_accuracy=judge.held.accuracy,
        proven=bool(proven),
        needed=None if proven else found.needed(-max_drop),
        bf16=None,
        test=test,
        test_images=test_images,
    )


def check_holds(
    judges: Sequence[TaskJudge],
    tried: Sequence[tuple[Trial, ...]],
    found: Sequence[Paired],
    max_drop: float,
    accept_unproven: bool,
) -> None:
    """Refuse by name the task that loses most, where one loses too much or may do so.

    Raises
    ------
    CheckError
        As above.
    """
    each = list(zip(*tried, strict=True))
    if any(trial.holds(max_drop) is False for trial in tried[-1]):
        worst = max(range(len(judges)), key=lambda i: min(trial.low for trial in each[i]))
        judge = judges[worst]
        raise CheckError(refusal(judge.path, judge.held, each[worst], max_drop))
    if accept_unproven:
        return
    for judge, trial, pairs in zip(judges, tried[-1], found, strict=True):
        if not trial.holds(max_drop):
            needed = pairs.needed(-max_drop)
            raise CheckError(unproven(judge.path, judge.held, trial, max_drop, needed))


def quantization_entry(result: Measured, max_drop: float, more: dict[str, Any]) -> str:
    """Make what a task records of its accuracy in int8, as JSON."""
    return json.dumps(
        {
            "images": result.images,
            "accuracy_fp32": result.float_accuracy,
            "max_drop": max_drop,
            "proven": result.proven,
            "tried": [asdict(trial) for trial in result.tried],
            "bf16": None,
            "test": asdict(result.test) if result.test else None,
            "test_images": result.test_images,
            **more,
        }
    )
