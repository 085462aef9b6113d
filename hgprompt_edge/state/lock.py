"""One process at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hgprompt_edge.errors import FileError

LOCK = "adapt.lock"

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # a locked byte cannot be read on Windows, and the holder's number must be

    def _acquire(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        # flock, not lockf: that one is lost as soon as this process closes the file anywhere.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TakenError(Exception):
    """Another process holds the lock; `holder` is its number, or 0 where it has not said yet."""

    def __init__(self, holder: int) -> None:
        super().__init__(f"taken by process {holder}")
        self.holder = holder


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock on `path` for the block. The file stays: a new one would be another lock.

    Raises
    ------
    TakenError
        Somebody holds it.
    OSError
        The file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _acquire(descriptor)
        except (BlockingIOError, PermissionError) as error:  # the latter on Windows
            raise TakenError(_holder(descriptor)) from error
        _write(descriptor, str(os.getpid()).encode())
        try:
            yield
        finally:
            _write(descriptor, b"")
    finally:
        os.close(descriptor)


@contextmanager
def only_one_adapts(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder for the block.

    Raises
    ------
    UserError
        Another process holds it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(only_one(folder / LOCK))
        except TakenError as error:
            holder = f"pid {error.holder}" if error.holder else "its pid is not known"
            raise FileError(
                folder, f"another `hgedge adapt` is using it ({holder}); wait for it or stop it"
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise FileError(
                folder, f"cannot be locked ({reason}); name a state folder that can be written"
            ) from error
        yield


def _holder(descriptor: int) -> int:
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 20)
    return int(text) if text.isdigit() else 0


def _write(descriptor: int, text: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text)
