"""Read the tensors of a checkpoint that others wrote: a safetensors file or one of `torch.save`.

Which of the two it is, the first bytes say; suffixes are not reliable. Pickles are read by
`torch.load(weights_only=True)`, which runs no code of the file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from hgprompt_edge.errors import ParameterError, UserError, first_line, os_reason

CONTAINERS = ("teacher", "model", "state_dict")
"""Entries under which training code keeps the weights, the first that is there is taken."""

SHOWN_KEYS = 5


@dataclass(frozen=True)
class TensorFile:
    """What a checkpoint file holds.

    Attributes
    ----------
    tensors
        By the names of the file, in its dtypes.
    metadata
        Of a safetensors file; else empty.
    container
        Entry of the file that the tensors were under, as `teacher`; empty: under none.
    beside
        Names of the other entries of that file.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    container: str = ""
    beside: tuple[str, ...] = ()


def read_tensors(path: Path) -> TensorFile:
    """Read all tensors of `path` onto the CPU.

    Raises
    ------
    UserError
        There is no such file, it is a folder, empty, truncated, no checkpoint, an index of several
        files, or asks for objects that safe loading refuses.
    """
    start = _first_bytes(path)
    if start[8:9] == b"{" and start[:1] != b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK", b"\x80")):
        return _read_torch(path)
    raise _bad(path, _no_checkpoint(path, start))


def _bad(path: Path, reason: str) -> UserError:
    return ParameterError("checkpoint", path, f"{reason}")


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        inside = [str(file) for file in files if file.is_file()] or ["the file with the weights"]
        raise _bad(path, f"is a folder; give {inside[0]}")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        reason = os_reason(error)
        raise _bad(path, f"cannot be read ({reason}); check the path") from error
    if not start:
        raise _bad(path, "is empty; copy or download it again")
    return start


def _no_checkpoint(path: Path, start: bytes) -> str:
    if path.name.endswith(".index.json"):
        return (
            "is the index of a checkpoint in several files, which is not read; save the model as "
            "one file (`save_pretrained` with a larger `max_shard_size`)"
        )
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights; fetch the file with `git lfs pull`"
    return (
        "is neither a safetensors file nor one of torch.save, or it is damaged; "
        "copy or download it again"
    )


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise _bad(
            path,
            f"cannot be read as a safetensors file ({first_line(error)}); "
            "copy or download it again",
        ) from error
    if not tensors:
        raise _bad(path, "holds no tensors; save the model again")
    return TensorFile(tensors, metadata)


def _read_torch(path: Path) -> TensorFile:
    # By a stream: of a path torch would look at the suffix, too.
    with warnings.catch_warnings(), path.open("rb") as stream:
        # Remarks on old pickles; what is wrong with one is an exception.
        warnings.simplefilter("ignore")
        try:
            content = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises on damaged bytes has no common base
            raise _bad(path, _why_not_loaded(str(error))) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise _bad(path, f"holds a {kind}, not a dictionary of weights; save `model.state_dict()`")
    return _unwrap(path, {str(key): value for key, value in content.items()})


def _why_not_loaded(error: str) -> str:
    if "TorchScript" in error:
        return "is a TorchScript program; save the weights with `torch.save(model.state_dict())`"
    wanted = re.search(r"(?:GLOBAL |<class ')([\w.]+)", error)
    if wanted is None:
        return "is truncated or not a file of torch.save; copy or download it again"
    return (
        f"holds {wanted[1]}, which safe loading refuses; if you trust the file, load it in Python "
        "and save only its state dict"
    )


def _unwrap(path: Path, content: dict[str, Any]) -> TensorFile:
    """Take the weights out of what training code saved beside them."""
    if any(isinstance(value, Tensor) for value in content.values()):
        odd = [key for key, value in content.items() if not isinstance(value, Tensor)]
        if odd:
            kind = type(content[odd[0]]).__name__
            raise _bad(path, f"'{odd[0]}' is a {kind}, not a tensor; save `model.state_dict()`")
        return TensorFile(content, {})
    for container in CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
            found = _unwrap(path, {str(key): value for key, value in inner.items()})
            beside = tuple(key for key in content if key != container)
            return TensorFile(found.tensors, {}, container, beside)
    keys = shown(list(content)) if content else "nothing"
    raise _bad(
        path,
        f"holds {keys} and no weights under {', '.join(CONTAINERS)}; save `model.state_dict()`",
    )


def shown(keys: list[str]) -> str:
    """Quote the first keys and say how many more there are."""
    names = ", ".join(f"'{key}'" for key in keys[:SHOWN_KEYS])
    return names + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
