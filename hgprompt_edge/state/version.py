"""One version of what a device mixes, and the sealed row that a history keeps of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Figures = dict[str, float | int | str | None]
Row = tuple[Any, ...]

COLUMNS = (
    "id",
    "parent",
    "time",
    "method",
    "weights",
    "head_weight",
    "head_width",
    "head_bias",
    "images",
    "figures",
    "sha256",
)


@dataclass(frozen=True)
class Version:
    """A mix, perhaps with a head, and where it came from.

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


def seal(version: Version, bank_sha256: str) -> Row:
    """Lay a version out as a row in the order of `COLUMNS`; the last value seals the others."""
    weight = version.head_weight
    values = (
        version.id,
        version.parent,
        version.time,
        version.method,
        _bytes(version.weights),
        _bytes(weight),
        None if weight is None else weight.shape[1],
        _bytes(version.head_bias),
        version.images,
        json.dumps(version.figures, allow_nan=False, default=np.generic.item),
    )
    return (*values, _digest(values, bank_sha256))


def unseal(row: Row, bank_sha256: str) -> Version | None:
    """Read a row, with text as bytes; None where it is not the one that was sealed."""
    *values, seal = row
    if seal != _digest(values, bank_sha256):
        return None
    key, parent, time, method, weights, weight, width, bias, images, figures = values
    head_weight = _floats(weight)
    return Version(
        id=key,
        parent=parent,
        time=time,
        method=method.decode(),
        weights=cast("Floats", _floats(weights)),
        head_weight=None if head_weight is None else head_weight.reshape(-1, width),
        head_bias=_floats(bias),
        images=images,
        figures=json.loads(figures),
    )


def _digest(values: Any, bank_sha256: str) -> bytes:
    digest = hashlib.sha256(bank_sha256.encode())
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        kind = "s" if isinstance(value, bytes | str) else "n"
        digest.update(f"|{kind}{len(data)}|".encode() + data)
    return digest.digest()


def _bytes(array: Floats | None) -> bytes | None:
    return None if array is None else np.ascontiguousarray(array, "<f4").tobytes()


def _floats(data: bytes | None) -> Floats | None:
    return None if data is None else np.frombuffer(data, "<f4").astype(np.float32)


def classes_digest(classes: Sequence[str]) -> str:
    """Digest of the names of classes: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()[:16]
