"""Serve a folder: classify each new image with the weights that are newest at that moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hgprompt_edge.device.journal import Version
from hgprompt_edge.device.predictor import Prediction, Predictor
from hgprompt_edge.errors import UserError
from hgprompt_edge.preprocess import IMAGE_SUFFIXES

INTERVAL = 0.2
"""Seconds between two looks. An image is taken when its size is the same at both."""


def watch(
    predictor: Predictor,
    folder: Path,
    top: int = 1,
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[tuple[Prediction, Version | None]]:
    """Yield the prediction of each image that comes into `folder`, and the version at work.

    Images that are there already come first. Runs until it is interrupted or the folder is gone.

    Raises
    ------
    UserError
        There is no such folder.
    """
    sizes: dict[Path, int] = {}
    done: set[tuple[Path, int]] = set()
    while True:
        if not folder.is_dir():
            raise UserError(f"--watch {folder}: no such folder; make it first")
        for path, size in _images(folder):
            if (path, size) in done:
                continue
            if sizes.get(path) != size:  # may still be being written
                sizes[path] = size
                continue
            done.add((path, size))
            predictor.refresh()
            for prediction in predictor.predict_paths([path], top):
                yield prediction, predictor.version
        sleep(INTERVAL)


def _images(folder: Path) -> list[tuple[Path, int]]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            try:
                found.append((path, path.stat().st_size))
            except OSError:  # gone meanwhile
                continue
    return found
