"""The lists of VTAB-1k: a folder of images and `train800.txt`, `val200.txt`, `test.txt` beside it.

A line is a path below the folder and the number of the class: `images/train800/000000.jpg 7`.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hgprompt_edge.data.parts import Entry, Parts
from hgprompt_edge.data.vtab import VtabTask
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.preprocess import open_image

TRAIN, VALIDATION, BOTH, TEST = "train800.txt", "val200.txt", "train800val200.txt", "test.txt"
CLASSES = "classes.txt"
MAX_DIGITS = 9
"""A longer number is no class."""


@dataclass(frozen=True)
class Row:
    """A line of a list: where it stands, the path of an image, the number of its class."""

    source: Path
    place: str
    path: str
    label: int


def is_listed(folder: Path) -> bool:
    """Whether `folder` holds a training list, so that `read_lists` is its reader."""
    return any((folder / name).is_file() for name in (TRAIN, BOTH))


def read_lists(folder: Path, task: VtabTask | None) -> Parts:
    """List a folder of images by the lists beside it.

    `train800.txt` trains and `val200.txt` validates as published; where only `train800val200.txt`
    is there, 20 % of it validate. `test.txt` tests; an image that it shares with the training lists
    does not train. Class `k` is line `k` of `classes.txt` where that lies beside the lists, else
    what the benchmark's `task` says, else the number.

    Raises
    ------
    UserError
        No `val200.txt` beside `train800.txt`, or no `test.txt`; a line that is no path and number,
        a path that is not below the folder, a number outside of the classes, an image with two
        classes, a list that names images that are not there.
    """
    lists = [_read(folder, name) for name in (*_training_lists(folder), TEST)]
    classes = _classes(folder, task, lists)
    for rows in lists:
        _check_labels(rows, classes, task)
        _check_images(folder, rows)
    *training, test = _apart(folder, lists)
    parts = [_entries(folder, rows, classes) for rows in training]
    return Parts(
        str(folder),
        parts[0],
        parts[1] if len(parts) > 1 else (),
        _entries(folder, test, classes),
        official=True,
        classes=classes,
    )


def _training_lists(folder: Path) -> tuple[str, ...]:
    published, both = (TRAIN, VALIDATION), (BOTH,)
    here = {name for name in (*published, BOTH, TEST) if (folder / name).is_file()}
    chosen = both if BOTH in here and not here.issuperset(published) else published
    for name in (*chosen, TEST):
        if name not in here:
            raise FileError(
                folder,
                f"no {name} beside the other lists; copy it from the same archive",
            )
    return chosen


def _read(folder: Path, name: str) -> list[Row]:
    """Read the rows of a list; blank lines do not count."""
    path = folder / name
    rows = []
    for number, line in enumerate(_lines(path), 1):
        place = f"line {number}"
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) < 2 or not words[1].isdecimal() or len(words[1]) > MAX_DIGITS:
            raise FileError(
                path,
                f"not a path and the number of a class ({line.strip()[:60]}); write it as "
                "images/000000.jpg 7",
                place,
            )
        image = _below(path, place, words[0].strip())
        rows.append(Row(path, place, image, int(words[1])))
    if not rows:
        raise FileError(path, "is empty; copy it again from its archive")
    return rows


def _below(source: Path, place: str, path: str) -> str:
    """Return `path` in the one spelling by which images are told apart."""
    normal = posixpath.normpath(path)
    if Path(normal).is_absolute() or normal.split("/")[0] == "..":
        raise FileError(
            source,
            f"{path[:60]} is not below the folder of the list; write it as images/000000.jpg 7",
            place,
        )
    return normal


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            path, f"cannot be read as UTF-8 text ({str(error)[:80]}); copy it again"
        ) from error


def _classes(
    folder: Path, task: VtabTask | None, lists: Sequence[Sequence[Row]]
) -> tuple[str, ...]:
    path = folder / CLASSES
    if not path.is_file():
        if task is not None:
            return task.class_names
        rows = [row for rows in lists for row in rows]
        largest = max(rows, key=lambda row: row.label)
        if largest.label >= len(rows):
            raise FileError(
                largest.source,
                f"the class {largest.label} is outside of 0 to {len(rows) - 1}, what so few "
                "images can be of; number the classes from 0 on",
                largest.place,
            )
        return tuple(str(label) for label in range(largest.label + 1))
    lines = [line.strip() for line in _lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:  # left out, it would move every name after it
        raise FileError(
            path,
            "is blank, so that the classes after it may be misnumbered; name a class on each "
            "line, the first line is class 0",
            f"line {lines.index('') + 1}",
        )
    names = tuple(lines)
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise FileError(path, f"names {double} twice; name each class once, in order")
    if task is not None and len(names) != task.classes:
        raise FileError(
            path,
            f"names {len(names):,} classes, and {task.title} has {task.classes:,}; name each "
            "class on a line, or remove the file",
        )
    return names


def _check_labels(rows: Sequence[Row], classes: tuple[str, ...], task: VtabTask | None) -> None:
    for row in rows:
        if row.label >= len(classes):
            whose = f"the classes of {task.title}" if task else f"the classes of {CLASSES}"
            raise FileError(
                row.source,
                f"the class {row.label} is not one of 0 to {len(classes) - 1}, {whose}; correct "
                "the list or name its task with `task`",
                row.place,
            )


def _check_images(folder: Path, rows: Sequence[Row]) -> None:
    absent = [row for row in rows if not (folder / row.path).is_file()]
    if absent:
        source = absent[0].source
        raise FileError(
            source,
            f"names {len(absent):,} image(s) that are not in {folder}, such as {absent[0].path}; "
            "unpack the images there or correct the list",
        )


def _apart(folder: Path, lists: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Take each image into one list, the test list first, and once; warn where that drops rows."""
    *training, test = lists
    shared = {row.path for row in test} & {row.path for rows in training for row in rows}
    if shared:
        warnings.warn(
            f"{folder}: {len(shared):,} image(s) of {TEST} are in the training lists, too, such as "
            f"{min(shared)}; they test and do not train",
            stacklevel=2,
        )
    seen: dict[str, Row] = {}
    kept: list[list[Row]] = []
    repeated = 0
    for rows in (test, *training):
        kept.append([])
        for row in rows:
            first = seen.setdefault(row.path, row)
            if first is row:
                kept[-1].append(row)
                continue
            if first.label != row.label:
                raise FileError(
                    row.source,
                    f"{row.path} has the class {row.label}, and {first.label} in {first.source}, "
                    f"{first.place}; correct one of the two",
                    row.place,
                )
            repeated += row.path not in shared
    if repeated:
        warnings.warn(f"{folder}: {repeated:,} repeated row(s) count once", stacklevel=2)
    return [*kept[1:], kept[0]]


def _entries(folder: Path, rows: Sequence[Row], classes: tuple[str, ...]) -> list[Entry]:
    return [
        Entry(row.path, classes[row.label], partial(open_image, folder / row.path, row.path))
        for row in rows
    ]
