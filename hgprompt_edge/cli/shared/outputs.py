"""Whether results can be written where a command is to put them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hgprompt_edge.errors import UserError, os_reason
from hgprompt_edge.paths import why_not


def check_writable(folder: Path, option: str) -> None:
    """Refuse, before hours of work, a folder that will not take the result."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os_reason(error)
        message = f"{option}: cannot write to the folder {folder} ({reason}); choose another one"
        raise UserError(message) from error


def check_output(path: Path | None, option: str, suffix: str = "") -> None:
    """Refuse, before hours of work, what cannot become a file; None: one in the current folder.

    Also a name without the `suffix`: figures and states lie beside a result, under its name with
    another one, and commands without a name look for it by the suffix.
    """
    if path is not None:
        if path.is_dir():
            raise UserError(f"{option} {path}: {why_not(path, 'file')}; name a file")
        if path.suffix != suffix and suffix:
            raise UserError(f"{option} {path}: choose a name that ends in {suffix}")
    check_writable(Path() if path is None else path.parent, option)


def check_way(path: Path, beside: Sequence[str]) -> None:
    """Refuse, before hours of work, folders where a result goes and what lies `beside` it."""
    for each in (path, *(path.with_suffix(suffix) for suffix in beside)):
        if each.is_dir():
            why = why_not(each, "file")
            raise UserError(f"{each}: {why}; rename it, or choose another --output")
