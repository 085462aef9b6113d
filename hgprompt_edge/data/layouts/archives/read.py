"""Read or download a data set in the layout of its archive, by the class that torchvision has."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hgprompt_edge.data.layouts.archives.layouts import DEFAULT_DATA, LAYOUTS, Layout, find_root
from hgprompt_edge.data.layouts.archives.readers import READERS
from hgprompt_edge.data.parts import Parts
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import MissingPackageError, ParameterError, argument, first_line


def read_torchvision(name: str, data: Path | None, *, download: bool = False) -> Parts:
    """List a data set of `LAYOUTS` by torchvision's class for it.

    pets: trainval and test; flowers, dtd (split 1), camelyon: train with val, and test; cifar100,
    svhn: train and test; clevr-count, clevr-distance: train, and val as test. The other three have
    no official split: of caltech101 30 images a class train and the rest tests (without the
    background class, which the benchmark counts as one of 102), of eurosat and sun397 20 % test,
    seeded and stratified. A download that was cut short is unpacked again.

    Raises
    ------
    UserError
        Not there, damaged, or a download that failed or was cut short; or torchvision is not
        installed.
    """
    layout = LAYOUTS[name]
    base = DEFAULT_DATA if data is None else data
    root = find_root(name, base)
    mark = _mark(layout, root or base)
    if root is None and not download:
        raise ParameterError("task", name, _missing(name, base))
    if mark.exists() and not download:
        raise ParameterError(
            "data",
            base,
            f"the download of {layout.title} was cut short; fetch it again with `download=True`, "
            f"or remove {mark} if the copy is whole",
        )
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingPackageError(argument("task", name), "torchvision", "server") from error
    try:
        if root is None or mark.exists():
            return _fetch(name, datasets, root or base)
        return READERS[name](datasets, root, False)
    except ImportError as error:
        package = str(error.name)
        extra = "" if package == "h5py" else "server"
        raise MissingPackageError(argument("task", name), package, extra) from error
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        where = (root or base) / layout.folder
        what = "the download of" if root is None else "the copy of"
        raise ParameterError(
            "data",
            where,
            f"{what} {layout.title} is not usable ({first_line(error)}); remove it and fetch it "
            "again with `download=True`",
        ) from error


def _mark(layout: Layout, root: Path) -> Path:
    """Return the file that lies in `root` as long as a download is not finished."""
    return root / f".{layout.folder or layout.title}.unfinished"


def _fetch(name: str, datasets: Any, root: Path) -> Parts:
    """Read a data set that torchvision downloads first.

    torchvision unpacks in place and takes any part of an archive for the whole, so a mark lies
    beside it until all of it is there.
    """
    layout = LAYOUTS[name]
    mark, unpacked = _mark(layout, root), _unpacked(layout, root)
    if mark.exists():
        where = root / layout.folder
        warnings.warn(
            f"{where}: the download of {layout.title} was cut short; fetching the rest and "
            "unpacking it again",
            stacklevel=2,
        )
        if layout.folder:  # SVHN's files are not unpacked: torchvision checks each by its md5
            _remove(unpacked)
    if not any(path.exists() for path in unpacked):
        # What lay there before is not ours to remove.
        root.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        parts = READERS[name](datasets, root, True)
    except BaseException:
        if not any(path.exists() for path in unpacked):
            mark.unlink(missing_ok=True)
        raise
    mark.unlink(missing_ok=True)
    return parts


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _unpacked(layout: Layout, root: Path) -> set[Path]:
    """Return what torchvision unpacks, at the top; archives, which it checks, are not among it."""
    folder = root / layout.folder
    return {folder} if layout.whole else {folder / Path(file).parts[0] for file in layout.files}


def _missing(name: str, base: Path) -> str:
    layout = LAYOUTS[name]
    files = [(Path(layout.folder) / file).as_posix() for file in layout.files]
    return (
        f"{layout.title} is not in {base} (expected {', '.join(files)}, or the benchmark's lists "
        f"in vtab-1k/{VTAB[name].folders[0]}); name its folder with `data` or fetch it with "
        "`download=True`"
    )
