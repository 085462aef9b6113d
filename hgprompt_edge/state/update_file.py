"""What a device sends home: one version of its mix in a small JSON file, and nothing of its images.

Read where files may come from anyone, so everything is checked before it is used.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hgprompt_edge.errors import FileError, brief, os_reason
from hgprompt_edge.files import check_format, write_bytes
from hgprompt_edge.images.preprocess import CROP
from hgprompt_edge.state.version import Figures, Floats, Version, classes_digest

FORMAT = "hgprompt.version/1"
LIMIT = 1000
"""Bytes of an update, at most."""
TOLERANCE = 1e-3
"""How far the weights of a mix may be from summing to 1."""


@dataclass(frozen=True)
class Update:
    """A version as it came home.

    Attributes
    ----------
    bank_sha256
        Of the bank that the weights are over.
    classes_sha256
        16 digits that tell the task's classes from others.
    version, time, method, images, figures
        As in `Version`; figures that are no numbers stay on the device.
    weights
        `[M]` float32, none below 0, summing to 1.
    head_bias
        `[K]` float32 where the device has its own and it fitted in; a head's weight never does.
    names
        Of the entries of the bank, `M` of them, or none where they did not fit in.
    product
        Version of hgprompt-edge on the device.
    device
        The number of its history, 16 random hexadecimal digits; empty: it has none yet.
    resize
        How its model makes pictures square, a `crop_mode`.
    """

    bank_sha256: str
    classes_sha256: str
    version: int
    time: float
    method: str
    images: int
    figures: Figures
    weights: Floats
    head_bias: Floats | None
    names: tuple[str, ...]
    product: str
    device: str = ""
    resize: str = CROP


class _File(BaseModel):
    """The JSON document; arrays are little-endian float32 in base64."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: str
    bank_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    classes_sha256: str = Field(pattern="^[0-9a-f]{16}$")
    version: int = Field(ge=1)
    time: float = Field(ge=0)
    method: str = Field(max_length=24)
    images: int = Field(ge=0, le=10**9)
    weights: str
    product: str = Field(max_length=40)
    device: str = Field(pattern="^([0-9a-f]{16})?$")
    resize: str = Field(max_length=24)
    figures: dict[str, float | int | None] = {}
    head_bias: str | None = None
    names: tuple[str, ...] = ()

    @field_validator("weights", "head_bias")
    @classmethod
    def _finite(cls, text: str | None) -> str | None:
        if text is not None and not np.isfinite(_unpack(text)).all():
            raise ValueError("holds NaN or inf")
        return text

    @field_validator("weights")
    @classmethod
    def _mix(cls, text: str) -> str:
        weights = _unpack(text).astype(np.float64)
        if not len(weights) or weights.min() < 0 or abs(weights.sum() - 1) > TOLERANCE:
            raise ValueError("must not be below 0 and sum to 1")
        return text


def write_update(
    path: Path,
    version: Version,
    bank_sha256: str,
    names: Sequence[str] = (),
    *,
    classes: Sequence[str],
    device: str = "",
    resize: str = CROP,
) -> int:
    """Write a version for the server and return the number of bytes, `LIMIT` at most.

    The mix and its counts always go; then, as long as there is room, the figures, the head's bias
    and the names of the bank's entries. A head's weight never does: it is a hundred times as large.

    Raises
    ------
    UserError
        The bank has more entries than fit in, or the file cannot be written.
    ValueError
        The weights are no mix.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "bank_sha256": bank_sha256,
        "classes_sha256": classes_digest(classes),
        "version": version.id,
        "time": round(version.time, 3),
        "method": version.method,
        "images": version.images,
        "weights": _pack(version.weights),
        "product": installed_version("hgprompt-edge"),
        "device": device,
        "resize": resize,
    }
    if len(_encode(document)) > LIMIT:
        raise FileError(
            path,
            f"a mix of {len(version.weights)} entries does not fit into {LIMIT:,} bytes; use a "
            "bank of fewer source prompts",
        )
    for extra in _extras(version, names):
        more = {**document, **extra}
        if "figures" in extra:
            more["figures"] = {**document.get("figures", {}), **extra["figures"]}
        if len(_encode(more)) <= LIMIT:
            document = more
    _File.model_validate(document)
    write_bytes(path, _encode(document))
    return len(_encode(document))


def read_update(path: Path) -> Update:
    """Read and check what a device sent.

    Raises
    ------
    UserError
        Missing, too large, not an update, of a newer format, or numbers that are no mix.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        reason = os_reason(error)
        raise FileError(path, f"cannot be read ({reason}); check the path") from error
    if len(data) > LIMIT:
        raise FileError(
            path,
            f"larger than {LIMIT:,} bytes, so `hgedge state send` did not write it; leave it out",
        )
    _check_format(path, data)
    try:
        content = _File.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise FileError(
            path,
            f"'{brief(where)}' is missing or malformed ({brief(first['msg'].lower())}); send it "
            "again from the device",
        ) from error
    fields = content.model_dump(exclude={"format", "weights", "head_bias"})
    bias = content.head_bias
    return Update(
        **fields,
        weights=_unpack(content.weights),
        head_bias=None if bias is None else _unpack(bias),
    )


def _check_format(path: Path, data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileError(
            path, "truncated or not JSON; send it again with `hgedge state send`"
        ) from error
    found = document.get("format") if isinstance(document, dict) else None
    name = found if isinstance(found, str) else ""
    check_format(path, name, FORMAT, "not what `hgedge state send` writes; leave it out")


def _extras(version: Version, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what goes in as well while there is room, the most useful first."""
    for name, value in version.figures.items():
        number = value.item() if isinstance(value, np.generic) else value
        if isinstance(number, int | float):
            yield {"figures": {name: number}}
    if version.head_bias is not None:
        yield {"head_bias": _pack(version.head_bias)}
    if names:
        yield {"names": list(names)}


def _encode(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _pack(array: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _unpack(text: str) -> Floats:
    try:
        raw = base64.b64decode(text, validate=True)
        return cast("Floats", np.frombuffer(raw, "<f4").astype(np.float32))
    except (binascii.Error, ValueError) as error:
        raise ValueError("not float32 in base64") from error
