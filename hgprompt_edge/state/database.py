"""The SQLite file of a history: made, opened, and what goes wrong with it in one sentence."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hgprompt_edge.errors import FileError, MismatchError, os_reason
from hgprompt_edge.files import sync

FORMAT = 1
APPLICATION = 0x68676A31
"""Where SQLite keeps whose file it is: "hgj1"."""
INSERT = "INSERT INTO version VALUES (?, ?, ?, ?)"
OTHER = {
    "bank_sha256": "another bank",
    "classes_sha256": "other classes",
    "resize": "another resize rule than '{}'",
    "task": "another task than '{}'",
    "backbone_sha256": "another backbone",
}
"""What the table `meta` holds of the model, and what a difference means."""
REASONS = {
    "disk is full": "the disk is full; free some space, the versions before are kept",
    "disk i/o": "the disk is full or failing (disk I/O error); free some space or check it, the "
    "versions before are kept",
    "readonly": "read-only; give a state folder that can be written",
    "unable to open": "cannot be opened or written here; give a state folder that can be written",
    "not a database": "not a history of hgedge; name another state folder",
    "malformed": "damaged; restore it, or delete its folder to start from the initial mix",
    "locked": "another process has kept it busy for ten seconds; try again, or stop that one",
}


def make_database(path: Path, model: Sequence[str], first: Sequence[Any]) -> sqlite3.Connection:
    """Open the file of a history to write; a new one gets `first`, the row of its first version.

    `model` has the values of `OTHER`.
    """
    if not path.parent.exists():
        path.parent.mkdir(exist_ok=True)  # not those above it
        sync(path.parent.resolve().parent)
    with _connected(path, "rwc") as connection:
        if _is_empty(connection, path, model):
            _log_ahead(connection)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection, path, model):  # nobody else filled it meanwhile
                _fill(connection, model, first, secrets.token_hex(8))
            # Changes nothing, but fails where the file is read-only: now, not after minutes.
            connection.execute("DELETE FROM meta WHERE key = ''")
        return connection


def read_database(path: Path, model: Sequence[str], first: Sequence[Any]) -> sqlite3.Connection:
    """Open the file to read; one in memory, with `first`, where there is none that was filled."""
    try:
        found = _read(path, model, "ro")
    except sqlite3.OperationalError as error:
        # A read-only or a full disk: not even the index of the log can be made here. Where there is
        # no log, the file alone is all there is.
        if "locked" in str(error) or has_log(path):
            raise
        found = _read(path, model, "ro&immutable=1")
    if found is None:
        with _connected(path, "memory") as found:
            _fill(found, model, first, device="")
    return found


def has_log(path: Path) -> bool:
    """Whether something is in the write-ahead log of a file."""
    with suppress(OSError):
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    return False


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open without transactions, which are begun by hand; each waits for the disk.

    Any thread may use the connection, one at a time. It is closed if the block fails.
    """
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = lambda data: data.decode(errors="replace")  # damage fits nothing
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: past the drive's own cache, too
        yield connection
    except BaseException:
        connection.close()
        raise


def _read(path: Path, model: Sequence[str], mode: str) -> sqlite3.Connection | None:
    if not path.exists():
        return None
    with _connected(path, mode) as connection:
        if not _is_empty(connection, path, model):
            return connection
        connection.close()
    return None


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, by which readers and a writer do not wait for each other."""
    for _ in range(100):  # SQLite does not wait by itself where two processes turn it on at once
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
            return
        time.sleep(0.02)


def _is_empty(connection: sqlite3.Connection, path: Path, model: Sequence[str]) -> bool:
    """Whether the file has not been filled yet; refuse what is not this model's history."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (tables, owner, version) == (0, 0, 0):
        return True
    if owner != APPLICATION:
        raise FileError(path, "not a history of hgedge; name another state folder")
    if version != FORMAT:
        raise FileError(
            path,
            f"format {version} is newer than this hgedge reads ({FORMAT}); upgrade hgprompt-edge "
            "or name another state folder",
        )
    found = dict(connection.execute("SELECT key, value FROM meta"))
    for (key, other), wanted in zip(OTHER.items(), model, strict=True):
        if key not in found:
            raise sqlite3.DatabaseError("malformed")
        if found[key] != wanted:
            raise MismatchError(
                path.parent,
                "this model",
                f"it was learned for a model with {other.format(wanted)}",
                "name another state folder, or delete this one to start from the initial mix",
            )
    return False


def _fill(
    connection: sqlite3.Connection, model: Sequence[str], first: Sequence[Any], device: str
) -> None:
    """Make the tables; `device` tells this file from others, and nothing else of it."""
    meta = [*zip(OTHER, model, strict=True), ("device", device)]
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
    connection.execute("CREATE TABLE version (id INTEGER PRIMARY KEY, facts, arrays, sha256)")
    connection.execute(INSERT, first)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about `path` into a `UserError` of one sentence."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: damage without a name
        text = str(error).lower()
        reason = next((REASONS[key] for key in REASONS if key in text), f"unusable ({text})")
        raise FileError(path, reason) from error
    except OSError as error:
        reason = os_reason(error)
        raise FileError(
            path, f"cannot be made or opened ({reason}); name another state folder"
        ) from error
