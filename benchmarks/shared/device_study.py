"""What the studies of adaptation share: the bundles of four tasks on `tiny`, and their images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hgprompt_edge import load_backbone, load_task
from hgprompt_edge.adapt.gradient import Floats, Pixels
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.data import Task
from shared.study import make_parser

TASKS = ("flowers17", "dtd10", "weather4", "digits")
CLASSES_OF = {"digits": 10, "dtd10": 10, "flowers17": 17, "weather4": 4}
UNLABELLED = 100
"""Images without labels that a device sees."""


def device_parser(doc: str | None, required: bool = True) -> argparse.ArgumentParser:
    """Options of every study of adaptation."""
    parser = make_parser(doc)
    parser.add_argument("--data", type=Path, required=required, help="folder of the data sets")
    parser.add_argument("--bundles", type=Path, required=required, help="folder of TASK.hgbundle")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    return parser


def load_tiny() -> Backbone:
    """Load the backbone of these studies, for one thread."""
    torch.set_num_threads(1)
    return load_backbone("tiny")


def load_study_task(name: str, backbone: Backbone, data: Path) -> Task:
    """Load the images of a task, seed 0."""
    folder = None if name == "digits" else data / name
    return load_task(name, backbone.preprocessing, data=folder, seed=0)


def load_study(
    name: str, backbone: Backbone, options: argparse.Namespace
) -> tuple[Bundle, Backbone, Task]:
    """Read the bundle of a task; with the backbone as it was fitted on, and the images."""
    bundle = read_bundle(options.bundles / f"{name}.hgbundle")
    fitted = as_fitted(bundle, backbone)
    return bundle, fitted, load_study_task(name, fitted, options.data)


def in_parts(compute: Callable[[Pixels], Floats], pixels: Pixels) -> Floats:
    """Compute on 16 images at a time, and put the results together."""
    return np.concatenate([compute(pixels[i : i + 16]) for i in range(0, len(pixels), 16)])
