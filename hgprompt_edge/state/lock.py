"""One process at a time adapts a state; the system frees the lock when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hgprompt_edge.errors import FileError, os_reason

STATE = "name a state folder that can be written"
ADVICE = {
    "adapt": STATE,
    "monitor": STATE,
    "device": "copy the folder to where it can be written",
}
"""What to do where the folder that a command locks cannot be written."""


@contextmanager
def only_one_adapts(folder: Path) -> Iterator[None]:
    """Be the only process that adapts a state folder; see `only_one`."""
    with only_one(folder, "adapt"):
        yield


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold a lock in a folder for the block; one that is killed frees it at once.

    The holder's pid lies beside the lock: on Windows a locked file cannot be read.

    Parameters
    ----------
    what
        The command that holds it, such as `adapt`.

    Raises
    ------
    UserError
        Another process holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # 15 ms that reading a state does not need

    pid = folder / f"{what}.pid"
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(folder / f"{what}.lock", blocking=False))
            pid.write_text(str(os.getpid()))
        except Timeout as error:
            raise FileError(
                folder,
                f"another `hgedge {what}` is using it ({_holder(pid)}); wait for it or stop it",
            ) from error
        except OSError as error:
            reason = os_reason(error)
            raise FileError(folder, f"cannot be locked ({reason}); {ADVICE[what]}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                pid.unlink()


def _holder(pid: Path) -> str:
    with suppress(OSError, ValueError):
        return f"pid {int(pid.read_text())}"
    return "its pid is not known"
