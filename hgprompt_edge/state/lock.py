"""One process at a time adapts a state; the system frees the lock when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hgprompt_edge.errors import FileError

LOCK, HOLDER = "adapt.lock", "adapt.pid"


@contextmanager
def only_one_adapts(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder for the block; one that is killed frees it at once.

    The holder's pid lies beside the lock: on Windows a locked file cannot be read.

    Raises
    ------
    UserError
        Another process holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # 15 ms that reading a state does not need

    with ExitStack() as held:
        try:
            held.enter_context(FileLock(folder / LOCK, blocking=False))
            (folder / HOLDER).write_text(str(os.getpid()))
        except Timeout as error:
            raise FileError(
                folder,
                f"another `hgedge adapt` is using it ({_holder(folder)}); wait for it or stop it",
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise FileError(
                folder, f"cannot be locked ({reason}); name a state folder that can be written"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / HOLDER).unlink()


def _holder(folder: Path) -> str:
    with suppress(OSError, ValueError):
        return f"pid {int((folder / HOLDER).read_text())}"
    return "its pid is not known"
