"""Targets of the studies on `dinov2-small`: few images, real and fresh tasks in three groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge import load_backbone, load_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.images.picture_hash import join
from hgprompt_edge.images.preprocess import Preprocessing
from shared.fresh_tasks import FRESH, load_fresh
from shared.rows import Row

BACKBONE, TOY = "dinov2-small", "tiny"
TRAIN, TEST = 400, 400
GROUPS = {
    "natural": (
        *("cifar100", "flowers17", "dtd10", "grocery81", "clothing10", "houses4", "weather4"),
        *("pacs-photo", "pacs-art-painting", "pacs-cartoon", "pacs-sketch"),
    ),
    "specialised": ("neu-cls", "magnetic-tile", "deeppcb", "trashnet", "pneumonia-mnist"),
    "structured": ("chars34-scene", *FRESH),
}
"""Targets whose families have no prompt in the bank."""
SOURCE_TASKS = {"real": ("sign-language-digits", "gtsrb"), "generated": tuple(KINDS)}
"""Tasks of the bank's own prompts: each is a target of the prompts of other families."""


def fastest_backbone(name: str = BACKBONE) -> Backbone:
    """Load the backbone in the precision in which this machine is fastest."""
    backbone = load_backbone(name)
    return backbone.with_compute(choose_compute(backbone).compute)


def load_target(
    name: str, preprocessing: Preprocessing, data: Path, seed: int, per_class: int | None = None
) -> Task:
    """Load a target cut to `TRAIN` training and `TEST` test images, classes as even as they are.

    With `per_class` to so many training images a class, where there are as many. The seed draws the
    training and validation images; the test images are always the same.
    """
    fresh = name in FRESH
    folder = None if name in KINDS else data / name
    task = (
        load_fresh(name, preprocessing, seed)
        if fresh
        else load_task(name, preprocessing, data=folder, seed=seed)
    )
    if fresh and per_class is None:
        return task
    count = TRAIN if per_class is None else per_class * len(task.classes)
    drawn = even(joined(task.train, task.validation), count, seed)
    rng = np.random.default_rng(seed)
    held = np.zeros(len(drawn), bool)
    for label in np.unique(drawn.labels):
        rows = rng.permutation(np.flatnonzero(drawn.labels == label))
        held[rows[: max(1, round(len(rows) / 5))]] = len(rows) > 1
    train, validation = (drawn.subset(np.flatnonzero(mask)) for mask in (~held, held))
    return replace(task, train=train, validation=validation, test=even(task.test, TEST, 0))


def facts_of(task: Task, seed: int) -> Row:
    """Say in rows of a study what the target is, `train` without the images that validate."""
    return {
        "backbone": BACKBONE,
        "task": task.name,
        "family": task.family,
        "seed": seed,
        "train": len(task.train),
        "test": len(task.test),
    }


def joined(one: Images, other: Images) -> Images:
    """Put two parts into one."""
    pixels = np.concatenate([one.pixels, other.pixels])
    labels = np.concatenate([one.labels, other.labels])
    hashes = (
        None if one.hashes is None or other.hashes is None else join([one.hashes, other.hashes])
    )
    return Images(pixels, labels, one.names + other.names, hashes)


def even(images: Images, count: int, seed: int) -> Images:
    """Take `count` images, one of each class in turn."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    turns = np.zeros(len(images), int)
    for label in np.unique(images.labels):
        rows = order[images.labels[order] == label]
        turns[rows] = np.arange(len(rows))
    rows = order[np.argsort(turns[order], kind="stable")][:count]
    return images.subset(np.sort(rows))
