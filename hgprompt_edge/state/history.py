"""What a device has learned, kept so that no power cut and no `kill -9` loses or breaks it.

An SQLite file in the state folder. A version that `commit` returned is on the disk; one that was
being written is there whole or not at all.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge.errors import FileError
from hgprompt_edge.state.database import (
    INSERT,
    explained,
    has_log,
    make_database,
    read_database,
)
from hgprompt_edge.state.lock import only_one_adapts
from hgprompt_edge.state.version import Figures, Floats, Version, classes_digest, from_row, to_row

__all__ = ["RETURN", "History", "Version"]

FILE, KEPT = "history.sqlite", 1000
INITIAL, RESET, ROLLBACK = "initial", "reset", "rollback"
RETURN = "return"
"""To the initial weights, because images look clean under them again."""


class History:
    """The versions of one device; the newest is in force. Old ones are not changed.

    Beyond the newest 1,000 the oldest are dropped, the first one never.

    Parameters
    ----------
    folder
        The state folder; made where it is missing, but not the folders above it.
    bank_sha256
        Of the bank that the weights are over.
    initial
        `[M]`, the mix that the model came with. Another one comes into force where nothing was
        learned since.
    read_only
        Write nothing. A missing or deleted history reads as one that holds the initial version,
        and one that takes its place is read from then on.
    classes, resize, task, backbone
        Of the model: names, its `crop_mode`, its name and the fingerprint of its backbone. What was
        learned for others is refused.
    clock
        Gives Unix seconds.

    Raises
    ------
    UserError
        The history of another model, of a newer format, damaged, none at all, or the folder cannot
        be made or written.
    """

    def __init__(
        self,
        folder: Path,
        bank_sha256: str,
        initial: Floats,
        *,
        read_only: bool = False,
        classes: Sequence[str] = (),
        resize: str = "",
        task: str = "",
        backbone: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.path, self.read_only = folder, folder / FILE, read_only
        self._bank, self._clock = bank_sha256, clock
        self._model = (bank_sha256, classes_digest(classes), resize, task, backbone)
        weights = np.array(initial, np.float32)
        self._first = Version(1, None, clock(), INITIAL, weights, None, None, 0, {})
        self._row = to_row(self._first, bank_sha256)
        self._connection: sqlite3.Connection | None = None
        self._file: object = ()
        self._seen: object = None
        with explained(self.path):
            self._open()
        if not read_only:
            with self._transaction():
                if self._is_old_initial(self._newest()):
                    self._append(replace(self._first, parent=self._newest().id))

    def __enter__(self) -> History:
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
            if self.read_only and self._identity() != self._file:
                self._open()
            self._seen = self._stamp()  # before reading: what comes between counts as a change
            return self._served(self._newest())

    def changed(self) -> bool:
        """Whether `current()` would read something new; takes microseconds."""
        with explained(self.path):
            return self._identity() != self._file or self._stamp() != self._seen

    def versions(self) -> list[Version]:
        """Return all versions that are whole, oldest first; the last is `current()`."""
        with explained(self.path):
            newest, *older = list(self._whole()) or [self._first]
            return [*older[::-1], self._served(newest)]

    def learned(self) -> bool:
        """Whether something that was learned is in force, and not the mix of the model."""
        with explained(self.path):
            return self._is_learned(self._newest())

    def device(self) -> str:
        """Return 16 hexadecimal digits that tell devices apart; empty: nothing was written yet."""
        with explained(self.path):
            find = "SELECT value FROM meta WHERE key = 'device'"
            return str(*self._opened().execute(find).fetchone() or ("",))

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

        The arrays and their shapes are those of `Version`.

        Raises
        ------
        UserError
            The disk is full or cannot be written; the version before stays in force.
        ValueError
            Weights of another shape, or numbers that are not finite.
        """
        mix, shape = np.array(weights, np.float32), self._first.weights.shape
        weight, bias = (
            None if array is None else np.array(array, np.float32)
            for array in (head_weight, head_bias)
        )
        if mix.shape != shape:
            raise ValueError(f"The 'weights' must be {list(shape)}. Got {list(mix.shape)} instead.")
        if not all(np.isfinite(array).all() for array in (mix, weight, bias) if array is not None):
            raise ValueError("The weights and the head must be finite.")
        with self._transaction():
            parent = self._newest().id
            return self._append(Version(0, parent, 0, method, mix, weight, bias, images, figures))

    def rollback(self, to: int | None = None) -> Version:
        """Append a version with the content of an older one; again goes further back.

        None: of the one that the current content was learned from.

        Raises
        ------
        UserError
            There is no such version, or nothing before the current one.
        """
        with self._transaction():
            target = self._newest_parent() if to is None else self._fetch(to)
            if target is None:
                raise FileError(
                    self.folder,
                    f"has no version {to}; `hgedge state history` lists the versions",
                )
            figures: Figures = {"to": target.id}
            return self._append(replace(target, parent=target.id, method=ROLLBACK, figures=figures))

    def reset(self) -> Version:
        """Append a version with the initial content."""
        with self._transaction():
            return self._append(replace(self._first, parent=self._newest().id, method=RESET))

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the only process that adapts this state, see `only_one_adapts`."""
        return only_one_adapts(self.folder)

    def _open(self) -> None:
        """Open the file, again where that made it or another took its place meanwhile."""
        opener, self._file = read_database if self.read_only else make_database, ()
        while (file := self._identity()) != self._file:
            self.close()
            self._connection = opener(self.path, self._model, self._row)
            self._file = file

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("The history is closed.")
        return self._connection

    def _identity(self) -> object:
        """Tell files of one name apart. An open one that is deleted keeps its inode."""
        with suppress(FileNotFoundError, NotADirectoryError):
            file = self.path.stat()
            # What SQLite does not notice of a file that is open as one that nobody can write.
            rest = (file.st_size, file.st_mtime_ns, has_log(self.path)) if self.read_only else ()
            return file.st_dev, file.st_ino, *rest
        return None

    def _stamp(self) -> object:
        """Return what differs after somebody else has committed."""
        return self._opened().execute("PRAGMA data_version").fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the only write lock: what the block did comes to the disk as one, or not at all."""
        if self.read_only:
            raise ValueError("The history was opened with read_only=True.")
        with explained(self.path), self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    def _append(self, version: Version) -> Version:
        """Write a version under the next number and the time, within a transaction."""
        now, before, figures = self._clock(), self._newest().time, dict(version.figures)
        if now < before:
            figures["clock_went_back_seconds"] = before - now
        key = max(self._ids(), default=0) + 1
        new = replace(version, id=key, time=float(max(now, before)), figures=figures)
        self._opened().execute(INSERT, to_row(new, self._bank))
        drop = "DELETE FROM version WHERE id > 1 AND id <= ?"
        self._opened().execute(drop, (key - KEPT,))
        return new

    def _ids(self, upto: int = sys.maxsize) -> list[int]:
        """Numbers of all versions up to one, whole or not, newest first."""
        find = "SELECT id FROM version WHERE id <= ? ORDER BY id DESC"
        return [key for (key,) in self._opened().execute(find, (upto,))]

    def _fetch(self, key: int) -> Version | None:
        """Version of this number, None where there is none or it is damaged."""
        try:
            find = "SELECT id, facts, arrays, sha256 FROM version WHERE id = ?"
            row = self._opened().execute(find, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # of its own kind is damage alone
                raise
            return None
        return row and from_row(row, self._bank)

    def _whole(self, upto: int = sys.maxsize) -> Iterator[Version]:
        """Versions up to a number that are whole, newest first."""
        return (found for key in self._ids(upto) if (found := self._fetch(key)) is not None)

    def _newest(self, upto: int = sys.maxsize) -> Version:
        return next(self._whole(upto), self._first)

    def _newest_parent(self) -> Version:
        """Version that the current content was learned from."""
        origin = self._origin(self._newest())
        if origin.parent is None:
            raise FileError(
                self.folder,
                f"version {origin.id} is the first; there is nothing to roll back to",
            )
        return self._newest(origin.parent)

    def _origin(self, version: Version) -> Version:
        """Version that first had the content of this one, as far as it is known."""
        while version.method == ROLLBACK and (parent := self._fetch(version.parent or 0)):
            version = parent
        return version

    def _served(self, version: Version) -> Version:
        """Return the newest version, at the model's own mix where nothing was learned since."""
        if self.read_only and self._is_old_initial(version):
            return replace(version, weights=self._first.weights)
        return version

    def _is_old_initial(self, version: Version) -> bool:
        """Whether nothing was learned, and the model now comes with another mix."""
        moved = not np.array_equal(version.weights, self._first.weights)
        return moved and not self._is_learned(version)

    def _is_learned(self, version: Version) -> bool:
        return self._origin(version).method not in (INITIAL, RESET, RETURN)
