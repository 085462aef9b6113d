"""A task of a device folder, `NAME.hgtask`: what one backbone needs to serve it, and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import cast

import numpy as np

from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, parse_metadata
from hgprompt_edge.artifacts.tasks.device_files import SUFFIX, BackboneFacts, gives
from hgprompt_edge.artifacts.tasks.task_bank import TaskBank, read_task_bank
from hgprompt_edge.artifacts.tasks.task_tensors import (
    BIAS,
    HEAD,
    KEYS,
    MASK,
    NAMES,
    VALUES,
    TaskTensors,
)
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import (
    DAMAGE,
    Array,
    check_format,
    read_safetensors,
    sha256_arrays,
    write_safetensors,
)
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.maths.reference_file import read_reference
from hgprompt_edge.paths import why_not

FORMAT = "hgprompt.task/1"
CONTENT = f"{PREFIX}content_sha256"


@dataclass(frozen=True)
class TaskFile:
    """A task as its file holds it.

    Attributes
    ----------
    tensors
        What the backbone's graph takes beside the image.
    metadata
        Classes, preprocessing, origin, and probe images with the logarithm of the probabilities
        that PyTorch gives.
    reference
        What its own images look like, or None.
    entries
        The metadata as they stand in the file.
    bank
        What it needs to be adapted; None: it was not exported for that.
    """

    tensors: TaskTensors
    metadata: Metadata
    reference: Reference | None
    entries: Mapping[str, str]
    bank: TaskBank | None = None

    @property
    def name(self) -> str:
        """Name of the task, which is that of its file, too."""
        return self.metadata.task


def write_task(
    path: Path,
    tensors: TaskTensors,
    entries: Mapping[str, str],
    reference: Reference | None = None,
    more: Mapping[str, Array] | None = None,
) -> None:
    """Write a task, whole or not at all; `entries` are those of `describe` with their format.

    Of one that can be adapted, `more` and some of the entries are of `pack_task_bank`.
    """
    arrays: dict[str, Array] = {**tensors.inputs(), **(more or {})}
    if reference is not None:
        arrays |= reference.tensors()
    write_safetensors(path, arrays, {**entries, CONTENT: _digest(arrays, entries)})


def read_task(path: Path) -> TaskFile:
    """Read and check a task that may come from anywhere.

    Raises
    ------
    UserError
        Missing, damaged, another format, or shapes, dtypes or numbers that cannot be a task's.
    """
    if not path.is_file():
        raise FileError(path, f"{why_not(path, 'task file')}; make it with `hgedge export`")
    arrays, found = read_safetensors(path)
    form = found.get(f"{PREFIX}format", "missing")
    otherwise = f"not a task of a device folder (format '{brief(form)}'); name a file NAME{SUFFIX}"
    check_format(path, form, FORMAT, otherwise)
    entries = {key: text for key, text in found.items() if key != CONTENT}
    if found.get(CONTENT) != _digest(arrays, entries):
        raise FileError(path, "changed or damaged since its export; copy or export it again")
    metadata = parse_metadata(path, entries, FORMAT)
    try:
        tensors, reference = _parse(arrays, len(metadata.classes))
        wide = metadata.pooling == "both"
        width = tensors.keys.shape[3] * (2 if wide else 1)
        bank = read_task_bank(arrays, found, tensors, width)
    except DAMAGE as error:
        raise FileError(
            path,
            f"damaged task ({brief(error)}); copy or export it again",
        ) from error
    if metadata.task != path.stem:
        raise FileError(
            path,
            f"holds the task {brief(metadata.task)}; name the file {brief(metadata.task)}{SUFFIX}",
        )
    return TaskFile(tensors, metadata, reference, found, bank)


def misfit(task: TaskFile, facts: BackboneFacts, width: int) -> str:
    """Say why a task cannot run on a backbone whose features have this width; empty: it can."""
    own = task.metadata
    if own.backbone_sha256 != facts.backbone_sha256:
        return (
            f"it was made for {own.backbone} ({own.backbone_sha256[:12]}), not for "
            f"{facts.backbone} ({facts.backbone_sha256[:12]})"
        )
    if own.preprocessing != facts.preprocessing:
        return f"it takes images as {_rule(own.preprocessing)}, not as {_rule(facts.preprocessing)}"
    if facts.pooling not in gives(own.pooling):
        return f"its head takes the features '{own.pooling}', not '{facts.pooling}'"
    if (found := task.tensors.head_weight.shape[1]) != width:
        return f"its head takes {found} features, not {width}"
    return ""


def _rule(preprocessing: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(preprocessing).items())


def _digest(arrays: Mapping[str, Array], entries: Mapping[str, str]) -> str:
    text = json.dumps(dict(sorted(entries.items())))
    return sha256(f"{text}{sha256_arrays(arrays)}".encode()).hexdigest()


def _parse(arrays: Mapping[str, Array], classes: int) -> tuple[TaskTensors, Reference | None]:
    for name in NAMES:
        if arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"'{name}' must be finite and float32")
    given = [cast("np.ndarray[tuple[int, ...], np.dtype[np.float32]]", arrays[n]) for n in NAMES]
    tensors = TaskTensors(*given)
    layers, prompts, tokens, width = tensors.keys.shape
    features = tensors.head_weight.shape[1]
    shapes = {
        KEYS: (layers, prompts, tokens, width),
        VALUES: (layers, prompts, tokens, width),
        MASK: (prompts, tokens),
        HEAD: (prompts, features, classes),
        BIAS: (prompts, classes),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape or 0 in shape:
            raise ValueError(f"'{name}' is {list(arrays[name].shape)}, not {list(shape)}")
    return tensors, read_reference(arrays, classes, features)
