"""Labelled images to judge a model on: which part of a data set, and what lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hgprompt_edge.data.layouts.folder import TEST_SHARE, list_parts
from hgprompt_edge.data.layouts.read import read_data
from hgprompt_edge.data.parts import Entry, check_once, parts_without_test
from hgprompt_edge.errors import ParameterError
from hgprompt_edge.images.listing import LeftOut

TRAIN, VALIDATION, TEST, ALL = "train", "validation", "test", "all"

KEPT_APART = f"the {100 * TEST_SHARE:.0f} % that `hgedge fit` does not train on"


@dataclass(frozen=True)
class Labelled:
    """Labelled images that are not decoded yet.

    Attributes
    ----------
    data
        The folder or file, for messages.
    part
        `train`, `validation`, `test` or `all`.
    entries
        The images of that part.
    parts
        The images of every part of the data by the part's name; `all` where it has no parts.
    note
        What to know about the choice of the part; empty: nothing.
    left_out
        Files that lie there and are not read.
    """

    data: str
    part: str
    entries: Sequence[Entry]
    parts: Mapping[str, Sequence[Entry]]
    note: str = ""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that images of the part have, sorted."""
        return tuple(sorted({entry.label for entry in self.entries}))


@dataclass(frozen=True)
class _Found:
    """What lies there.

    Attributes
    ----------
    parts
        Images by part; all under `ALL` where the data has no parts.
    carved
        What `fit` trains on and what it keeps apart as test part, where the data has none; None
        where it has one, or is too small for that.
    """

    name: str
    parts: dict[str, Sequence[Entry]]
    carved: tuple[Sequence[Entry], Sequence[Entry]] | None
    left_out: tuple[LeftOut, ...]


def find_labelled(data: Path, part: str | None = None, fitted_on: Collection[str] = ()) -> Labelled:
    """List the images to judge a model on; none is decoded.

    Layouts and parts are those of `hgedge fit`. Where the data has no test part, it is what `fit`
    keeps apart as such: 20 % of the training images, stratified and the same in every run.

    Parameters
    ----------
    part
        `train`, `validation`, `test` or `all`. None: the test part; of data without parts all
        images, unless the model was fitted on a task of that name.
    fitted_on
        The tasks that the models were fitted on.

    Raises
    ------
    UserError
        No such data, no such part, or as of the readers.
    """
    found = _find(data)
    check_once((entry for entries in found.parts.values() for entry in entries), str(data))
    chosen, note = (part, "") if part is not None else _choose(found, fitted_on)
    parts = dict(found.parts)
    if found.carved is not None and chosen in (TRAIN, TEST):
        rest, test = found.carved
        parts = {TRAIN: rest, **{key: parts[key] for key in parts if key == VALIDATION}, TEST: test}
        note = note or (KEPT_APART if chosen == TEST else "")
    if chosen == ALL:
        entries = [entry for each in parts.values() for entry in each]
    elif chosen in parts:
        entries = list(parts[chosen])
    else:
        here = ", ".join(parts) if ALL not in parts else "all images in one"
        raise ParameterError(
            "part", chosen, f"{data} has no such part ({here}); name another, or `part='all'`"
        )
    return Labelled(str(data), chosen, entries, parts, note, found.left_out)


def _find(data: Path) -> _Found:
    name, read = read_data(data)
    if read is not None:
        named = {TRAIN: read.train, VALIDATION: read.validation, TEST: read.test}
        parts = {key: entries for key, entries in named.items() if entries}
        if read.official:
            return _Found(name, parts, None, read.left_out)
        del parts[TEST]
        parts[TRAIN] = [*read.train, *read.test]
        return _Found(name, parts, (read.train, read.test), read.left_out)
    listed, left_out = list_parts(data)
    here: dict[str, Sequence[Entry]] = {key or ALL: each for key, each in listed.items()}
    pool = here.get(TRAIN, here.get(ALL, ()))
    counts = Counter(entry.label for entry in pool)
    carved = None
    if TEST not in here and len(counts) > 1 and min(counts.values()) > 1:  # as `fit` demands
        split = parts_without_test(str(data), pool, share=TEST_SHARE)
        carved = split.train, split.test
    return _Found(name, here, carved, left_out)


def _choose(found: _Found, fitted_on: Collection[str]) -> tuple[str, str]:
    """Choose the part, and say why."""
    if TEST in found.parts:
        return TEST, ""
    if found.carved is None:
        held = VALIDATION if VALIDATION in found.parts else ALL
        return held, ""
    if found.name in fitted_on:
        why = "the model was fitted on a task of this name"
        return TEST, f"{why}, so these are {KEPT_APART}; `part='all'` takes all"
    if VALIDATION in found.parts:
        why = "a validation part helps to choose the model"
        return TEST, f"{why}, so these are {KEPT_APART}; `part='validation'` takes that part"
    return ALL, f"if the model was fitted on these, `part='test'` takes {KEPT_APART}"
