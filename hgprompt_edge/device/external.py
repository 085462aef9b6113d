"""Weights that an ONNX file keeps in other files: where they may lie.

Read from the file's own bytes, since a device has no onnx package. Only the messages on the way to
a tensor's `external_data` are followed; everything else is skipped by its length. What is said here
must be what the runtime reads: a file that it takes and this reader does not would be unchecked.
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
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
VARINT, LENGTH_DELIMITED, GROUP, GROUP_END = 0, 2, 3, 4
FIXED = {1: 8, 5: 4}
KEY_BITS = 0xFFFFFFFF
"""The runtime's reader cuts a longer key to these."""
MAX_DEPTH = 100
"""The runtime's reader goes no deeper."""


def check_external_data(path: Path) -> None:
    """Refuse a model whose weights lie outside its folder.

    Raises
    ------
    UserError
        No protobuf to its end; or an absolute path, one with `..`, or one through a symbolic link.
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
    """Names of the other files that hold a model's weights, each once.

    Raises
    ------
    UserError
        The file is no protobuf, or none to its end.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return []
        with data:
            try:
                return list(dict.fromkeys(_locations(data, 0, len(data), "model", 0)))
            except (IndexError, ValueError) as error:
                raise UserError(
                    f"{path}: truncated or not an ONNX file; copy or export it again"
                ) from error


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
    """Yield `(number, start, stop)` of the length-delimited fields of one message.

    Fields in groups, which ONNX has none of, are skipped, as the runtime skips them.
    """
    groups: list[int] = []
    at = start
    while at < stop:
        key, at = _varint(data, at)
        number, kind = (key & KEY_BITS) >> 3, key & 7
        begin = at
        if kind == LENGTH_DELIMITED:
            size, begin = _varint(data, at)
            at = begin + size
        elif kind == VARINT:
            _, at = _varint(data, at)
        elif kind in FIXED:
            at += FIXED[kind]
        elif kind == GROUP:
            groups.append(number)
        elif kind != GROUP_END or not groups or groups.pop() != number:
            raise ValueError("not a field")
        if at > stop:
            raise ValueError("a field runs past its message")
        if kind == LENGTH_DELIMITED and not groups:
            yield number, begin, at
    if groups:
        raise ValueError("a group without an end")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
