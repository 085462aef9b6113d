"""A watched folder whose images go to a monitor, each once, also over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hgprompt_edge.runtime.watching.monitored import Watched


@dataclass(frozen=True)
class Serving:
    """Which files of a folder a monitor was given; kept with what it has seen, in one file.

    A file is known by its path in the folder, its size and its time of change, so that one that was
    written again is new. A process that is killed keeps both or neither: nothing is lost or counted
    twice.
    """

    watched: Watched
    folder: Path

    def new(self, paths: Iterator[Path]) -> Iterator[Path]:
        """Leave out the files that the monitor was given."""
        return (path for path in paths if self.is_new(path))

    def is_new(self, path: Path) -> bool:
        """Whether the monitor was not given this file."""
        stamp = _stamp(path)
        return stamp is None or self.watched.monitor.served.get(self._name(path)) != stamp

    def given(self, path: Path) -> None:
        """Note that the monitor was given this file, or that it cannot be read."""
        stamp = _stamp(path)
        if stamp is not None:
            self.watched.monitor.served[self._name(path)] = stamp

    def write(self) -> None:
        """Write what was seen, without the files that are gone; raises as `write_monitor` does."""
        served = self.watched.monitor.served
        if self.folder.is_dir():  # else it is gone for now, as a disk may be
            for name in [name for name in served if not (self.folder / name).exists()]:
                del served[name]
        self.watched.write()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None: it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
