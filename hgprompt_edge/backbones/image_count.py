"""Who wants to know how many images have passed through a model: a bar between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_watchers: list[Callable[[int], None]] = []


@contextmanager
def watch_images(watcher: Callable[[int], None]) -> Iterator[None]:
    """Call `watcher` with a number of images each time that some have passed, from any thread."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def images_passed(images: int) -> None:
    """Say that so many images have passed."""
    for watcher in tuple(_watchers):
        watcher(images)
