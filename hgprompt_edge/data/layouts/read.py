"""Read data of any layout: which one it is in, asked one after the other."""

from __future__ import annotations

from pathlib import Path

from hgprompt_edge.data.known_tasks import SET_FOLDERS, own_name, unknown_task
from hgprompt_edge.data.layouts.archives.layouts import DEFAULT_DATA, LAYOUTS, find_root
from hgprompt_edge.data.layouts.archives.read import read_torchvision
from hgprompt_edge.data.layouts.digits import read_digits
from hgprompt_edge.data.layouts.folder import is_class_folder, read_folder
from hgprompt_edge.data.layouts.hub import fetch_parquet, is_hub_id
from hgprompt_edge.data.layouts.lists import is_listed, read_lists
from hgprompt_edge.data.layouts.parquet import parquet_files, read_parquet
from hgprompt_edge.data.layouts.zipped import is_zipped, read_zip
from hgprompt_edge.data.parts import Parts
from hgprompt_edge.data.vtab import BENCHMARK, VTAB, VtabTask, missing
from hgprompt_edge.errors import ParameterError, UserError
from hgprompt_edge.images.listing import holds_images, subfolders


def name_of(data: Path | None) -> str:
    """Name a task after its data: the folder, the file without its suffix, or the hub's name.

    The folder of an archive of `LAYOUTS` goes by that task's name.

    Raises
    ------
    UserError
        There is no data.
    """
    if data is None:
        raise UserError(
            "no images given; name a task with `task`, or a folder of your own images with `data`"
        )
    if is_hub_id(data):
        return data.parts[1] if len(data.parts) > 1 else data.name
    path = data.resolve()
    folder = path.parent if path.name == "images.zip" else path
    for task, layout in LAYOUTS.items():
        if layout.folder and folder.name == layout.folder:
            return task
    return folder.stem if folder.is_file() else folder.name


def read_data(data: Path) -> tuple[str, Parts | None]:
    """Name the task of `data` as `find_task` does and list its images; no image is decoded.

    None in place of them where `data` is a folder of class folders. A training part may be missing
    where the data says which part images are of.

    Raises
    ------
    UserError
        It is not there, or not usable; see the readers.
    """
    check_there(data)
    name = own_name(name_of(data))
    found = _read_known(name, data, download=False, training=False)
    return name, None if found is None else found[0]


def check_there(data: Path) -> None:
    """Refuse a path at which nothing lies, unless it is a name of the hub."""
    if not (data.exists() or is_hub_id(data)):
        raise ParameterError(
            "data", data, "no such file or folder; name the folder that holds the images"
        )


def read_parts(name: str, data: Path | None, download: bool) -> tuple[Parts, bool]:
    """Read the files of a task, and say whether they may be anybody's rather than the known ones.

    A folder in a layout that known data sets also come in is taken for the one of that name.
    """
    found = _read_known(name, data, download)
    if found is not None:
        return found
    if data is not None:
        return read_folder(data), True
    if name == "digits":
        return read_digits(), False
    raise ParameterError("task", name, unknown_task(name))


def _read_known(
    name: str, data: Path | None, download: bool, *, training: bool = True
) -> tuple[Parts, bool] | None:
    """Do as `read_parts` but for class folders and for what is in no folder: None for these."""
    task = VTAB.get(name)
    if data is not None and is_hub_id(data):
        return read_parquet(fetch_parquet(data), task, str(data)), task is None
    if task is not None and (parts := _read_benchmark(task, data)) is not None:
        return parts, False
    if name in LAYOUTS and (data is None or find_root(name, data) is not None):
        return read_torchvision(name, data, download=download), False
    if data is not None and (parts := _read_files(data, task, training)) is not None:
        return parts, task is None or is_zipped(data)
    sets = [] if data is None else _sets_in(data)
    own = data is not None and not sets and is_class_folder(data)
    if name in LAYOUTS and (download or not own):
        return read_torchvision(name, data, download=download), False
    if task is not None and not own and not (data is not None and data.is_file()):
        raise ParameterError("task", task.name, missing(task, data or DEFAULT_DATA))
    if data is not None:
        if not data.is_dir():
            raise ParameterError(
                "data",
                data,
                "neither a folder nor a zip file; name a folder of class folders or of parquet "
                "files, or a zip file with labels.csv",
            )
        if sets:
            raise ParameterError(
                "data",
                data,
                f"holds {len(sets):,} data set(s), such as {sets[0]}, instead of class folders; "
                "give one of them, or rename the folder if it is one of your classes",
            )
    return None


def _read_files(data: Path, task: VtabTask | None, training: bool) -> Parts | None:
    """Read `data` by the lists, zip file or parquet files in it; None where there are none."""
    if is_listed(data):
        return read_lists(data, task)
    if is_zipped(data):
        return read_zip(data)
    return read_parquet(data, task, training=training) if parquet_files(data) else None


def _sets_in(data: Path) -> list[str]:
    """Name the folders in `data` that are data sets rather than classes."""
    return [
        path.name
        for path in (subfolders(data) if data.is_dir() else [])
        # A class may well be called flowers; its images then lie in it.
        if is_listed(path) or (path.name in SET_FOLDERS and not holds_images(path))
    ]


def _read_benchmark(task: VtabTask, data: Path | None) -> Parts | None:
    """Read a task's own folder below `data`; None where there is none with lists or parquet."""
    base = DEFAULT_DATA if data is None else data
    for root in (base / BENCHMARK, base):
        for folder in (root / name for name in (*task.folders, task.name)):
            if is_listed(folder):
                return read_lists(folder, task)
            if parquet_files(folder):
                return read_parquet(folder, task)
    return None
