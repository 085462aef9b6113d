"""The target tasks of the studies: what is shipped, real data sets by folder, a wheel.

Test parts are the same for every seed; the seed draws the training and validation images.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hgprompt_edge import load_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.errors import UserError

TARGETS = (
    "flowers17",
    "dtd10",
    "weather4",
    "digits",
    "textile-defects",
    "caltech101",
    "cifar10",
    "fashion-mnist",
    "gtsrb",
    "rsscn7",
    "sign-language-digits",
    *KINDS,
)
TEXTILE_FOLDER = Path("data", "textile_images", "simulated")
"""In the wheel `conformal-clip-data`: class folders of simulated fabric, good and defective."""


def load_target(name: str, backbone: Backbone, data: Path | None, seed: int) -> Task | None:
    """Load a target; None where its images are not installed."""
    preprocessing = backbone.preprocessing
    if name in KINDS or name == "digits":
        return load_task(name, preprocessing, seed=seed)
    if name == "textile-defects":
        found = find_spec("conformal_clip_data")
        if found is None or found.origin is None:
            return None
        folder = Path(found.origin).parent / TEXTILE_FOLDER
        whole = load_task(name, preprocessing, data=folder, limit=None)
        return halves(replace(whole, family="textile"), seed)
    if data is None:
        return None
    try:
        return load_task(name, preprocessing, data=data / name, seed=seed)
    except UserError:
        return None


def halves(task: Task, seed: int) -> Task:
    """Split data without a test part: a fixed half tests, of the rest the seed draws 800 / 200."""
    images = joined(task.train, task.validation)
    order = np.argsort(images.names)
    fixed = np.random.default_rng(0).permutation(order)
    test, rest = fixed[: len(fixed) // 2], fixed[len(fixed) // 2 :]
    drawn = np.random.default_rng(seed).permutation(rest)[:1000]
    held = len(drawn) // 5
    parts = [images.subset(rows) for rows in (drawn[held:], drawn[:held], test)]
    return replace(task, train=parts[0], validation=parts[1], test=parts[2])


def joined(one: Images, other: Images) -> Images:
    pixels = np.concatenate([one.pixels, other.pixels])
    return Images(pixels, np.concatenate([one.labels, other.labels]), one.names + other.names)


def few(images: Images, count: int, seed: int) -> Images:
    """Take at most `count` images of each class."""
    order = np.random.default_rng(seed).permutation(len(images))
    taken: dict[int, int] = {}
    rows = []
    for row in order:
        label = int(images.labels[row])
        if taken.setdefault(label, 0) < count:
            taken[label] += 1
            rows.append(row)
    return images.subset(np.sort(np.array(rows)))
