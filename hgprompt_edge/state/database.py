"""The SQLite file under a history: sealed rows that are added, and checked when they are read."""

from __future__ import annotations

import secrets
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgprompt_edge.errors import UserError
from hgprompt_edge.state.sqlite import connect, is_damage, keep_log, log_of, make_folder
from hgprompt_edge.state.version import COLUMNS, Version, seal, unseal

FORMAT = 1
APPLICATION = 0x68676A31
"""Where SQLite keeps whose file it is: "hgj1"."""
KEPT = 1000

TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE version (id INTEGER PRIMARY KEY, parent INTEGER, time REAL NOT NULL, "
    "method TEXT NOT NULL, weights BLOB NOT NULL, head_weight BLOB, head_width INTEGER, "
    "head_bias BLOB, images INTEGER NOT NULL, figures TEXT NOT NULL, sha256 BLOB NOT NULL)",
)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM version WHERE id = ?"
INSERT = f"INSERT INTO version VALUES ({', '.join('?' * len(COLUMNS))})"


class Database:
    """Versions by their numbers. Errors are SQLite's own, for the caller to put into a sentence.

    Parameters
    ----------
    path
        The file.
    bank_sha256, classes, resize
        What its versions are for; a file for something else is refused. `classes` is a digest and
        `resize` a `crop_mode`.
    """

    def __init__(self, path: Path, bank_sha256: str, classes: str, resize: str) -> None:
        self.path, self._bank, self._classes, self._resize = path, bank_sha256, classes, resize
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self.immutable = False

    @property
    def is_open(self) -> bool:
        """Whether there is a file to read."""
        return self._connection is not None

    @property
    def is_another(self) -> bool:
        """Whether the open file is gone, or another one is there; takes microseconds.

        A file that is open keeps its inode when it is deleted, so that no new one gets it.
        """
        return _identity(self.path) != self._file

    def open_to_write(self, first: Version) -> None:
        """Open the file; where it is new, with a first version and a number of its own."""
        make_folder(self.path.parent)
        connection = self._connection = connect(self.path, "rwc")
        self._file = _identity(self.path)
        if not self._is_empty(connection):
            # Changes nothing, but fails where the file is read-only: now, not after minutes.
            connection.execute("DELETE FROM meta WHERE key = ''")
            return
        keep_log(connection)
        with self.transaction():
            if self._is_empty(connection):  # nobody else filled it meanwhile
                self._fill(connection, first)

    def open_to_read(self) -> None:
        """Open the file if it is there and has been filled."""
        self.close()
        if not self.path.exists():
            return
        try:
            self._read("ro")
        except sqlite3.OperationalError as error:
            # A read-only or a full disk: not even the index of the log can be made here. Where
            # there is no log, the file alone is all there is.
            log = log_of(self.path)
            if "locked" in str(error) or (log.exists() and log.stat().st_size):
                raise
            self._read("ro&immutable=1")

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._file = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the only write lock: what the block did comes to the disk as one, or not at all."""
        connection = self.opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def append(self, version: Version) -> None:
        """Add a version, within a transaction, and drop the oldest of too many."""
        connection = self.opened()
        connection.execute(INSERT, seal(version, self._bank))
        connection.execute("DELETE FROM version WHERE id > 1 AND id <= ?", (version.id - KEPT,))

    def device(self) -> str:
        """Return the file's own number, 16 hexadecimal digits; empty where it has none."""
        find = "SELECT value FROM meta WHERE key = 'device'"
        found: tuple[bytes] | None = self.opened().execute(find).fetchone()
        return "" if found is None else found[0].decode("ascii", "replace")

    def ids(self) -> list[int]:
        """Numbers of all versions, whole or not, oldest first."""
        return [key for (key,) in self.opened().execute("SELECT id FROM version ORDER BY id")]

    def last_id(self, upto: int = sys.maxsize) -> int | None:
        """Highest number up to another one, of a whole version or not."""
        find = "SELECT max(id) FROM version WHERE id <= ?"
        key: int | None = self.opened().execute(find, (upto,)).fetchone()[0]
        return key

    def newest(self, upto: int = sys.maxsize) -> Version | None:
        """Newest version that is whole, of those up to a number."""
        while (key := self.last_id(upto)) is not None:
            version = self.fetch(key)
            if version is not None:
                return version
            upto = min(upto, key) - 1
        return None

    def fetch(self, key: int) -> Version | None:
        """Version of this number, None where there is none or it is damaged."""
        try:
            row = self.opened().execute(SELECT, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                return None
            raise
        return None if row is None else unseal(row, self._bank)

    def stamp(self) -> object:
        """Return what differs after somebody else has committed."""
        if self._connection is None:
            return None
        if self.immutable:
            state = self.path.stat()
            return state.st_mtime_ns, state.st_size, log_of(self.path).exists()
        return self._connection.execute("PRAGMA data_version").fetchone()

    def opened(self) -> sqlite3.Connection:
        """Return the connection, where there is one."""
        if self._connection is None:
            raise ValueError("The history is closed.")
        return self._connection

    def _read(self, mode: str) -> None:
        self.close()
        file = _identity(self.path)  # before it is opened: one that comes between is another
        self._connection, self.immutable = connect(self.path, mode), mode != "ro"
        self._file = file
        empty = True
        try:
            empty = self._is_empty(self._connection)
        finally:
            if empty:  # or refused: it must not be read because it is open already
                self.close()

    def _is_empty(self, connection: sqlite3.Connection) -> bool:
        """Whether the file has not been filled yet; refuse what is not this model's history."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (tables, owner, version) == (0, 0, 0):
            return True
        if owner != APPLICATION:
            raise UserError(f"{self.path}: not a history of hgedge; name another state folder")
        if version > FORMAT:
            raise UserError(
                f"{self.path}: format {version} is newer than this hgedge reads ({FORMAT}); "
                "upgrade hgprompt-edge or name another state folder"
            )
        find = "SELECT value FROM meta WHERE key = ?"
        bank, classes, resize = (
            connection.execute(find, (key,)).fetchone() or (None,)
            for key in ("bank_sha256", "classes_sha256", "resize")
        )
        if None in (*bank, *classes, *resize):
            raise sqlite3.DatabaseError("malformed")
        other = ""
        if bank != (self._bank.encode(),):
            other = "another bank"
        elif classes != (self._classes.encode(),):
            other = "other classes"
        elif resize != (self._resize.encode(),):
            other = f"another resize rule than '{self._resize}'"
        if other:
            raise UserError(
                f"{self.path.parent}: holds what was learned for a model with {other}; name "
                "another state folder, or delete this one to start from the initial mix"
            )
        return False

    def _fill(self, connection: sqlite3.Connection, first: Version) -> None:
        for statement in TABLES:
            connection.execute(statement)
        meta = {
            "bank_sha256": self._bank,
            "classes_sha256": self._classes,
            "resize": self._resize,
            "device": secrets.token_hex(8),  # tells this device from others, says nothing else
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        self.append(first)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell files apart that have had one name, whatever they hold; None: there is none."""
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state.st_dev, state.st_ino
