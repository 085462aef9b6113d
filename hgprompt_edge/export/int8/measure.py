"""How many images a quantized body gets right, against float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.data.grouping import copy_groups
from hgprompt_edge.data.task import Images, Task
from hgprompt_edge.export.int8.held_out import Features, HeldOut
from hgprompt_edge.export.int8.schemes import Given
from hgprompt_edge.export.int8.trials import Trial, trial_of
from hgprompt_edge.maths.paired import Paired, paired
from hgprompt_edge.maths.reference import Reference, fit_reference
from hgprompt_edge.maths.softmax import log_mean_softmax
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import OpenVinoEngine

MAX_TEST = 1000
"""Test images at most that the figure beside it is over."""
BATCHES = (1, 16)
"""As a camera and as `hgedge predict` give them: a class must not depend on the other images."""

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Right = npt.NDArray[np.bool_]


def right_in_any_batch(
    body: Engine, images: Images, given: Given | None, judge: Callable[[Floats], Right]
) -> Right:
    """Which images `[n]` are right at each size of `BATCHES`, not by themselves only.

    Parameters
    ----------
    judge
        Which images are right by their features `[n, D]`.
    """
    right = np.ones(len(images), bool)
    for batch in BATCHES:
        parts = range(0, len(images), batch)
        right &= judge(
            np.concatenate([body.run(images.pixels[i : i + batch], given) for i in parts])
        )
    return right


def held_against(body: Engine, held: HeldOut, given: Given | None) -> Paired:
    """Hold a body against float32 on the images that judge."""
    if not len(held.images):
        return Paired(0, 0, 0)
    right = right_in_any_batch(body, held.images, given, held.right)
    return paired(held.floating.astype(np.float64), right.astype(np.float64))


def on_test_images(
    bundle: Bundle, task: Task, features: Features, judge: Callable[[Images], Right]
) -> tuple[Trial | None, int]:
    """Hold a model against float32 on test images under the bundle's head; how many, too.

    Parameters
    ----------
    judge
        Which of some images are right in int8, `[n]`.
    """
    rows = np.random.default_rng(0).permutation(len(task.test))[:MAX_TEST]
    if not len(rows):
        return None, 0
    images = task.test.subset(np.sort(rows))
    logits = [
        one.head.logits(features(images, one.prompt).double().numpy()) for one in bundle.folded
    ]
    exact = log_mean_softmax(np.stack(logits)).argmax(1) == images.labels
    found = paired(exact.astype(np.float64), judge(images).astype(np.float64))
    return trial_of("test images", found, float(exact.mean())), len(images)


def own_reference(run: Callable[[Pixels], Floats], bundle: Bundle, task: Task) -> Reference | None:
    """Measure what the task's own images look like in int8, as `fit` did in float32.

    Of the images that `Judge.reference` takes; None where the bundle has no reference either.

    Parameters
    ----------
    run
        Features `[n, D]` in int8 of pixels, which may go on to the right.
    """
    if bundle.reference is None:
        return None
    parts = (task.validation,) if bundle.choice == TUNED else (task.train, task.validation)
    pixels = np.concatenate([part.pixels for part in parts])
    size = max(BATCHES)
    found = [run(pixels[i : i + size]) for i in range(0, len(pixels), size)]
    features = np.concatenate(found)[:, : len(bundle.reference.centre)]
    labels = np.concatenate([part.labels for part in parts])
    return fit_reference(features, labels, len(bundle.classes), groups=copy_groups(parts))


def open_body(path: Path) -> Engine:
    """Open a model file, without a cache of what the runtime makes of it."""
    return OpenVinoEngine(path, cache=False) if path.suffix == ".xml" else OnnxEngine(path)
