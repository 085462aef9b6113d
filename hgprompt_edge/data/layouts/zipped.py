"""`images.zip` with `labels.csv`: one file for all images, one table for classes and splits."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from hgprompt_edge.data.layouts.part_names import part_of
from hgprompt_edge.data.parts import Entry, Parts
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.image_names import is_image_name
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.preprocess import UnreadableImageError, open_image

IMAGES, LABELS = "images.zip", "labels.csv"
COLUMNS = ("file", "label", "split")
GROUP = "group"
"""A further column: images of one group stay in one part."""
MAX_MEMBER_BYTES = 256 << 20
"""No photograph is larger when packed; a member that claims more is a zip bomb."""


class Row(NamedTuple):
    """A line of the table; `part` is a key of `Parts`."""

    file: str
    label: str
    part: str
    group: str


def is_zipped(data: Path) -> bool:
    """Whether `read_zip` is the reader for `data`: a zip file, or a folder with `images.zip`."""
    return (data / IMAGES).is_file() or (data.is_file() and zipfile.is_zipfile(data))


def read_zip(data: Path) -> Parts:
    """List the images of a folder that holds `images.zip` and `labels.csv`, or of a zip file.

    `labels.csv` (columns `file,label,split`; splits `train`, `val`, `test`) lies in the zip file,
    else beside it. With a column `group` images of one group (one object, one video) stay together
    where training images are divided into training and validation. Images that it does not name are
    left out.

    Raises
    ------
    UserError
        Not a zip file; no `labels.csv`; a missing column; an empty label or group, an unknown
        split; a group in two splits; a file that the zip file lacks.
    """
    path = data / IMAGES if data.is_dir() else data
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(path, f"not a readable zip file ({error}); copy it again") from error
    members = {info.filename: info for info in archive.infolist()}
    source, text = _labels_text(archive, path)
    listed: dict[str, list[Entry]] = {"train": [], "validation": [], "test": []}
    missing: list[str] = []
    rows = _rows(source, text)
    _check_groups(source, rows)
    for row in rows:
        if row.file not in members:
            missing.append(row.file)
        else:
            opener = partial(_open_member, archive, members[row.file])
            listed[row.part].append(Entry(row.file, row.label, opener, row.group))
    if missing:
        raise FileError(
            source,
            f"names {len(missing):,} file(s) that {path.name} lacks, such as {missing[0]}; "
            "correct the table or pack the images again",
        )
    train, validation, test = listed.values()
    named = {row.file for row in rows}
    unnamed = tuple(
        LeftOut(file, f"not in {LABELS}")
        for file in members
        if file not in named and is_image_name(file.rpartition("/")[2])
    )
    return Parts(str(data), train, validation, test, official=True, left_out=unnamed)


def _labels_text(archive: zipfile.ZipFile, path: Path) -> tuple[str, str]:
    """Name and text of the table."""
    beside = path.parent / LABELS
    try:
        if LABELS in archive.namelist():
            return f"{path}/{LABELS}", archive.read(LABELS).decode("utf-8-sig")
        return str(beside), beside.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise FileError(
            path, f"no {LABELS} in it or beside it; write one with the columns {','.join(COLUMNS)}"
        ) from error
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise FileError(
            beside, f"cannot be read as UTF-8 text ({error}); save it again as CSV"
        ) from error


def _check_groups(source: str, rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row)
        if row.group and row.part != other.part:
            raise FileError(
                source,
                f"the group {row.group} is in two splits ({other.file} in {other.part}, "
                f"{row.file} in {row.part}); give all images of a group one split",
            )


def _rows(source: str, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = [(name or "").strip() for name in reader.fieldnames or []]
        lacking = [column for column in COLUMNS if column not in header]
        if lacking:
            raise FileError(
                source,
                f"no column {lacking[0]}; its first line must name the columns {','.join(COLUMNS)}",
            )
        reader.fieldnames = header
        rows = []
        for row in reader:
            file, label, split = ((row[column] or "").strip() for column in COLUMNS)
            key = part_of(split)
            if key is None:
                raise FileError(
                    source,
                    f"unknown split {split!r}; use train, val or test",
                    f"line {reader.line_num}",
                )
            if not file or not label:
                raise FileError(
                    source,
                    f"no {'label' if file else 'file'}; fill it in or remove the line",
                    f"line {reader.line_num}",
                )
            group = (row[GROUP] or "").strip() if GROUP in header else ""
            if GROUP in header and not group:
                raise FileError(
                    source,
                    "no group; fill it in, with a name of its own for an image that belongs to "
                    "none, or remove the column",
                    f"line {reader.line_num}",
                )
            rows.append(Row(file, label, key, group))
        return rows
    except csv.Error as error:
        raise FileError(source, f"not a CSV table ({error}); save it again as CSV") from error


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Image.Image:
    if info.file_size > MAX_MEMBER_BYTES:
        raise UnreadableImageError(info.filename, f"unpacks to {info.file_size:,} bytes")
    try:
        data = archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        # RuntimeError: the member is encrypted, or packed by a method that zipfile does not know.
        reason = f"cannot be unpacked ({str(error)[:80].lower()})"
        raise UnreadableImageError(info.filename, reason) from error
    return open_image(io.BytesIO(data), info.filename)
