"""Image files through a model into its monitor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import BatchMemoryError, FileError, os_reason
from hgprompt_edge.images.preprocess import UnreadableImageError, read_image
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.learned import open_history, state_folder
from hgprompt_edge.runtime.prediction import Floats, Pixels, Way
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitor import Monitor, Report, digest_of, why_not
from hgprompt_edge.runtime.watching.monitor_file import FILE, read_monitor, write_monitor
from hgprompt_edge.state.history import FILE as HISTORY
from hgprompt_edge.state.lock import only_one


@dataclass(frozen=True)
class Observed:
    """One file: why it cannot be read, or its features `[D]`, and what was found up to it."""

    path: Path
    error: str | None
    features: Floats | None
    report: Report


@dataclass(frozen=True)
class Watched:
    """A model whose images go to a monitor as it predicts them, and where that is kept."""

    predictor: Predictor
    monitor: Monitor
    path: Path

    def way(self, predictor: Predictor | None = None) -> Way:
        """Return how it classifies, for `predict_files`; the monitor sees the same run.

        Parameters
        ----------
        predictor
            In place of its own: the same task, opened anew.

        Raises
        ------
        UserError
            The task's file was replaced, and the monitor is of the one before.
        """
        running = predictor or self.predictor
        reference = watchable(running)
        if reference is not self.monitor.reference and digest_of(reference) != self.monitor.digest:
            raise FileError(
                running.path,
                f"was replaced, and {self.path} is about the one before; remove that to start anew",
            )

        def judge(pixels: Pixels) -> tuple[Floats, Floats | None]:
            judged, features = running.judge_and_features(pixels)
            self.monitor.observe(features)
            return judged

        return replace(running.way(), judge=judge)

    def write(self) -> None:
        """Write what was seen; raises as `write_monitor` does."""
        write_monitor(self.path, self.monitor)


@contextmanager
def watched(predictor: Predictor, state: Path | None = None) -> Iterator[Watched]:
    """Be the only process that watches a model's images, from what it has seen before on.

    Raises
    ------
    UserError
        The model cannot be watched, another process watches it, or what it has seen is damaged.
    """
    reference, path = watchable(predictor), monitor_path(predictor, state)
    with only_monitor(path):
        yield Watched(predictor, read_monitor(path, reference), path)


def monitor_path(predictor: Predictor, state: Path | None = None) -> Path:
    """Where what a model's monitor has seen is kept, unless `state` names another folder.

    Raises
    ------
    UserError
        A file lies where the folder would be, or `state` holds what another model has learned.
    """
    folder = state or state_folder(predictor.path)
    if folder.exists() and not folder.is_dir():
        raise FileError(folder, "a file, not a folder; name another folder with `state`")
    if state is not None and (state / HISTORY).exists():
        if predictor.bank is None:
            raise FileError(
                state,
                "holds what another model has learned, since the weights of "
                f"{predictor.path} are folded into it; name another folder with `state`",
            )
        open_history(state, predictor.bank, predictor.metadata, read_only=True).close()
    return folder / FILE


def watchable(predictor: Predictor) -> Reference:
    """Return what a model's own images look like.

    Raises
    ------
    UserError
        The model does not say, or of too few of them.
    """
    reference = predictor.initial_reference
    if reference is None and _known_elsewhere(predictor):
        raise FileError(
            predictor.path,
            "records what its own images look like to another backbone, such as one in int8; add "
            "its bundle to this folder with `hgedge device add`",
        )
    if reason := why_not(reference):
        raise FileError(predictor.path, reason)
    assert reference is not None
    return reference


def observe_files(
    predictor: Predictor, monitor: Monitor, paths: Iterable[Path], batch_size: int = 16
) -> Iterator[Observed]:
    """Take in image files in their order, `batch_size` at a time; what cannot be read is left out.

    Raises
    ------
    UserError
        The memory does not hold so many images.
    """
    remaining = iter(paths)
    while batch := list(islice(remaining, batch_size)):
        read = [_read(path, predictor) for path in batch]
        pixels = [image for image in read if not isinstance(image, str)]
        try:
            features: Iterator[Floats] = iter(
                predictor.features(np.stack(pixels)) if pixels else ()
            )
        except MemoryError as error:
            raise BatchMemoryError(batch_size, len(batch)) from error
        for path, image in zip(batch, read, strict=True):
            if isinstance(image, str):
                yield Observed(path, image, None, monitor.report())
            else:
                row = next(features)
                yield Observed(path, None, row, monitor.observe(row[None]))


@contextmanager
def only_monitor(path: Path) -> Iterator[None]:
    """Be the only process that writes the state in `path`; makes its folder.

    Raises
    ------
    UserError
        Another one does, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        reason = os_reason(error)
        raise FileError(
            path.parent, f"cannot be made ({reason}); name another folder with `state`"
        ) from error
    with only_one(path.parent, "monitor"):
        yield


def _known_elsewhere(predictor: Predictor) -> bool:
    folder = predictor.device_folder
    return folder is not None and folder.task(predictor.metadata.task).reference is not None


def _read(path: Path, predictor: Predictor) -> npt.NDArray[np.uint8] | str:
    try:
        return read_image(path, predictor.preprocessing)
    except UnreadableImageError as error:
        return error.reason
