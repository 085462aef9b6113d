"""Files that are whole or absent: atomic writes, checked reads, digests."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from hgprompt_edge.errors import FileError, brief, os_reason

Array = npt.NDArray[np.generic]

MAX_HEADER_BYTES = 1 << 20
"""No file of ours has a header near 1 MiB; a larger one is an attack or an accident."""

DAMAGE = (
    LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RecursionError,
)  # fmt: skip
"""What reading damage raises: JSON of another kind or nested too deep, numbers too large."""

LEFTOVER_SECONDS = 24 * 3600


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name, on failure it goes away.

    The file is flushed to disk before the rename and the folder after it, so that a file that has
    its name is whole, even after a power cut. An old file survives any failure.

    Raises
    ------
    UserError
        The folder does not exist or cannot be written, or the disk is full.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _not_written(path, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_paths(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield temporary paths for files of one folder that only make sense together.

    They keep their names, in a temporary folder beside them, since some files refer to others by
    name. On success all of them take their places, on failure none does and old ones survive. What
    a killed process left goes at the next time, from a day on.

    Raises
    ------
    UserError
        The folder does not exist or cannot be written, or the disk is full.
    """
    first = paths[0]
    _drop_leftovers(first)
    try:
        folder = tempfile.TemporaryDirectory(
            dir=first.parent, prefix=f".{first.stem}.", suffix=".tmp", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise _not_written(first, error) from error
    with folder as name:
        temporary = tuple(Path(name) / path.name for path in paths)
        try:
            yield temporary
            for path in temporary:
                sync(path)
                path.chmod(0o666 & ~_umask())
            _replace_all(temporary, paths)
            sync(first.parent)
        except OSError as error:
            raise _not_written(first, error) from error


def _drop_leftovers(first: Path) -> None:
    """Remove what killed runs left: folders for the same file that are a day old.

    No run takes so long, and a process number would say nothing in another container.
    """
    for left in first.parent.glob(f".{glob.escape(first.stem)}.????????.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(left)


def _replace_all(new: Sequence[Path], places: Sequence[Path]) -> None:
    """Move files into their places; if one move fails, undo those before it."""
    kept = [path.with_name(f"{path.name}.old") for path in new]
    for place, old in zip(places[:-1], kept, strict=False):  # nothing undoes the last move
        if place.exists():
            _keep(place, old)
    done: list[tuple[Path, Path]] = []
    try:
        for path, place, old in zip(new, places, kept, strict=True):
            path.replace(place)
            done.append((place, old))
    except OSError:
        for place, old in done:
            if old.exists():
                old.replace(place)
            else:
                place.unlink()
        raise


def _keep(place: Path, old: Path) -> None:
    try:
        os.link(place, old)
    except OSError:  # FAT and many network file systems know no second name for a file
        shutil.copy(place, old)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    # Windows flushes only what was opened for writing.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write named arrays and flat string metadata as one safetensors file, atomically.

    Metadata keys are sorted, so that the same content gives the same bytes.
    """
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data = save_safetensors(ordered, metadata=dict(sorted(metadata.items())))
    write_bytes(path, _sort_header(data))


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a safetensors file that may come from anywhere: `(tensors, metadata)`.

    Raises
    ------
    UserError
        The file is missing, truncated, not safetensors, or claims a header over 1 MiB.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            size = int.from_bytes(head, "little")
            if len(head) == 8 and size > MAX_HEADER_BYTES:
                raise FileError(
                    path,
                    f"the header claims {size:,} bytes, more than {MAX_HEADER_BYTES:,}; this is "
                    "not a file that hgedge wrote",
                )
            data = head + file.read()
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise FileError(path, f"cannot be read ({reason}); check the path") from error
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + size])
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise FileError(
            path, f"truncated or not a safetensors file ({brief(error)}); copy or make it again"
        ) from error
    return tensors, dict(header.get("__metadata__") or {})


def check_format(path: Path, found: str, wanted: str, otherwise: str) -> None:
    """Refuse a file that says it has another format than `wanted`, such as `hgprompt.bank/1`.

    Parameters
    ----------
    otherwise
        What a file is that has none of the versions of that format, and what to do, in words.

    Raises
    ------
    UserError
        It is of another version of that format, or of none.
    """
    if found == wanted:
        return
    if found.rpartition("/")[0] != wanted.rpartition("/")[0]:
        raise FileError(path, otherwise)
    raise FileError(
        path,
        f"format {brief(found)} is newer than this hgedge reads ({wanted}); upgrade hgprompt-edge",
    )


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_arrays(arrays: Mapping[str, Array]) -> str:
    """Hexadecimal sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Folder for what can be computed again: `$HGEDGE_CACHE`, else `~/.cache/hgprompt-edge`."""
    base = os.environ.get("HGEDGE_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgprompt-edge"


def _sort_header(data: bytes) -> bytes:
    # safetensors keeps metadata in a hash map: the order of its keys changes from run to run.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_written(path: Path, error: OSError) -> FileError:
    if error.errno == errno.ENOSPC:
        problem = "the disk is full; nothing was written, free some space and run it again"
    elif error.errno == errno.ENOENT:
        problem = f"the folder {path.parent} does not exist; make it or choose another one"
    else:
        reason = os_reason(error)
        problem = f"cannot be written ({reason}); choose another output path"
    return FileError(path, problem)
