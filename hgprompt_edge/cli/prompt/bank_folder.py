"""The folder of a bank that a prompt is written to."""

from __future__ import annotations

from pathlib import Path


def make_bank_folder(folder: Path) -> None:
    """Make the folder where it is missing.

    Raises
    ------
    UserError
        It cannot be made or written.
    """
    from hgprompt_edge.cli.shared.outputs import check_writable
    from hgprompt_edge.errors import UserError, os_reason

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = os_reason(error)
        message = f"--output: cannot make the folder {folder} ({reason}); choose another one"
        raise UserError(message) from error
    check_writable(folder, "--output")
