"""A source prompt and its file.

A prompt file is a safetensors file: tensor `prompt [L, T, D]` float32, optionally `head.weight
[K, D]` and `head.bias [K]`, and flat string metadata (`format`, `backbone`, ...).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import (
    DAMAGE,
    check_format,
    read_safetensors,
    sha256_file,
    write_safetensors,
)
from hgprompt_edge.maths.head import HEAD_TENSORS, Head, read_head
from hgprompt_edge.paths import check_storable

FORMAT = "hgprompt.prompt/1"
SOURCE, START = "source", "start"
"""Roles of a prompt in its bank."""

DEEP, SHALLOW = "deep", "shallow"
Floats = npt.NDArray[np.float32]
MAX_TOKEN = float(np.finfo(np.float16).max)
"""A bundle keeps its sources in float16."""
Triple = tuple[float, float, float]


class Normalization(NamedTuple):
    """What is subtracted from pixels in [0, 1] and what they are divided by, per channel."""

    mean: Triple
    std: Triple

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.3g}" for value in triple) for triple in self)
        return f"mean {mean}, std {std}"


@dataclass(frozen=True)
class Prompt:
    """One source prompt and what is known about it.

    Attributes
    ----------
    tokens
        `[L, T, D]` float32; `L` is the backbone's depth (deep) or 1 (shallow).
    backbone, backbone_sha256
        name of the backbone, and the fingerprint of the weights that the prompt was trained on.
    init_seed
        Seed of the initialisation, None where nobody knows it. Only tokens that started alike
        correspond token by token.
    test_accuracy, test_accuracy_unprompted
        On the source's own test part with the same closed-form head, in [0, 1].
    recipe
        How it was trained, for people.
    normalization
        Of the pixels that it was trained on; None: the backbone's own.
    role
        `source`, or `start`: what the sources of its `init_seed` were before training.
    sha256
        Of the file it was read from, else empty.
    """

    tokens: Floats
    name: str
    backbone: str
    backbone_sha256: str
    image_size: int
    mode: str = DEEP
    init_seed: int | None = 0
    task: str = ""
    family: str = ""
    classes: tuple[str, ...] = ()
    test_accuracy: float | None = None
    test_accuracy_unprompted: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    head: Head | None = None
    normalization: Normalization | None = None
    role: str = SOURCE
    sha256: str = ""


def read_prompt(path: Path) -> Prompt:
    """Read and check one prompt file.

    Raises
    ------
    UserError
        Damaged file, other format or version, wrong shape or dtype, NaN or inf.
    """
    check_storable(path.stem, f"{path.parent}: the prompt")
    tensors, metadata = read_safetensors(path)
    version = metadata.get("format", "")
    check_format(
        path,
        version,
        FORMAT,
        f"not a prompt file of hgedge (format '{brief(version or 'missing')}'); import files of "
        "other programs with `hgedge prompt import`",
    )
    _check_tensors(path, tensors)
    try:
        prompt = _from_metadata(path, tensors, metadata)
    except DAMAGE as error:
        raise FileError(
            path, f"metadata is missing or malformed ({brief(error)}); copy or train it again"
        ) from error
    if (prompt.mode == SHALLOW) != (len(prompt.tokens) == 1):
        raise FileError(
            path,
            f"mode '{prompt.mode}' does not fit prompts for {len(prompt.tokens)} layer(s); train "
            "the prompt again",
        )
    return prompt


def write_prompt(path: Path, prompt: Prompt) -> None:
    """Write one prompt file, whole or not at all."""
    tensors: dict[str, npt.NDArray[np.generic]] = {"prompt": prompt.tokens.astype(np.float32)}
    if prompt.head is not None:
        tensors |= prompt.head.tensors()
    metadata = {
        "format": FORMAT,
        "backbone": prompt.backbone,
        "backbone_sha256": prompt.backbone_sha256,
        "image_size": str(prompt.image_size),
        "mode": prompt.mode,
        "init_seed": json.dumps(prompt.init_seed),
        "task": prompt.task,
        "family": prompt.family,
        "classes": json.dumps(prompt.classes),
        "test_accuracy": json.dumps(prompt.test_accuracy),
        "test_accuracy_unprompted": json.dumps(prompt.test_accuracy_unprompted),
        "recipe": json.dumps(prompt.recipe, sort_keys=True),
    }
    if prompt.role != SOURCE:
        metadata["role"] = prompt.role
    if prompt.normalization is not None:
        metadata["normalization"] = json.dumps(prompt.normalization._asdict())
    write_safetensors(path, tensors, metadata)


def _check_tensors(path: Path, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
    if "prompt" not in tensors:
        raise FileError(
            path,
            "has no tensor named 'prompt'; import files of other programs with `hgedge prompt "
            "import`",
        )
    unknown = sorted(set(tensors) - {"prompt", *HEAD_TENSORS})
    if unknown:
        raise FileError(
            path, f"unknown tensor '{brief(unknown[0])}'; a prompt file holds one prompt"
        )
    if tensors["prompt"].ndim != 3 or 0 in tensors["prompt"].shape:
        shape = list(tensors["prompt"].shape)
        raise FileError(
            path,
            f"'prompt' must have the shape [layers, tokens, width], not {shape}; train or import "
            "it again",
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise FileError(
                path, f"'{name}' must be float32, got {tensor.dtype}; save it in float32"
            )
        if not np.isfinite(tensor).all():
            raise FileError(path, f"'{name}' holds NaN or inf; train the prompt again")
    largest = float(np.abs(tensors["prompt"]).max())
    if largest > MAX_TOKEN:
        raise FileError(
            path,
            f"'prompt' holds a value of {largest:.1e}, beyond the {MAX_TOKEN:,.0f} of float16, in "
            "which bundles keep it; train the prompt again",
        )


def _from_metadata(
    path: Path, tensors: dict[str, npt.NDArray[np.generic]], metadata: dict[str, str]
) -> Prompt:
    mode = metadata["mode"]
    if mode not in (DEEP, SHALLOW):
        raise ValueError(f"mode is '{mode}'")
    return Prompt(
        tokens=cast("Floats", tensors["prompt"]),
        name=path.stem,
        backbone=metadata["backbone"],
        backbone_sha256=metadata["backbone_sha256"],
        image_size=int(metadata["image_size"]),
        mode=mode,
        init_seed=None if metadata["init_seed"] == "null" else int(metadata["init_seed"]),
        task=metadata.get("task", ""),
        family=metadata.get("family", ""),
        classes=tuple(json.loads(metadata.get("classes", "[]"))),
        test_accuracy=json.loads(metadata.get("test_accuracy", "null")),
        test_accuracy_unprompted=json.loads(metadata.get("test_accuracy_unprompted", "null")),
        recipe=json.loads(metadata.get("recipe", "{}")),
        head=read_head(tensors) if tensors.keys() & HEAD_TENSORS else None,
        normalization=_normalization(metadata.get("normalization", "null")),
        role=_role(metadata.get("role", SOURCE)),
        sha256=sha256_file(path),
    )


def _role(text: str) -> str:
    if text not in (SOURCE, START):
        raise ValueError(f"role is '{text}'")
    return text


def _normalization(text: str) -> Normalization | None:
    fields = json.loads(text)
    if fields is None:
        return None
    mean, std = ([float(value) for value in fields[name]] for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(f"normalization is {text}")
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
