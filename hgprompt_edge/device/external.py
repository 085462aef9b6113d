"""Weights that an ONNX file keeps in other files: where they may lie.

Read from the file's own bytes, since a device has no onnx package. Only the messages on the way to
a tensor's `external_data` are followed; everything else is skipped by its length.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from hgprompt_edge.errors import UserError

# Fields that may hold a tensor, by message: field number to the message that it holds.
FOLLOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
LENGTH_DELIMITED = 2
FIXED = {1: 8, 5: 4}
MAX_DEPTH = 64


def check_external_data(path: Path) -> None:
    """Refuse a model whose weights lie outside its folder.

    A file that is no protobuf at all passes: the runtime says what is wrong with it.

    Raises
    ------
    UserError
        An absolute path, one with `..`, or one through a symbolic link.
    """
    for location in external_locations(path):
        parts = PurePosixPath(location.replace("\\", "/")).parts
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        below = path.parent
        linked = False
        if not absolute:
            for part in parts:
                below = below / part
                linked = linked or below.is_symlink()
        if absolute or ".." in parts or linked:
            what = "a symbolic link" if linked else "outside its folder"
            raise UserError(
                f"{path}: wants weights from '{location}', {what}; "
                "take a model whose files lie in one folder"
            )


def external_locations(path: Path) -> list[str]:
    """Names of the other files that hold a model's weights, each once."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return []
        with data:
            try:
                return list(dict.fromkeys(_locations(data, 0, len(data), "model", 0)))
            except (IndexError, ValueError):
                return []


def _locations(data: mmap.mmap, start: int, stop: int, message: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError("messages nest too deep")
    if message == "entry":
        entry = {number: data[a:b] for number, a, b in _fields(data, start, stop)}
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8", "replace")
        return
    follow = FOLLOW[message]
    for number, a, b in _fields(data, start, stop):
        if number in follow:
            yield from _locations(data, a, b, follow[number], depth + 1)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(number, start, stop)` of the length-delimited fields of one message."""
    at = start
    while at < stop:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == LENGTH_DELIMITED:
            size, at = _varint(data, at)
            if at + size > stop:
                raise ValueError("a field runs past its message")
            yield key >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in FIXED:
            at += FIXED[kind]
        else:
            raise ValueError("not a field")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
