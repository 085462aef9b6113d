"""What is kept on disk because it can be computed again: features, starts, compiled models, checks.

Imports no torch: a device shows and clears its cache without it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

from hgprompt_edge.files import cache_folder

FOLDERS = ("features", "starts", "trainings", "openvino", "int8")
"""Below the cache's folder: of `FeatureStore`, `vit.start.neutral_tokens`, `Contest.train`,
`OpenVinoEngine` and `device.other_cpu`."""


def clear_cache() -> tuple[int, int]:
    """Delete all entries: `(files, bytes)` that were freed."""
    entries = _entries()
    for path, _, _ in entries:
        path.unlink(missing_ok=True)
    _drop_empty_folders()
    return len(entries), sum(size for _, size, _ in entries)


def cache_size() -> tuple[int, int]:
    """Count what the cache holds: `(files, bytes)`."""
    entries = _entries()
    return len(entries), sum(size for _, size, _ in entries)


def evict(limit: int) -> None:
    """Delete the least recently used entries until the rest has at most `limit` bytes."""
    entries = _entries()
    total = sum(size for _, size, _ in entries)
    if total <= limit:
        return
    for path, size, _ in entries:
        path.unlink(missing_ok=True)
        total -= size
        if total <= limit:
            break
    _drop_empty_folders()


def _entries() -> list[tuple[Path, int, int]]:
    """`(path, bytes, time of last use)` of every file, the least recently used first.

    Every file, so that what a killed process left half-written goes, too. OpenVINO does not date
    its files anew when it reads them: a compiled model counts as used when it was made.
    """
    entries = []
    paths = (path for name in FOLDERS for path in (cache_folder() / name).rglob("*"))
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # another process evicted it
            continue
        if S_ISDIR(status.st_mode):
            continue
        entries.append((path, status.st_size, status.st_mtime_ns))
    return sorted(entries, key=lambda entry: (entry[2], entry[0].name))


def _drop_empty_folders() -> None:
    """Remove the folders of models that are gone: each export would leave one for ever."""
    for folder in (cache_folder() / "openvino").glob("*"):
        with suppress(OSError):  # in use
            folder.rmdir()
