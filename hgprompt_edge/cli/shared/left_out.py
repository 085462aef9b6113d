"""Which files were not used and why: a note with counts, every name in `--json` and in a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge.cli.shared.console import note
from hgprompt_edge.files import write_bytes
from hgprompt_edge.images.listing import LeftOut, summary

if TYPE_CHECKING:
    from hgprompt_edge.data import Task

SUFFIX = ".left-out.csv"
SHOWN = 3
"""So many unreadable files are named on the terminal."""


def csv_beside(bundle: Path) -> Path:
    """Where the files that a bundle did not use are listed."""
    return bundle.with_name(f"{bundle.stem}{SUFFIX}")


def write_left_out(images: Task, bundle: Path) -> None:
    """Write the CSV beside a bundle, one row a file that was not used, and say where it is.

    Where all files were used there is none, and an old one goes.

    Raises
    ------
    UserError
        It cannot be written.
    """
    path = csv_beside(bundle)
    items = (*images.unreadable, *images.left_out)
    if not items:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("file", "reason"))
    writer.writerows((item.name, item.reason) for item in items)
    # surrogateescape: names of files need not be UTF-8.
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
    files = f"{len(items):,} files that were" if len(items) > 1 else "file that was"
    note(f"{path}: the {files} not used, by name")


def note_left_out(unreadable: Sequence[LeftOut], left_out: Sequence[LeftOut]) -> None:
    """Say on stderr how many files were not used and why."""
    for item in unreadable[:SHOWN]:
        note(f"skipped {item}")
    if len(unreadable) > SHOWN:
        note(f"skipped {len(unreadable) - SHOWN:,} more that cannot be read")
    if left_out:
        note(f"left out: {summary(left_out)}; such as {left_out[0].name}")


def as_rows(items: Iterable[LeftOut]) -> list[dict[str, str]]:
    """Return rows for a JSON document."""
    return [{"file": item.name, "reason": item.reason} for item in items]


def of_task(images: Task) -> dict[str, list[dict[str, str]]]:
    """Return what a JSON document says of the files that were not used."""
    return {
        "unreadable": as_rows(images.unreadable),
        "files_left_out": as_rows(images.left_out),
    }
