"""What OpenVINO compiled of a model, kept for the next start and safe for many processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hgprompt_edge.files import cache_folder, sha256_file


def compiled_folder(path: Path, weights_sha256: str, precision: str) -> Path | None:
    """Make the folder that keeps what was compiled of these two files; None where it cannot be.

    A folder by content and precision: by itself OpenVINO tells files of one name apart by size and
    date alone, and on CPUs with AMX it takes what was compiled for float32 for bfloat16, too, which
    gives NaN.
    """
    name = f"{sha256_file(path)[:16]}-{weights_sha256[:16]}-{precision}"
    try:
        folder = cache_folder() / "openvino" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter: this user has no home
        return None  # only the next start is slower
    return folder


@contextmanager
def own_copy(folder: Path) -> Iterator[Path]:
    """Yield a folder with the files of another one, of this process only; then add what is new.

    OpenVINO writes into its cache under the final name, so that processes that start together
    would read each other's half-written files. Here a file appears when it is whole.
    """
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
    ) as name:
        own = Path(name)
        for file in folder.iterdir():
            with suppress(OSError):  # another process has just replaced it
                try:
                    os.link(file, own / file.name)
                except OSError:  # a file system without hard links
                    shutil.copyfile(file, own / file.name)
        try:
            yield own
        except RuntimeError:  # what is there cannot be used: the next start makes it anew
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            raise
        for file in own.iterdir():
            with suppress(OSError):  # a full disk: only the next start is slower
                if not _is_same(file, folder / file.name):
                    file.replace(folder / file.name)


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
