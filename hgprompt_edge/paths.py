"""Paths and names that users give: what they are, and whether they can be stored."""

from __future__ import annotations

from pathlib import Path

from hgprompt_edge.errors import UserError


def why_not(path: Path, kind: str) -> str:
    """Say why a path is not the kind of file or folder that is wanted, such as `model file`."""
    if path.is_dir():
        return f"a folder, not a {kind}"
    return f"a file, not a {kind}" if path.exists() else f"no such {kind}"


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
        raise UserError(f"{what} '{text}': the name is not valid UTF-8; rename it") from error
