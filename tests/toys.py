"""A toy task whose labels are what a prompt makes visible, and banks of prompts for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn import datasets
from sklearn.utils import Bunch
from small_vits import TOKENS

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Images, Task
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.prompt import Prompt

CLASSES = 3


def shorten_start(patch: pytest.MonkeyPatch) -> None:
    """Make a neutral start in two steps of four images, where its worth does not matter."""
    patch.setattr("hgprompt_edge.training.neutral_prompt.NEUTRAL_STEPS", 2)
    patch.setattr("hgprompt_edge.training.neutral_prompt.NEUTRAL_BATCH", 4)


def shorten_digits(patch: pytest.MonkeyPatch, count: int = 300) -> None:
    """Let the task digits have its first images only."""
    found = datasets.load_digits()
    few = Bunch(**{**found, "images": found.images[:count], "target": found.target[:count]})
    patch.setattr(datasets, "load_digits", lambda: few)


def noise_tokens(count: int, layers: int = 2, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, layers, TOKENS, 32)).astype(np.float32)


def make_bank(backbone: Backbone, tokens: npt.NDArray[np.float32], **options: Any) -> PromptBank:
    return PromptBank(
        tuple(
            Prompt(
                prompt,
                f"source{i}",
                backbone.name,
                backbone.sha256,
                backbone.image_size,
                mode="shallow" if len(prompt) == 1 else "deep",
                family=f"family{i}",
                sha256=f"{i:064}",
                **options,
            )
            for i, prompt in enumerate(tokens)
        )
    )


def pixels_of(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)


def seen_through(
    backbone: Backbone, pixels: npt.NDArray[np.uint8], prompt: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.int64]:
    """Label images by a direction in which they vary under a prompt, in equal parts."""
    features = extract_features(backbone, pixels, prompt).double()
    projection = torch.linalg.svd(features - features.mean(0), full_matrices=False)[0][:, 5]
    ranks = projection.argsort().argsort()
    return (ranks * CLASSES // len(ranks)).numpy()


def make_task(
    backbone: Backbone,
    prompt: npt.NDArray[np.float32] | None = None,
    sizes: tuple[int, int, int] = (150, 45, 60),
    family: str = "target",
) -> Task:
    pixels = pixels_of(sum(sizes))
    labels = seen_through(backbone, pixels, prompt)
    names = tuple(str(i) for i in range(len(pixels)))
    whole = Images(pixels, labels, names)
    ends = np.cumsum(sizes)
    parts = (np.arange(e - s, e) for s, e in zip(sizes, ends, strict=True))
    train, validation, test = (whole.subset(part) for part in parts)
    classes = tuple(f"class{i}" for i in range(CLASSES))
    return Task("toy", family, classes, train, validation, test, True, (), "digest")


def with_labels(
    task: Task, change: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
) -> Task:
    """Relabel the training, validation and test images."""
    parts = {
        name: replace(part, labels=change(part.labels.copy()))
        for name, part in (
            ("train", task.train),
            ("validation", task.validation),
            ("test", task.test),
        )
    }
    return replace(task, **parts)
