"""Parquet files as Hugging Face writes them: a column of images, a column of labels."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hgprompt_edge.data.layouts.folder import TEST_SHARE
from hgprompt_edge.data.layouts.parquet_columns import Columns, columns_of_all, opened
from hgprompt_edge.data.layouts.part_names import SPLIT_NAMES, USUAL_NAMES
from hgprompt_edge.data.parts import Entry, Parts, parts_without_test
from hgprompt_edge.data.vtab import VtabTask
from hgprompt_edge.errors import FileError, UserError
from hgprompt_edge.images.listing import LeftOut, files_in
from hgprompt_edge.images.preprocess import UnreadableImageError, open_image

SPLITS = (
    SPLIT_NAMES,
    {"train800": "train", "val200": "validation", "test": "test"},
    {"train800val200": "train", "test": "test"},
)
"""Which part a split's name stands for. The benchmark's two ways are for files that have no `train`
of their own: its splits are samples of that."""
SPLIT_WORDS = frozenset(word for names in SPLITS for word in names)


def parquet_files(folder: Path) -> list[Path]:
    """Find the parquet files of a data set: in `folder`, else its `data`, `default` or a split's.

    Other folders in it are other configurations of a data set, which one has to name.
    """
    direct = files_in(folder, ".parquet")
    if direct or not folder.is_dir():
        return direct
    for name in ("data", "default"):
        if found := parquet_files(folder / name):
            return found
    return sorted(
        path
        for part in sorted(folder.iterdir())
        if part.name.lower() in SPLIT_WORDS
        for path in files_in(part, ".parquet")
    )


def read_parquet(
    folder: Path, task: VtabTask | None, origin: str | None = None, *, training: bool = True
) -> Parts:
    """List the images of a folder of parquet files (see `parquet_files`).

    The split is the first word of a file's name (`train-00000-of-00001.parquet`), else that of its
    folder; files of no known split are left out, unless all are: then they train. `train800` and
    `val200`, else `train800val200`, serve where there is no `train`. Without a test part 20 % of
    the training part test. Labels are numbers of the classes that each file's own metadata name
    (else the benchmark's `task`), or the names themselves. Where a task of the benchmark has an
    `Attribute` and the file a column for it, the label is made from that. Without `training` the
    files need not have a training part, if they say which part they are.

    Raises
    ------
    UserError
        pyarrow is not installed; a damaged file; no training part; no column of images or labels,
        or several; a label that is missing or outside of the classes; files of which some name
        their classes and others do not.
    """
    files = parquet_files(folder)
    splits = _splits(folder, files, training)
    order = sorted(splits, key=lambda key: key != "train")
    used = [path for key in order for path in splits[key]]
    columns = columns_of_all(used, task)
    images = _Images(columns[used[0]].image)
    listed = {
        key: [entry for path in paths for entry in _entries(folder, path, columns[path], images)]
        for key, paths in splits.items()
    }
    label = origin or str(folder)
    named = (name for path in splits[order[0]] for name in columns[path].classes)
    classes = tuple(dict.fromkeys(named)) or _numbers(listed)
    _check_known(listed, classes, label)
    left_out = tuple(
        LeftOut(path.relative_to(folder).as_posix(), "a file of no part that is read")
        for path in files
        if path not in columns
    )
    if task is not None:
        _check_count(label, classes or {entry.label for entry in listed[order[0]]}, task)
    train, validation = listed.get("train", []), listed.get("validation", [])
    if "test" in listed or not train:
        test = listed.get("test", [])
        return Parts(label, train, validation, test, True, classes, left_out)
    carved = parts_without_test(label, train, share=TEST_SHARE, classes=classes)
    return replace(carved, validation=validation, left_out=left_out)


def _splits(folder: Path, files: Sequence[Path], training: bool) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for path in files:
        words = (re.split(r"[-_.]", path.name)[0].lower(), path.parent.name.lower())
        word = next((word for word in words if word in SPLIT_WORDS), None)
        if word is not None:
            named.setdefault(word, []).append(path)
    if not named:
        return {"train": list(files)}
    found: list[dict[str, list[Path]]] = []
    for names in SPLITS:
        found.append({})
        # Where two words mean one part, the usual one has it: test before eval.
        for word in sorted(filter(names.get, named), key=lambda word: word not in USUAL_NAMES):
            found[-1].setdefault(names[word], sorted(named[word]))
        if "train" in found[-1]:
            return found[-1]
    if not training:
        return next(splits for splits in found if splits)
    raise FileError(
        folder,
        f"no training part among its parquet files ({files[0].name}); add "
        "train-00000-of-00001.parquet",
    )


class _Images:
    """The images of parquet files, a row group at a time; the last one read is kept."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._held: tuple[Path, int] | None = None
        self._rows: Any = None

    def open(self, path: Path, group: int, row: int, name: str) -> Image.Image:
        if self._held != (path, group):
            try:
                with opened(path) as file:
                    self._rows = file.read_row_group(group, columns=[self.column])[self.column]
            except UserError as error:
                raise UnreadableImageError(name, "its part of the file is damaged") from error
            self._held = (path, group)
        value = self._rows[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise UnreadableImageError(name, "no bytes in the file")
        return open_image(io.BytesIO(data), name)


def _entries(folder: Path, path: Path, columns: Columns, images: _Images) -> Iterator[Entry]:
    shown = path.relative_to(folder).as_posix()
    with opened(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        values = file.read(columns=[columns.label])[columns.label].to_pylist()
    places = ((group, row) for group, size in enumerate(sizes) for row in range(size))
    for index, (value, (group, row)) in enumerate(zip(values, places, strict=True)):
        name = f"{shown}/{index:06d}"
        label = _label(path, index, value, columns)
        yield Entry(name, label, partial(images.open, path, group, row, name))


def _label(path: Path, index: int, value: object, columns: Columns) -> str:
    levels = columns.levels
    if isinstance(value, str) and value and (not levels or value in levels):
        return value
    if isinstance(value, int) and value >= 0 and (not levels or value < len(levels)):
        return levels[value] if levels else str(int(value))
    allowed = f"not one of the classes 0 to {len(levels) - 1}" if levels else "no class"
    raise FileError(
        path,
        f"the {columns.label} {value!r} is {allowed}; correct it or leave the file out",
        f"row {index}",
    )


def _numbers(listed: dict[str, list[Entry]]) -> tuple[str, ...]:
    """Sort classes that are numbers as such: 2 before 10. Empty where they are names."""
    found = {entry.label for entries in listed.values() for entry in entries}
    return tuple(sorted(found, key=int)) if all(map(str.isdecimal, found)) else ()


def _check_known(listed: dict[str, list[Entry]], classes: tuple[str, ...], origin: str) -> None:
    """Refuse a label that no training file names as a class."""
    for part, entries in listed.items():
        unknown = sorted({entry.label for entry in entries} - set(classes)) if classes else []
        if unknown:
            raise FileError(
                origin,
                f"the {part} part holds the class {unknown[0]}, which the training files do not "
                f"name ({', '.join(classes[:5])}); correct the names",
            )


def _check_count(origin: str, classes: Sequence[str] | set[str], task: VtabTask) -> None:
    if len(classes) != task.classes:
        warnings.warn(
            f"{origin}: {len(classes):,} classes, where {task.title} of the benchmark has "
            f"{task.classes:,}; accuracies do not compare",
            stacklevel=3,
        )
