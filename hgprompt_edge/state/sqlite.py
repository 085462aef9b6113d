"""SQLite as a device needs it: nothing lost that was committed, and errors in one sentence."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgprompt_edge.errors import FileError

_REASONS = {
    "disk is full": "the disk is full; free some space, the versions before are kept",
    "disk i/o": "the disk is full or failing (disk I/O error); free some space or check it, the "
    "versions before are kept",
    "readonly": "read-only; give a state folder that can be written",
    "unable to open": "cannot be opened or written here; give a state folder that can be written",
    "not a database": "not a history of hgedge; name another state folder",
    "malformed": "damaged; restore it, or delete its folder to start from the initial mix",
    "locked": "another process has kept it busy for ten seconds; try again, or stop that one",
}
_DAMAGE = ("malformed", "not a database")


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a file: `mode` is `rwc`, `ro`, or `ro&immutable=1` where nobody can write it.

    Transactions are begun by hand, each commit waits for the disk, and text comes as bytes: what
    damage made of it is for the caller to judge. Any thread may use it, one at a time.
    """
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = bytes
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except UnicodeDecodeError as error:  # sqlite3 cannot even say what is damaged
        connection.close()
        raise sqlite3.DatabaseError("database disk image is malformed") from error
    connection.execute("PRAGMA fullfsync = ON")  # macOS: past the drive's own cache, too
    return connection


def keep_log(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, by which readers and a writer do not wait for each other."""
    for _ in range(100):  # SQLite does not wait by itself where two processes turn it on at once
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
            return
        time.sleep(0.02)
    connection.execute("PRAGMA journal_mode = WAL")


def log_of(path: Path) -> Path:
    """Path of the write-ahead log of a file."""
    return path.with_name(f"{path.name}-wal")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, rather than the disk or another process."""
    return any(word in str(error).lower() for word in _DAMAGE)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about `path` into a `UserError` of one sentence."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.Error, UnicodeDecodeError) as error:
        undecodable = isinstance(error, UnicodeDecodeError)  # damage that it cannot even name
        text = "malformed" if undecodable else str(error).lower()
        reason = next((_REASONS[key] for key in _REASONS if key in text), f"unusable ({text})")
        raise FileError(path, reason) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(
            path, f"cannot be made or opened ({reason}); name another state folder"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder whose name survives a power cut; not those above it."""
    if folder.exists():
        return
    folder.mkdir(exist_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
