"""Which of a model's classes the classes of a data set are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from hgprompt_edge.errors import FileError, ParameterError, argument, some


def parse_map(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read words like `CLASS=MODEL_CLASS`: what the model calls a class of the data.

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
            raise ParameterError(
                "mapping", word, "no equals sign; write `mapping='CLASS=MODEL_CLASS'`"
            )
        left, right = next((split for split in splits if split[0] in names), splits[0])
        if left not in names:
            raise ParameterError(
                "mapping",
                word,
                f"the data has no class '{left}' ({_quoted(names)}); write "
                "`mapping='CLASS=MODEL_CLASS'`",
            )
        if found.get(left, right) != right:
            raise ParameterError(
                "mapping", word, f"{left} is mapped to {found[left]} already; map it once"
            )
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
            raise ParameterError(
                "mapping",
                f"{name}={target}",
                f"{model} has no class '{target}' ({_quoted(classes)}); name one that it has",
            )
    if not named and (lacking := [name for name in names if name not in mapping]):
        raise FileError(
            model,
            f"its classes have no names, only the numbers 0 to {len(classes) - 1}; map each class "
            f"of {data} ({_quoted(lacking)}) with `mapping='CLASS=NUMBER'`",
        )
    unknown = [name for name in names if mapping.get(name, name) not in classes]
    if unknown:
        raise FileError(data, _differences(names, classes, mapping, unknown, model))
    return {name: classes.index(mapping.get(name, name)) for name in names}


def _quoted(names: Sequence[str]) -> str:
    return some([f"'{name}'" for name in names])


def _differences(
    names: Sequence[str],
    classes: Sequence[str],
    mapping: Mapping[str, str],
    unknown: Sequence[str],
    model: str,
) -> str:
    here = {mapping.get(name, name) for name in names}
    missing = [name for name in classes if name not in here]
    lower = {name.casefold(): name for name in missing or classes}
    near = get_close_matches(unknown[0].casefold(), lower, n=1)
    target = lower[near[0]] if near else "MODEL_CLASS"
    without = f"; of the model's classes the data has no {_quoted(missing)}" if missing else ""
    return (
        f"{model} has no class {_quoted(unknown)}{without}; rename the classes of the data, or "
        f"map each with {argument('mapping', f'{unknown[0]}={target}')}"
    )
