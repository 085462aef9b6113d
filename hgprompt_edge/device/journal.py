"""What a device has learned, kept so that no power cut and no `kill -9` loses or breaks it.

An SQLite file in the state folder. A version that `commit` returned is on the disk; one that was
being written is there whole or not at all. Readers and a writer do not wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge.device.lock import TakenError, only_one
from hgprompt_edge.device.sqlite import (
    connect,
    explained,
    is_damage,
    keep_log,
    log_of,
    make_folder,
)
from hgprompt_edge.device.version import COLUMNS, Figures, Floats, Version, seal, unseal
from hgprompt_edge.errors import UserError

__all__ = ["Journal", "Version"]

FILE, LOCK = "journal.sqlite", "adapt.lock"
FORMAT = 1
APPLICATION = 0x68676A31
"""Where SQLite keeps whose file it is: "hgj1"."""
KEPT = 1000
FACTORY, RESET, ROLLBACK = "factory", "reset", "rollback"

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE version (id INTEGER PRIMARY KEY, parent INTEGER, time REAL NOT NULL, "
    "method TEXT NOT NULL, weights BLOB NOT NULL, head_weight BLOB, head_width INTEGER, "
    "head_bias BLOB, images INTEGER NOT NULL, figures TEXT NOT NULL, sha256 BLOB NOT NULL)",
)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM version WHERE id = ?"
_INSERT = f"INSERT INTO version VALUES ({', '.join('?' * len(COLUMNS))})"


class Journal:
    """The versions of one device, newest last; the newest is the current one.

    History is appended to only: `rollback` and `reset` add a version with the content of an older
    one. Beyond the newest 1,000 versions the oldest ones are dropped, the first one never; that
    bounds the file at 0.3 MB for mixes, and at 1,000 times the size of a head where heads are kept.

    Parameters
    ----------
    folder
        The state folder; made where it is missing, but not the folders above it.
    bank_sha256
        Of the bank that the weights are over.
    factory
        `[M]`, the mix that the model came with. Where nothing was learned since, a model that comes
        with another factory mix brings that into force.
    read_only
        Write nothing. A missing journal then reads as one that holds the factory version, until
        somebody else makes it.
    classes
        Of the model. A bank may serve several tasks, a state only one: other classes are refused.
    clock
        Gives Unix seconds.

    Raises
    ------
    UserError
        The journal of another bank or other classes, of a newer format, not a journal, damaged, or
        the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        bank_sha256: str,
        factory: Floats,
        *,
        read_only: bool = False,
        classes: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.path, self.read_only = folder, folder / FILE, read_only
        self._bank, self._factory = bank_sha256, np.array(factory, np.float32)
        self._classes = classes_digest(classes)
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._immutable = False
        self._seen: object = None
        with explained(self.path):
            try:
                self._open_to_read() if read_only else self._open_to_write()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what was committed is already safe."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def current(self) -> Version:
        """Return the newest version that is whole."""
        with explained(self.path):
            if not self.read_only:
                self._opened()
            elif self._connection is None or (self._immutable and self.changed()):
                self._open_to_read()
            self._seen = self._stamp()  # before reading: what comes between counts as a change
            version = self._newest()
            if self.read_only and self._is_old_factory(version):
                return replace(version, weights=self._factory)
            return version

    def history(self) -> list[Version]:
        """Return all versions that are whole, oldest first."""
        with explained(self.path):
            if self._connection is None:
                return [self._newest()]
            rows = self._connection.execute("SELECT id FROM version ORDER BY id").fetchall()
            versions = [self._fetch(key) for (key,) in rows]
            return [version for version in versions if version is not None] or [self._newest()]

    def commit(
        self,
        weights: Floats,
        *,
        method: str,
        images: int,
        figures: Figures,
        head_weight: Floats | None = None,
        head_bias: Floats | None = None,
    ) -> Version:
        """Append a version learned from the current one; once this returns, it outlives anything.

        Parameters
        ----------
        weights
            `[M]`.
        head_weight, head_bias
            `[K, D]`, `[K]`; None: the model's own.

        Raises
        ------
        UserError
            The disk is full or cannot be written; the version before stays in force.
        ValueError
            Weights of another shape, or numbers that are not finite.
        """
        arrays = {"weights": weights, "head_weight": head_weight, "head_bias": head_bias}
        for name, array in arrays.items():
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"The '{name}' must be finite. Got {array} instead.")
        if np.shape(weights) != self._factory.shape:
            raise ValueError(
                f"The 'weights' must be {list(self._factory.shape)}. "
                f"Got {list(np.shape(weights))} instead."
            )
        with self._transaction():
            new = Version(
                0, self._newest().id, 0.0, method, weights, head_weight, head_bias, images, figures
            )
            return self._append(new)

    def rollback(self, to: int | None = None) -> Version:
        """Append a version with the content of an older one; again goes further back.

        Parameters
        ----------
        to
            The version to go back to; None: the one that the current content was learned from.

        Raises
        ------
        UserError
            There is no such version, or nothing before the current one.
        """
        with self._transaction():
            if to is None:
                origin = self._origin(self._newest())
                if origin.parent is None:
                    raise UserError(
                        f"{self.folder}: version {origin.id} is the factory's, nothing came "
                        "before it; `hgedge adapt --history` lists all there is"
                    )
                target = self._newest(origin.parent)
            else:
                found = self._fetch(to)
                if found is None:
                    raise UserError(
                        f"{self.folder}: holds no version {to}; "
                        "`hgedge adapt --history` lists those that it holds"
                    )
                target = found
            figures: Figures = {"to": target.id}
            return self._append(replace(target, parent=target.id, method=ROLLBACK, figures=figures))

    def reset(self) -> Version:
        """Append a version with the factory's content."""
        with self._transaction():
            return self._append_factory(RESET)

    def changed(self) -> bool:
        """Whether anybody else has committed since the last `current()`; takes microseconds."""
        if self._connection is None:
            return self.path.exists()
        with explained(self.path):
            return self._stamp() != self._seen

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only process that adapts this state; one that is killed frees it at once.

        Raises
        ------
        UserError
            Another process is at work, or the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(only_one(self.folder / LOCK))
            except TakenError as error:
                holder = f"pid {error.holder}" if error.holder else "its pid is not known"
                raise UserError(
                    f"another hgedge adapt is at work on {self.folder} ({holder}); "
                    "wait for it or stop it"
                ) from error
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise UserError(
                    f"{self.folder}: cannot be locked ({reason}); name a state folder that can "
                    "be written"
                ) from error
            yield

    def _open_to_write(self) -> None:
        make_folder(self.folder)
        connection = self._connection = connect(self.path, "rwc")
        if self._is_empty(connection):
            keep_log(connection)
            with self._transaction():
                if self._is_empty(connection):  # nobody else filled it meanwhile
                    self._fill(connection)
        if self._is_old_factory(self._newest()):
            with self._transaction():
                self._append_factory(FACTORY)

    def _open_to_read(self) -> None:
        self.close()
        if not self.path.exists():
            return
        try:
            self._read("ro")
        except sqlite3.OperationalError:
            # A read-only or a full disk: not even the index of the log can be made here. Where
            # there is no log, the file alone is all there is.
            if log_of(self.path).exists() and log_of(self.path).stat().st_size:
                raise
            self._read("ro&immutable=1")

    def _read(self, mode: str) -> None:
        self.close()
        self._connection, self._immutable = connect(self.path, mode), mode != "ro"
        if self._is_empty(self._connection):
            self.close()

    def _is_empty(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has not been filled yet; refuse what is not this model's journal."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (tables, owner, version) == (0, 0, 0):
            return True
        if owner != APPLICATION:
            raise UserError(f"{self.path}: not a journal of hgedge; name another state folder")
        if version > FORMAT:
            raise UserError(
                f"{self.path}: format {version} is newer than this hgedge reads ({FORMAT}); "
                "upgrade hgprompt-edge or name another state folder"
            )
        find = "SELECT value FROM meta WHERE key = ?"
        bank, classes = (
            connection.execute(find, (key,)).fetchone() or (None,)
            for key in ("bank_sha256", "classes_sha256")
        )
        if None in (*bank, *classes):
            raise sqlite3.DatabaseError("malformed")
        other = "another bank" if bank != (self._bank.encode(),) else ""
        if not other and self._classes and classes not in ((b"",), (self._classes.encode(),)):
            other = "other classes"
        if other:
            raise UserError(
                f"{self.folder}: holds what was learned for a model with {other}; name another "
                "state folder, or delete this one to start from the factory mix"
            )
        return False

    def _fill(self, connection: sqlite3.Connection) -> None:
        for statement in _TABLES:
            connection.execute(statement)
        meta = {"bank_sha256": self._bank, "classes_sha256": self._classes}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        self._append(_factory(self._factory))
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the only write lock: what the block did comes to the disk as one, or not at all."""
        if self.read_only:
            raise ValueError("The journal was opened with read_only=True.")
        connection = self._opened()
        with explained(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("The journal is closed.")
        return self._connection

    def _stamp(self) -> object:
        """Return what differs after somebody else has committed."""
        if self._connection is None:
            return None
        if self._immutable:
            state = self.path.stat()
            return state.st_mtime_ns, state.st_size, log_of(self.path).exists()
        return self._connection.execute("PRAGMA data_version").fetchone()

    def _append_factory(self, method: str) -> Version:
        return self._append(replace(_factory(self._factory, method), parent=self._newest().id))

    def _append(self, version: Version) -> Version:
        """Write a version under the next number and the time, within a transaction."""
        connection = self._opened()
        (last,) = connection.execute("SELECT max(id) FROM version").fetchone()
        now, before, figures = self._clock(), self._newest().time, dict(version.figures)
        if now < before:
            figures["clock_went_back_seconds"] = before - now
        new = replace(
            version,
            id=(last or 0) + 1,
            time=float(max(now, before)),
            weights=np.array(version.weights, np.float32),
            figures=figures,
        )
        connection.execute(_INSERT, seal(new, self._bank))
        connection.execute("DELETE FROM version WHERE id > 1 AND id <= ?", (new.id - KEPT,))
        return new

    def _newest(self, upto: int = sys.maxsize) -> Version:
        """Newest version that is whole, of those up to a number; the factory's if there is none."""
        while self._connection is not None:
            (key,) = self._connection.execute(
                "SELECT max(id) FROM version WHERE id <= ?", (upto,)
            ).fetchone()
            if key is None:
                break
            version = self._fetch(key)
            if version is not None:
                return version
            upto = min(upto, key) - 1
        return _factory(self._factory)

    def _fetch(self, key: int) -> Version | None:
        """Version of this number, None where there is none or it is damaged."""
        try:
            row = self._opened().execute(_SELECT, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                return None
            raise
        return None if row is None else unseal(row, self._bank)

    def _origin(self, version: Version) -> Version:
        """Version that first had the content of this one."""
        while version.method == ROLLBACK and version.parent is not None:
            parent = self._fetch(version.parent)
            if parent is None:  # dropped, or damaged
                break
            version = parent
        return version

    def _is_old_factory(self, version: Version) -> bool:
        """Whether nothing was learned, and the model now comes with another mix."""
        if self._origin(version).method not in (FACTORY, RESET):
            return False
        return not np.array_equal(version.weights, self._factory)


def classes_digest(classes: Sequence[str]) -> str:
    """Digest of the names of classes: 16 hexadecimal digits, empty where there are none."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()[:16] if classes else ""


def _factory(weights: Floats, method: str = FACTORY) -> Version:
    return Version(1, None, 0.0, method, weights, None, None, 0, {})
