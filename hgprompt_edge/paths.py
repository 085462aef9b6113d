"""Paths and names that users give: whether they can be written, and stored."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hgprompt_edge.errors import UserError


def check_writable(folder: Path, option: str) -> None:
    """Refuse, before hours of work, a folder that will not take the result."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"{option}: cannot write to the folder {folder} ({reason}); choose another one"
        raise UserError(message) from error


def why_not(path: Path, kind: str) -> str:
    """Say why a path is not the kind of file or folder that is wanted, such as `model file`."""
    if path.is_dir():
        return f"a folder, not a {kind}"
    return f"a file, not a {kind}" if path.exists() else f"no such {kind}"


def check_output(path: Path | None, option: str) -> None:
    """Refuse, before hours of work, what cannot become a file; None: one in the current folder."""
    if path is not None and path.is_dir():
        raise UserError(f"{option} {path}: {why_not(path, 'file')}; name a file")
    check_writable(Path() if path is None else path.parent, option)


def check_storable(text: str, what: str) -> None:
    """Refuse a name that no file of ours can hold: it has bytes that are not UTF-8.

    `what` says whose name it is, such as `the class`.

    Raises
    ------
    UserError
        It is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} '{text}': the name is not UTF-8, which our files and runtimes need; rename it"
        ) from error
