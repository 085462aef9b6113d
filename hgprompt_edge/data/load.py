"""From a name, a folder, a zip file or the hub to a task: `find_task`, then its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.data import generated
from hgprompt_edge.data.layouts import archives
from hgprompt_edge.data.layouts.folder import is_class_folder, read_folder
from hgprompt_edge.data.layouts.hub import fetch_parquet, is_hub_id
from hgprompt_edge.data.layouts.lists import is_listed, read_lists
from hgprompt_edge.data.layouts.parquet import parquet_files, read_parquet
from hgprompt_edge.data.layouts.zipped import is_zipped, read_zip
from hgprompt_edge.data.split import split
from hgprompt_edge.data.task import (
    Entry,
    Parts,
    Progress,
    Task,
    check_parts,
    decode_parts,
    make_task,
    parts_without_test,
)
from hgprompt_edge.data.vtab import ALIASES, BENCHMARK, VTAB, VtabTask, missing
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import check_storable
from hgprompt_edge.images.listing import holds_images, subfolders
from hgprompt_edge.images.picture_hash import sees_near_copies
from hgprompt_edge.images.preprocess import Preprocessing

FAMILIES = {
    "chars34-font": "characters",
    "chars34-poor": "characters",
    "chars34-scene": "characters",
    "cifar10": "cifar",
    "clothing10": "clothing",
    "deeppcb": "deeppcb",
    "digits": "digits",
    "dtd10": "texture",
    "fashion-mnist": "clothing",
    "flowers17": "flowers",
    "grocery81": "grocery81",
    "gtsrb": "signs",
    "houses4": "houses4",
    "magnetic-tile": "magnetic-tile",
    "magnetic-tile-bright": "magnetic-tile",
    "magnetic-tile-dark": "magnetic-tile",
    "neu-cls": "neu-cls",
    "pacs-art-painting": "pacs",
    "pacs-cartoon": "pacs",
    "pacs-photo": "pacs",
    "pacs-sketch": "pacs",
    "pneumonia-mnist": "pneumonia-mnist",
    "rsscn7": "aerial",
    "sign-language-digits": "digits",
    "trashnet": "trashnet",
    "weather4": "weather",
    **{alias: VTAB[name].family for alias, name in ALIASES.items()},
    **{kind: described.family for kind, described in generated.KINDS.items()},
}
"""Tasks of one family never serve each other as source and target."""

NO_FLIPS = {
    "chars34-font",
    "chars34-poor",
    "chars34-scene",
    "digits",
    "gtsrb",
    "sign-language-digits",
    *(name for name, task in VTAB.items() if not task.flips),
    *(kind for kind, description in generated.KINDS.items() if not description.flips),
}
"""A mirrored sign, digit or position is another one, or none."""

SET_FOLDERS = {BENCHMARK, *ALIASES, *(layout.folder for layout in archives.LAYOUTS.values())}
"""What the folders of known data sets are called."""

DIGITS_TEST_SHARE = 797 / 1797
"""Of scikit-learn's 1,797 digits 1,000 train."""

BUILT_IN = {"digits", *archives.LAYOUTS, *VTAB, *generated.KINDS}
"""Tasks whose images come from a known place."""

GENERATED_IMAGES = 1000
"""A generated task has as many for training (fewer under a lower limit) and for the test."""


@dataclass(frozen=True)
class FoundTask:
    """A task whose files are found and checked, and whose images are not decoded yet.

    Attributes
    ----------
    parts
        None for a generated task.
    family, flips, data
        As of `Task`.
    own
        It has the name of a built-in task and other images, from `data`.
    group_by_hash
        Copies are kept on one side of the split.
    """

    name: str
    parts: Parts | None
    family: str
    flips: bool
    data: str
    own: bool
    seed: int
    group_by_hash: bool = False

    def without_test(self) -> FoundTask:
        """Return the same task with an empty test part, for choices that are made before it."""
        if self.parts is None:
            return self
        return replace(self, parts=replace(self.parts, test=()))

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        limit: int | None = 1000,
        progress: Progress | None = None,
    ) -> Task:
        """Decode or draw the images, as `load_task` says."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1, or None for all images, got {limit}")
        if self.parts is None:
            return _generated(self.name, preprocessing, self.seed, limit)
        parts = self.parts
        if self.group_by_hash:
            from hgprompt_edge.data.grouping import group_by_hash

            parts = group_by_hash(parts, progress)
            check_parts(parts)
        task = decode_parts(
            parts,
            preprocessing,
            name=self.name,
            family=self.family,
            flips=self.flips,
            seed=self.seed,
            limit=limit,
            progress=progress,
        )
        return replace(task, data=self.data, grouped=self.group_by_hash)


def load_task(
    name: str | None,
    preprocessing: Preprocessing,
    *,
    data: Path | None = None,
    seed: int = 0,
    download: bool = False,
    group_by_hash: bool = False,
    limit: int | None = 1000,
    progress: Progress | None = None,
) -> Task:
    """Load images and split them: of `limit` images 80 % train and 20 % validate; a test part.

    `find_task` with `FoundTask.load`.

    Parameters
    ----------
    name, data, seed, download, group_by_hash
        As of `find_task`.
    limit
        Most images for training and validation together; None: all.
    progress
        Called with (images decoded, images in all).

    Raises
    ------
    UserError
        As of `find_task`, or more images are unreadable than `build_task` takes.
    """
    found = find_task(name, data=data, seed=seed, download=download, group_by_hash=group_by_hash)
    return found.load(preprocessing, limit=limit, progress=progress)


def find_task(
    name: str | None,
    *,
    data: Path | None = None,
    seed: int = 0,
    download: bool = False,
    group_by_hash: bool = False,
) -> FoundTask:
    """Find the files of a task and check its classes and splits, without decoding an image.

    `name` is resolved in this order:

    1. a generated task (`generated-count`, ...), which takes no `data`;
    2. a task of VTAB-1k by its name or a usual one of its folder (`vtab.ALIASES`), if `data`
       (default `./data`) or a folder of that name in it, or in its `vtab-1k`, holds the
       benchmark's lists or parquet files, or if `data` is laid out as its archive is
       (`archives.LAYOUTS`);
    3. with `data`: `hf:ORG/NAME` of the hub, lists, `images.zip` with `labels.csv`, parquet files,
       else a folder of class folders, if what `name` means is not to be downloaded; the name is a
       label, and where it or the folder's name is a key of `FAMILIES` it gives family and flips;
    4. `digits`, scikit-learn's.

    A folder that holds whole data sets (`vtab-1k`, lists, a folder of a known name without images
    of its own) is never taken for class folders.

    Lists come with their own training and validation part, which are taken as they are.

    Parameters
    ----------
    name
        None: the name of the data folder.
    seed
        Of the sample of `limit` training images and of the validation split. Test parts do not
        depend on it.
    download
        Fetch a data set of torchvision's into `data` if it is not there.
    group_by_hash
        Keep copies on one side of the split, as `grouping.group_by_hash` says.

    Raises
    ------
    UserError
        The name is unknown or a path, the data is missing or not usable; see the readers and
        `build_task`.
    """
    if name is not None and (not name or Path(name).name != name):
        raise UserError(
            f"--task '{name}': must be a name without folders; name the folder of the images with "
            "--data DIR"
        )
    if data is not None and not download:
        _check_there(data)
    label = _known(name if name is not None else _name_of(data))
    check_storable(label, "--task" if name is not None else "--task: the folder")
    if label in generated.KINDS:
        if data is not None:
            raise UserError(
                f"--data {data}: {label} is generated and reads no files; leave --data out or "
                "choose another name for the task"
            )
        if group_by_hash:
            raise UserError(
                f"--group-by-hash: {label} is generated, so that there are no files to group; "
                "leave it out"
            )
        return FoundTask(label, None, FAMILIES[label], label not in NO_FLIPS, "", False, seed)
    if group_by_hash and not sees_near_copies():
        raise UserError(
            "--group-by-hash: needs ImageHash to find near-copies; install hgprompt-edge[leaks]"
        )
    known = label if label in FAMILIES or data is None else _known(_name_of(data))
    parts, own = _read(label, data, download)
    check_parts(parts)
    return FoundTask(
        name=label,
        parts=parts,
        family=FAMILIES.get(known, ""),
        flips=known not in NO_FLIPS,
        data=_place(label, data),
        own=own and label in BUILT_IN,
        seed=seed,
        group_by_hash=group_by_hash,
    )


def _place(name: str, data: Path | None) -> str:
    """Where the images lie, so that they are found from any folder."""
    if data is not None and is_hub_id(data):
        return str(data)
    if data is None and name in (*VTAB, *archives.LAYOUTS):
        data = archives.DEFAULT_DATA
    return "" if data is None else str(data.resolve())


def _name_of(data: Path | None) -> str:
    if data is None:
        raise UserError("--task: name a task, or the folder of your images with --data DIR")
    if is_hub_id(data):
        return data.parts[1] if len(data.parts) > 1 else data.name
    path = data.resolve()
    folder = path.parent if path.name == "images.zip" else path
    for task, layout in archives.LAYOUTS.items():
        if layout.folder and folder.name == layout.folder:
            return task
    return folder.stem if folder.is_file() else folder.name


def _known(name: str) -> str:
    """Return the task's own name where `name` is one that its folder goes by, else `name`."""
    return ALIASES.get(name, name)


def read_data(data: Path) -> tuple[str, Parts | None]:
    """Name the task of `data` as `find_task` does and list its images; no image is decoded.

    None in place of them where `data` is a folder of class folders. A training part may be missing
    where the data says which part images are of.

    Raises
    ------
    UserError
        It is not there, or not usable; see the readers.
    """
    _check_there(data)
    name = _known(_name_of(data))
    found = _read_known(name, data, download=False, training=False)
    return name, None if found is None else found[0]


def _check_there(data: Path) -> None:
    if not (data.exists() or is_hub_id(data)):
        raise UserError(
            f"--data {data}: no such file or folder; name the folder that holds the images"
        )


def _read(name: str, data: Path | None, download: bool) -> tuple[Parts, bool]:
    """Read the files of a task, and say whether they may be anybody's rather than the known ones.

    A folder in a layout that known data sets also come in is taken for the one of that name.
    """
    found = _read_known(name, data, download)
    if found is not None:
        return found
    if data is not None:
        return read_folder(data), True
    if name == "digits":
        return _digits(), False
    raise UserError(_unknown(name))


def _read_known(
    name: str, data: Path | None, download: bool, *, training: bool = True
) -> tuple[Parts, bool] | None:
    """Do as `_read` but for class folders and for what is in no folder: None for these."""
    task = VTAB.get(name)
    if data is not None and is_hub_id(data):
        return read_parquet(fetch_parquet(data), task, str(data)), task is None
    if task is not None and (parts := _read_benchmark(task, data)) is not None:
        return parts, False
    if name in archives.LAYOUTS and (data is None or archives.find_root(name, data) is not None):
        return archives.read_torchvision(name, data, download=download), False
    if data is not None and (parts := _read_files(data, task, training)) is not None:
        return parts, task is None or is_zipped(data)
    sets = [] if data is None else _sets_in(data)
    own = data is not None and not sets and is_class_folder(data)
    if name in archives.LAYOUTS and (download or not own):
        return archives.read_torchvision(name, data, download=download), False
    if task is not None and not own and not (data is not None and data.is_file()):
        raise UserError(missing(task, data or archives.DEFAULT_DATA))
    if data is not None:
        if not data.is_dir():
            raise UserError(
                f"--data {data}: neither a folder nor a zip file; name a folder of class folders "
                "or of parquet files, or a zip file with labels.csv"
            )
        if sets:
            raise UserError(
                f"--data {data}: holds {len(sets):,} data set(s), such as {sets[0]}, not class "
                "folders; name one with --task, or rename the folder if it is a class of yours"
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
    base = archives.DEFAULT_DATA if data is None else data
    for root in (base / BENCHMARK, base):
        for folder in (root / name for name in (*task.folders, task.name)):
            if is_listed(folder):
                return read_lists(folder, task)
            if parquet_files(folder):
                return read_parquet(folder, task)
    return None


def _unknown(name: str) -> str:
    if name in FAMILIES:
        return (
            f"--task {name}: its images are not installed; name the folder that holds images.zip "
            "and labels.csv, or class folders, with --data DIR"
        )
    found = get_close_matches(name.lower(), FAMILIES, n=6, cutoff=0.5)
    near = list(dict.fromkeys(map(_known, found)))[:3]
    names = near or ["digits", *dict.fromkeys([*archives.LAYOUTS, *VTAB]), *generated.KINDS]
    return (
        f"--task {name}: no such task ({'near' if near else 'known'}: {', '.join(names)}); for "
        "images of your own name their folder with --data DIR"
    )


def _digits() -> Parts:
    """scikit-learn's handwritten digits, 8 x 8: 1,000 train, 797 test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "--task digits needs scikit-learn; install hgprompt-edge[server]"
        ) from error
    found = load_digits()
    pixels = np.round(found.images * (255.0 / 16.0)).astype(np.uint8)
    entries = [
        Entry(f"digits/{i:04d}", str(label), partial(_grey, pixels[i]))
        for i, label in enumerate(found.target)
    ]
    return parts_without_test("digits", entries, share=DIGITS_TEST_SHARE)


def _grey(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")


def _generated(name: str, preprocessing: Preprocessing, seed: int, limit: int | None) -> Task:
    size = preprocessing.image_size
    count = GENERATED_IMAGES if limit is None else limit
    images = generated.generate(name, count, size, seed, "train")
    train, validation = split(images.labels, seed)
    return make_task(
        name=name,
        family=FAMILIES[name],
        classes=generated.KINDS[name].classes,
        splits=(
            images.subset(train),
            images.subset(validation),
            generated.generate(name, GENERATED_IMAGES, size, 0, "test"),
        ),
        flips=name not in NO_FLIPS,
    )
