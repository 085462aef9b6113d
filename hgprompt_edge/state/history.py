"""What a device has learned, kept so that no power cut and no `kill -9` loses or breaks it.

An SQLite file in the state folder. A version that `commit` returned is on the disk; one that was
being written is there whole or not at all. Readers and a writer do not wait for each other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from hgprompt_edge.errors import UserError
from hgprompt_edge.state.database import Database
from hgprompt_edge.state.lock import only_one_adapts
from hgprompt_edge.state.sqlite import explained
from hgprompt_edge.state.version import Figures, Floats, Version, classes_digest

__all__ = ["RETURN", "History", "Version"]

FILE = "history.sqlite"
INITIAL, RESET, ROLLBACK = "initial", "reset", "rollback"
RETURN = "return"
"""To the initial weights, because images look clean under them again."""


class History:
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
    initial
        `[M]`, the mix that the model came with. Where nothing was learned since, a model that comes
        with another initial mix brings that into force.
    read_only
        Write nothing. A missing history then reads as one that holds the initial version, until
        somebody else makes it; so does one that is deleted, and another in its place is taken over.
    classes
        Of the model. A bank may serve several tasks, a state only one: other classes are refused.
    resize
        The model's `crop_mode`: what was learned from pictures that were made square in another way
        is refused.
    clock
        Gives Unix seconds.

    Raises
    ------
    UserError
        The history of another bank or other classes, of a newer format, not a history, damaged, or
        the folder cannot be made or written.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.path, self.read_only = folder, folder / FILE, read_only
        weights = np.array(initial, np.float32)
        self._first = Version(1, None, clock(), INITIAL, weights, None, None, 0, {})
        self._clock = clock
        self._database = Database(self.path, bank_sha256, classes_digest(classes), resize)
        self._seen: object = None
        with explained(self.path):
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what was committed is already safe."""
        self._database.close()

    def current(self) -> Version:
        """Return the newest version that is whole."""
        with explained(self.path):
            database = self._database
            if self.read_only and (database.is_another or (database.immutable and self.changed())):
                database.open_to_read()
            self._seen = database.stamp()  # before reading: what comes between counts as a change
            version = self._newest()
            if self.read_only and self._is_old_initial(version):
                return replace(version, weights=self._first.weights)
            return version

    def device(self) -> str:
        """Return the number by which a server tells this history's versions from other devices'.

        16 random hexadecimal digits; empty before anything was written.
        """
        with explained(self.path):
            return self._database.device() if self._database.is_open else ""

    def versions(self) -> list[Version]:
        """Return all versions that are whole, oldest first."""
        with explained(self.path):
            if self.read_only and not self._database.is_open:
                return [self._first]
            versions = [self._database.fetch(key) for key in self._database.ids()]
            return [version for version in versions if version is not None] or [self._first]

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
        new = Version(
            id=0,
            parent=None,
            time=0,
            method=method,
            weights=np.array(weights, np.float32),
            head_weight=None if head_weight is None else np.array(head_weight, np.float32),
            head_bias=None if head_bias is None else np.array(head_bias, np.float32),
            images=images,
            figures=figures,
        )
        self._check(new)
        with self._transaction():
            return self._append(replace(new, parent=self._newest().id))

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
                        f"{self.folder}: version {origin.id} is the initial one, nothing came "
                        "before it; `hgedge state history` lists all there is"
                    )
                target = self._newest(origin.parent)
            else:
                found = self._database.fetch(to)
                if found is None:
                    raise UserError(
                        f"{self.folder}: holds no version {to}; "
                        "`hgedge state history` lists those that it holds"
                    )
                target = found
            figures: Figures = {"to": target.id}
            return self._append(replace(target, parent=target.id, method=ROLLBACK, figures=figures))

    def reset(self) -> Version:
        """Append a version with the initial content."""
        with self._transaction():
            return self._append_initial(RESET)

    def changed(self) -> bool:
        """Whether anybody else has committed since the last `current()`, or the file is another.

        Takes microseconds.
        """
        with explained(self.path):
            return self._database.is_another or self._database.stamp() != self._seen

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the only process that adapts this state; one that is killed frees it at once.

        Raises
        ------
        UserError
            Another process is at work, or the folder cannot be written.
        """
        return only_one_adapts(self.folder)

    def _open(self) -> None:
        if self.read_only:
            self._database.open_to_read()
            return
        self._database.open_to_write(self._first)
        with self._transaction():
            if self._is_old_initial(self._newest()):
                self._append_initial(INITIAL)

    def _check(self, version: Version) -> None:
        arrays = {
            "weights": version.weights,
            "head": version.head_weight,
            "bias": version.head_bias,
        }
        for name, array in arrays.items():
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"The '{name}' must be finite. Got {array} instead.")
        shape, wanted = version.weights.shape, self._first.weights.shape
        if shape != wanted:
            raise ValueError(f"The 'weights' must be {list(wanted)}. Got {list(shape)} instead.")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self.read_only:
            raise ValueError("The history was opened with read_only=True.")
        with explained(self.path), self._database.transaction():
            yield

    def _newest(self, upto: int = sys.maxsize) -> Version:
        """Newest version that is whole, up to a number; the initial one if there is none."""
        found = (
            self._database.newest(upto) if self._database.is_open or not self.read_only else None
        )
        return found or self._first

    def _append_initial(self, method: str) -> Version:
        return self._append(replace(self._first, method=method, parent=self._newest().id))

    def _append(self, version: Version) -> Version:
        """Write a version under the next number and the time, within a transaction."""
        now, before, figures = self._clock(), self._newest().time, dict(version.figures)
        if now < before:
            figures["clock_went_back_seconds"] = before - now
        new = replace(
            version,
            id=(self._database.last_id() or 0) + 1,
            time=float(max(now, before)),
            figures=figures,
        )
        self._database.append(new)
        return new

    def _origin(self, version: Version) -> Version:
        """Version that first had the content of this one."""
        while version.method == ROLLBACK and version.parent is not None:
            parent = self._database.fetch(version.parent)
            if parent is None:  # dropped, or damaged
                break
            version = parent
        return version

    def _is_old_initial(self, version: Version) -> bool:
        """Whether nothing was learned, and the model now comes with another mix."""
        if np.array_equal(version.weights, self._first.weights):
            return False
        return self._origin(version).method in (INITIAL, RESET, RETURN)
