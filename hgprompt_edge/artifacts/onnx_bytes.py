"""What an ONNX file says, read from its own bytes.

A device has no onnx package, and a runtime that does not load a file does not say what is in it.
Only the messages on the way to what is asked for are followed; everything else is skipped by its
length. What is read here must be what the runtime reads: a file that it takes and this reader does
not would be unchecked.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hgprompt_edge.errors import FileError

# Fields that may hold a tensor or a node, by message: field number to the message that it holds.
FOLLOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "property", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
OPERATOR = 4
"""Field of a node with the name of its operator."""
VARINT, LENGTH_DELIMITED, GROUP, GROUP_END = 0, 2, 3, 4
FIXED = {1: 8, 5: 4}
KEY_BITS = 0xFFFFFFFF
"""The runtime's reader cuts a longer key to these."""
MAX_DEPTH = 100
"""The runtime's reader goes no deeper."""


@dataclass(frozen=True)
class OnnxFacts:
    """What is read of a file.

    Attributes
    ----------
    locations
        Names of the other files that hold weights, each once.
    operators
        Names of the operators of all nodes, those of branches and functions included.
    entries
        The metadata; bytes that are not UTF-8 are replaced.
    """

    locations: tuple[str, ...]
    operators: frozenset[str]
    entries: Mapping[str, str]


@dataclass
class _Found:
    locations: dict[str, None] = field(default_factory=dict)
    operators: set[bytes] = field(default_factory=set)
    entries: dict[str, str] = field(default_factory=dict)


def read_facts(path: Path) -> OnnxFacts:
    """Read the facts of a file.

    Raises
    ------
    UserError
        The file is no protobuf, or none to its end.
    """
    found = _Found()
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return OnnxFacts((), frozenset(), {})
        with data:
            try:
                _walk(data, 0, len(data), "model", 0, found)
            except (IndexError, ValueError) as error:
                raise FileError(
                    path, "truncated or not an ONNX file; copy or export it again"
                ) from error
    operators = frozenset(name.decode("utf-8", "replace") for name in found.operators)
    return OnnxFacts(tuple(found.locations), operators, found.entries)


def _walk(data: mmap.mmap, start: int, stop: int, message: str, depth: int, found: _Found) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("messages nest too deep")
    if message in ("entry", "property"):  # a key and a value
        pair = {number: data[a:b] for number, a, b in _fields(data, start, stop)}
        key, value = (pair.get(number, b"").decode("utf-8", "replace") for number in (1, 2))
        if message == "property":
            found.entries[key] = value
        elif key == "location":
            found.locations[value] = None
        return
    follow = FOLLOW[message]
    for number, a, b in _fields(data, start, stop):
        if number in follow:
            _walk(data, a, b, follow[number], depth + 1, found)
        elif message == "node" and number == OPERATOR:
            found.operators.add(data[a:b])


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
