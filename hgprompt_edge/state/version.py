"""One version of what a device has learned, and the sealed row that a history keeps of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

Floats = npt.NDArray[np.float32]
Figures = dict[str, float | int | str | None]
ARRAYS = ("weights", "head_weight", "head_bias")
FACTS = ("parent", "time", "method", "images", "figures")


@dataclass(frozen=True)
class Version:
    """Mixing weights, perhaps with a head, and where they came from.

    Attributes
    ----------
    id
        Counts from 1, the initial one.
    parent
        The version that it was learned from; of a `rollback` the one whose content it has.
    time
        Unix seconds, never before an earlier version's.
    method
        `initial`, `reset`, `rollback`, or how it was learned.
    weights
        `[M]` float32 over the entries of the bank.
    head_weight, head_bias
        `[K, D]`, `[K]` float32; None: the model's own.
    images
        How many images it was learned from.
    figures
        What was measured before and after.
    """

    id: int
    parent: int | None
    time: float
    method: str
    weights: Floats
    head_weight: Floats | None
    head_bias: Floats | None
    images: int
    figures: Figures


def to_row(version: Version, bank_sha256: str) -> tuple[int, bytes, bytes, bytes]:
    """Lay a version out as a row: number, JSON, safetensors, and a digest that seals the others."""
    facts = {name: getattr(version, name) for name in FACTS}
    text = json.dumps(facts, allow_nan=False, default=np.generic.item).encode()
    arrays = {name: getattr(version, name) for name in ARRAYS}
    data = save({name: array for name, array in arrays.items() if array is not None})
    return version.id, text, data, _digest(bank_sha256, version.id, text, data)


def from_row(row: Sequence[Any], bank_sha256: str) -> Version | None:
    """Read a row; None where it is not as it was sealed."""
    key, text, data, seal = row
    if not isinstance(text, bytes) or not isinstance(data, bytes):
        return None
    if seal != _digest(bank_sha256, key, text, data):
        return None
    fields: dict[str, Any] = {**dict.fromkeys(ARRAYS), **load(data), **json.loads(text)}
    return Version(id=key, **fields)


def classes_digest(classes: Sequence[str]) -> str:
    """Digest of the names of classes: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()[:16]


def _digest(bank_sha256: str, key: int, text: bytes, data: bytes) -> bytes:
    return hashlib.sha256(f"{bank_sha256} {key} {len(text)} ".encode() + text + data).digest()
