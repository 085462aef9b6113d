"""From a name, a folder, a zip file or the hub to a task: `find_task`, then its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hgprompt_edge.data import generated
from hgprompt_edge.data.decode import Progress, decode_parts
from hgprompt_edge.data.known_tasks import BUILT_IN, FAMILIES, NO_FLIPS, own_name
from hgprompt_edge.data.layouts.archives.layouts import DEFAULT_DATA, LAYOUTS
from hgprompt_edge.data.layouts.hub import is_hub_id
from hgprompt_edge.data.layouts.read import check_there, name_of, read_parts
from hgprompt_edge.data.parts import Parts, check_parts
from hgprompt_edge.data.split import split
from hgprompt_edge.data.task import Task, make_task
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import MissingPackageError, ParameterError, argument
from hgprompt_edge.images.picture_hash import sees_near_copies
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.paths import check_storable

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
            raise ParameterError("limit", limit, "must be at least 1, or None for all images")
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
    task: str | None,
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
    task, data, seed, download, group_by_hash
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
    found = find_task(task, data=data, seed=seed, download=download, group_by_hash=group_by_hash)
    return found.load(preprocessing, limit=limit, progress=progress)


def find_task(
    task: str | None,
    *,
    data: Path | None = None,
    seed: int = 0,
    download: bool = False,
    group_by_hash: bool = False,
) -> FoundTask:
    """Find the files of a task and check its classes and splits, without decoding an image.

    `task` is resolved in this order:

    1. a generated task (`generated-count`, ...), which takes no `data`;
    2. a task of VTAB-1k by its name or a usual one of its folder (`vtab.ALIASES`), if `data`
       (default `./data`) or a folder of that name in it, or in its `vtab-1k`, holds the
       benchmark's lists or parquet files, or if `data` is laid out as its archive is
       (`LAYOUTS`);
    3. with `data`: `hf:ORG/NAME` of the hub, lists, `images.zip` with `labels.csv`, parquet files,
       else a folder of class folders, if what `task` means is not to be downloaded; the name is a
       label, and where it or the folder's name is a key of `FAMILIES` it gives family and flips;
    4. `digits`, scikit-learn's.

    A folder that holds whole data sets (`vtab-1k`, lists, a folder of a known name without images
    of its own) is never taken for class folders.

    Lists come with their own training and validation part, which are taken as they are.

    Parameters
    ----------
    task
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
    if task is not None and (task in ("", "..") or Path(task).name != task):
        raise ParameterError(
            "task",
            task,
            "must be a name without folders; name the folder of the images with `data`",
        )
    if data is not None and not download:
        check_there(data)
    label = own_name(task if task is not None else name_of(data))
    check_storable(label, argument("task") if task is not None else "the folder")
    if label in generated.KINDS:
        if data is not None:
            raise ParameterError(
                "data",
                data,
                f"{label} is drawn by hgedge and reads no files; leave `data` out or choose "
                "another name for the task",
            )
        if group_by_hash:
            raise ParameterError(
                "group_by_hash",
                None,
                f"{label} is drawn by hgedge, so there are no files to group; leave it out",
            )
        return FoundTask(label, None, FAMILIES[label], label not in NO_FLIPS, "", False, seed)
    if group_by_hash and not sees_near_copies():
        raise MissingPackageError(argument("group_by_hash"), "ImageHash", "leaks")
    known = label if label in FAMILIES or data is None else own_name(name_of(data))
    parts, own = read_parts(label, data, download)
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
    if data is None and name in (*VTAB, *LAYOUTS):
        data = DEFAULT_DATA
    return "" if data is None else str(data.resolve())


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
