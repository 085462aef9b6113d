"""Which columns of a parquet file hold the images, the labels and the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgprompt_edge.data.vtab import VtabTask
from hgprompt_edge.errors import FileError, MissingPackageError, first_line

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
"""What the columns are called, likeliest first; another name serves where it is the only one."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, in one file.

    Attributes
    ----------
    levels
        The class of each value 0, 1, ... of the label column; empty: any value is a class.
    classes
        All classes in their order; empty where `levels` is.
    text
        Whether the labels are names, not numbers.
    """

    image: str
    label: str
    levels: tuple[str, ...]
    classes: tuple[str, ...]
    text: bool = False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a parquet file (`pyarrow.parquet.ParquetFile`); say in one sentence why not."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackageError(str(path), "pyarrow", "server") from error
    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise FileError(
            path,
            f"not a readable parquet file ({first_line(error, 100)}); copy or download it again",
        ) from error


def columns_of_all(files: Sequence[Path], task: VtabTask | None) -> dict[Path, Columns]:
    """Read which columns hold what in each file: numbers mean what the file itself says.

    All have the columns of the first one.
    """
    first = _columns(files[0], task)
    found = {files[0]: first}
    for path in files[1:]:
        with opened(path) as file:
            absent = {first.image, first.label} - set(file.schema_arrow.names)
        if absent:
            raise FileError(
                path,
                f"no column {min(absent)}, which other files of the data set have; copy or "
                "download it again",
            )
        found[path] = mine = _columns(path, task, (first.image, first.label))
        if not mine.text and not first.text and bool(mine.levels) != bool(first.levels):
            lacks, has = (path, files[0]) if first.levels else (files[0], path)
            raise FileError(
                lacks,
                f"does not say which classes the numbers in {first.label} mean, and {has.name} "
                "does; write all files with the names of the classes",
            )
    return found


def _columns(path: Path, task: VtabTask | None, known: tuple[str, str] | None = None) -> Columns:
    """Choose the columns of images and labels, unless they are `known`, and read the classes."""
    with opened(path) as file:
        schema = file.schema_arrow
    features = _features(schema.metadata or {})
    if known is None:
        holders = [name for name in schema.names if _holds_images(schema.field(name).type)]
        image = _choose(path, "image", holders, IMAGE_COLUMNS, schema.names)
    else:
        image = known[0]
    if task is not None and task.attribute is not None and task.attribute.column in schema.names:
        # Neighbouring values are grouped, as the benchmark groups them.
        values, classes = task.attribute.values, task.class_names
        levels = tuple(classes[value * len(classes) // values] for value in range(values))
        return Columns(image, task.attribute.column, levels, classes)
    if known is None:
        rest = [name for name in schema.names if name != image]
        labelled = [name for name in rest if name in LABEL_COLUMNS]
        labelled = labelled or [name for name in rest if "names" in features.get(name, {})]
        label = _choose(path, "label", labelled, LABEL_COLUMNS, schema.names)
    else:
        label = known[1]
    names = tuple(map(str, features.get(label, {}).get("names", ())))
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise FileError(path, f"names the class {double} twice; name each class once")
    text = _is_text(schema.field(label).type)
    if not names and task is not None and not text:
        names = task.class_names
    return Columns(image, label, names, names, text)


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Read the columns' description that Hugging Face keeps in the schema, by column."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _choose(
    path: Path, what: str, found: Sequence[str], likely: Sequence[str], columns: Sequence[str]
) -> str:
    if len(found) == 1:
        return found[0]
    for name in likely:
        if name in found:
            return name
    if found:
        raise FileError(
            path, f"several {what} columns ({', '.join(found)}); call the one to use {likely[0]}"
        )
    raise FileError(
        path,
        f"no {what} column among {', '.join(columns) or 'none'}; "
        + (
            "add one that holds the bytes of image files"
            if what == "image"
            else f"call it {likely[0]}"
        ),
    )
