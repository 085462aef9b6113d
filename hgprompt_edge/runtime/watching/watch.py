"""Serve a folder: classify each new image with the weights that are newest at that moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hgprompt_edge.errors import FileError
from hgprompt_edge.images.listing import list_images
from hgprompt_edge.paths import why_not
from hgprompt_edge.runtime.prediction import Limits, Prediction, Way, predict_files
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.state.history import Version

INTERVAL = 0.2
"""Seconds between two looks. An image is taken when its size is the same at both."""


class Stamp(NamedTuple):
    """What differs once a file was written again, or another one has taken its name."""

    size: int
    mtime_ns: int
    inode: int


def watch(
    predictor: Predictor,
    folder: Path,
    top: int = 1,
    *,
    limits: Limits | None = None,
    way: Callable[[Predictor, Path], Way] = lambda predictor, _: predictor.way(),
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[tuple[Prediction, Version | None]]:
    """Yield the prediction of each image that comes into `folder`, and the version at work.

    The newest weights are taken, and a task's file anew where it has changed; `way` says how the
    model classifies an image. Otherwise as `watch_paths`.
    """
    for path in watch_paths(folder, sleep=sleep):
        if predictor.device_folder is not None:
            predictor = predictor.task(predictor.metadata.task)
        predictor.refresh()
        ways, version = [way(predictor, path)], predictor.version
        for (prediction,) in predict_files(ways, predictor.preprocessing, [path], top, 1, limits):
            yield prediction, version


def watch_paths(folder: Path, *, sleep: Callable[[float], object] = time.sleep) -> Iterator[Path]:
    """Yield the path of each image that comes into `folder`, as soon as the file is whole.

    Which files are images is said in `listing`: those that `predict` takes of the same folder.

    Images that are there already come first, and one that is written again comes again. Runs until
    it is interrupted or the folder is gone.

    Raises
    ------
    UserError
        There is no such folder.
    """
    known: dict[Path, tuple[int, Stamp | None]] = {}  # the size at the last look, what was served
    while True:
        if not folder.is_dir():
            todo = "name a folder" if folder.exists() else "make it first"
            raise FileError(folder, f"{why_not(folder, 'folder')}; {todo}")
        found = _images(folder)
        known = {path: known.get(path, (-1, None)) for path in found}  # without those that are gone
        for path, stamp in found.items():
            size, served = known[path]
            whole = stamp.size == size  # else it may still be being written
            known[path] = stamp.size, stamp if whole else served
            if whole and stamp != served:
                yield path
        sleep(INTERVAL)


def _images(folder: Path) -> dict[Path, Stamp]:
    found = {}
    for path in list_images([folder]).images:
        try:
            state = path.stat()
        except OSError:  # gone meanwhile
            continue
        found[path] = Stamp(state.st_size, state.st_mtime_ns, state.st_ino)
    return found
