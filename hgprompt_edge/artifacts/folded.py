"""Several folded prompts in one bundle, whose probabilities are averaged, and their tensors.

`N` prompts of a bank, `L` layers, `T` tokens, width `D`, `K` classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.maths.head import HEAD_TENSORS, Head, read_head

MAX_FOLDED = 3
"""Folded prompts that a bundle holds at most: each costs a pass."""
PARTS = ("weights", *HEAD_TENSORS)
Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class FoldedPrompt:
    """A folded prompt with its own head.

    Attributes
    ----------
    prompt
        `[L, T, D]` float32, or None for the frozen backbone alone. `T` may differ between the
        folded prompts of a bundle.
    weights
        `[N]` or `[N, L]` float32 over the bundle's sources, all zero without a prompt.
    head
        `[K, D]` (for `both` `[K, 2 D]`) float32, calibrated on its own.
    method
        The row of the table that it is, or the name of its source.
    """

    prompt: Floats | None
    weights: Floats
    head: Head
    method: str


def pack_more(more: Sequence[FoldedPrompt]) -> dict[str, npt.NDArray[np.generic]]:
    """Tensors of a bundle's further folded prompts, under their names in its file."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for index, folded in enumerate(more):
        tensors |= folded.head.tensors(f"more.{index}.")
        tensors[f"more.{index}.weights"] = folded.weights.astype(np.float32)
        if folded.prompt is not None:
            tensors[f"more.{index}.prompt"] = folded.prompt.astype(np.float32)
    return tensors


def read_more(tensors: Arrays, metadata: Mapping[str, str]) -> tuple[FoldedPrompt, ...]:
    """Read and check the further folded prompts of a bundle's file.

    Raises
    ------
    ValueError
        They do not fit the first one, or a part is missing or left over.
    LookupError
        A part is missing.
    """
    methods, floats = json.loads(metadata.get("more", "[]")), cast("Mapping[str, Floats]", tensors)
    if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
        raise ValueError("'more' is no list of names")
    if len(methods) >= MAX_FOLDED:
        raise ValueError(f"{1 + len(methods)} folded prompts, and {MAX_FOLDED} is the most")
    if methods and (metadata["mode"] == "shallow" or {"conditions", "initial"} & set(tensors)):
        raise ValueError("several folded prompts with shallow tokens, conditions or an initial mix")
    names = [f"more.{index}" for index in range(len(methods))]
    known = {f"{name}.{part}" for name in names for part in (*PARTS, "prompt")}
    for name in set(tensors) - known:
        if name.startswith("more."):
            raise ValueError(f"'{name}' is of no folded prompt")
    for name in names:
        _check(name, floats)
    return tuple(
        FoldedPrompt(
            floats.get(f"{name}.prompt"),
            floats[f"{name}.weights"],
            read_head(tensors, f"{name}."),
            method,
        )
        for name, method in zip(names, methods, strict=True)
    )


def _check(name: str, tensors: Mapping[str, Floats]) -> None:
    """Refuse a folded prompt that is not as the first one: same layers, width, sources, classes."""
    found = {part: tensors[f"{name}.{part}"] for part in PARTS}
    layers = tensors["sources"].shape[1:2] if "sources" in tensors else None
    if (prompt := tensors.get(f"{name}.prompt")) is not None:
        found["prompt"] = prompt
        layers = layers or prompt.shape[:1]
    width = tensors["head.weight"].shape[-1]
    for part, array in found.items():
        if part == "prompt":
            like = tensors.get("prompt")
            fits = array.ndim == 3 and width in (array.shape[2], 2 * array.shape[2])
            fits = fits and (like is None or like.shape[::2] == array.shape[::2])
        elif part == "weights":
            fits = array.shape[:1] == tensors[part].shape[:1]
            fits = fits and (array.ndim == 1 or array.shape[1:] == (layers or array.shape[1:]))
        else:
            fits = array.shape == tensors[part].shape
        if array.dtype != np.float32 or not fits:
            raise ValueError(f"'{name}.{part}' is {array.dtype} {list(array.shape)}")
