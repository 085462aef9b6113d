"""Which of a model's classes the classes of a data set are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from hgprompt_edge.errors import UserError

SHOWN = 5
"""So many names stand in a message."""


def parse_map(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read `--map CLASS=MODEL_CLASS`, which may be given several times.

    Where a name holds an equals sign, the split is the one whose left side is a class of the data.

    Raises
    ------
    UserError
        No equals sign; no such class in the data; a class mapped twice.
    """
    found: dict[str, str] = {}
    for word in words:
        splits = [(word[:i], word[i + 1 :]) for i, letter in enumerate(word) if letter == "="]
        if not splits:
            raise UserError(f"--map {word}: has no equals sign; write --map CLASS=MODEL_CLASS")
        left, right = next((split for split in splits if split[0] in names), splits[0])
        if left not in names:
            raise UserError(
                f"--map {word}: the data has no class {left} ({some(names)}); write the class of "
                "the data, an equals sign and the model's class"
            )
        if found.get(left, right) != right:
            raise UserError(f"--map {word}: {left} is mapped to {found[left]} already; map it once")
        found[left] = right
    return found


def match_classes(
    names: Sequence[str],
    classes: Sequence[str],
    mapping: Mapping[str, str],
    *,
    data: str,
    model: str,
    named: bool = True,
) -> dict[str, int]:
    """Return the place in the model's `classes` of each class of the data, by name.

    Parameters
    ----------
    mapping
        Other names of classes of the data: those of the model.
    data, model
        What both are called in messages.
    named
        The model says what its classes are called. Else each class has to be mapped: that a folder
        is called 3 does not say that class number 3 is meant.

    Raises
    ------
    UserError
        A class that is not one of the model; the message has the differences of both lists.
    """
    for name, target in mapping.items():
        if target not in classes:
            raise UserError(
                f"--map {name}={target}: {model} has no class {target} ({some(classes)}); name one "
                "that it has"
            )
    if not named and (lacking := [name for name in names if name not in mapping]):
        raise UserError(
            f"{model}: has no names of classes, only the numbers 0 to {len(classes) - 1}; say "
            f"which of them is meant by {some(lacking)} of {data}, each with --map CLASS=NUMBER"
        )
    unknown = [name for name in names if mapping.get(name, name) not in classes]
    if unknown:
        raise UserError(_differences(names, classes, mapping, unknown, data=data, model=model))
    return {name: classes.index(mapping.get(name, name)) for name in names}


def some(names: Sequence[str]) -> str:
    """Join names, the first few and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... {len(names):,} in all"


def _differences(
    names: Sequence[str],
    classes: Sequence[str],
    mapping: Mapping[str, str],
    unknown: Sequence[str],
    *,
    data: str,
    model: str,
) -> str:
    here = {mapping.get(name, name) for name in names}
    missing = [name for name in classes if name not in here]
    lower = {name.casefold(): name for name in missing or classes}
    near = get_close_matches(unknown[0].casefold(), lower, n=1)
    target = lower[near[0]] if near else "MODEL_CLASS"
    without = f"; of the model's classes the data has no {some(missing)}" if missing else ""
    return (
        f"{data}: {model} has no class {some(unknown)}{without}; rename the classes of the data, "
        f"or map each with --map {unknown[0]}={target}"
    )
