"""A task: decoded images in three splits, and how it is made from files of any layout."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.data.split import (
    VALIDATION_SHARE,
    Indices,
    carve_test,
    sample,
    split,
    split_groups,
)
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import Array, check_storable, sha256_arrays
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.images.picture_hash import Hashes, PictureHash, hash_picture, stack
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, cut_away, to_array

Progress = Callable[[int, int], None]
"""Called with (images decoded, images in all)."""

UNREADABLE_SHARE = 0.01
"""Up to this part of the images, and always one, may be unreadable; they are skipped and named."""


@dataclass(frozen=True)
class Images:
    """The decoded images of one split.

    Attributes
    ----------
    pixels
        `[n, H, W, 3]` uint8, RGB, after resize and crop.
    labels
        `[n]` int64, indices into the task's classes.
    names
        Where each came from: a path below the data folder, or a split name and a number.
    hashes
        Of the pictures as they were decoded, by which copies are found; None: drawn, not read.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    hashes: Hashes | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Images:
        """Those images, in the order of `indices [m]` (int64)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Images(
            self.pixels[chosen],
            self.labels[chosen],
            tuple(self.names[i] for i in chosen),
            None if self.hashes is None else self.hashes.subset(chosen),
        )


@dataclass(frozen=True)
class Task:
    """What to adapt to.

    Attributes
    ----------
    family
        Tasks of one family never serve each other as source and target; empty: none known.
    train, validation
        At most 1,000 images in all by default, 80 % and 20 %.
    test
        Touched once, at the end; empty where the data has no images to spare.
    flips
        Whether a horizontal flip keeps the class.
    unreadable
        Images that could not be read and were skipped.
    digest
        sha256 over classes and the names, labels and pixels of all splits.
    left_out
        Files that lie with the images and are not read.
    data
        Absolute path of the folder or file that the images lie in, or `hf:ORG/NAME`; empty: none.
    cut_away
        Median over training and validation images of the share of the area that the resize rule
        cuts off, in [0, 1).
    grouped
        Copies were kept on one side of the split (`--group-by-hash`).
    """

    name: str
    family: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    flips: bool
    unreadable: tuple[LeftOut, ...]
    digest: str
    left_out: tuple[LeftOut, ...] = ()
    data: str = ""
    cut_away: float = 0.0
    grouped: bool = False


@dataclass(frozen=True)
class Entry:
    """One image that is not decoded yet: `open` returns it upright in RGB or raises.

    Images of one `group` stay in one part; empty: it is by itself.
    """

    name: str
    label: str
    open: Callable[[], Image.Image]
    group: str = ""


class Carve(NamedTuple):
    """How a test part was drawn, as `split.carve_test` takes it."""

    share: float | None
    train_per_class: int | None


@dataclass(frozen=True)
class Parts:
    """What a reader of one layout found.

    Attributes
    ----------
    origin
        The file or folder, for messages.
    validation
        Empty: 20 % of the training images.
    official
        The splits are the data set's own. A class with one training image is then no error.
    classes
        All classes in their order, where the data set says what they are: one may then have no
        training image. Empty: the sorted labels of the training part.
    left_out
        Files that lie there and are not read.
    carve
        How the test part was drawn; None: the data came with it, or has none.
    """

    origin: str
    train: Sequence[Entry]
    validation: Sequence[Entry] = ()
    test: Sequence[Entry] = ()
    official: bool = False
    classes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    carve: Carve | None = None


def parts_without_test(
    origin: str,
    entries: Sequence[Entry],
    *,
    share: float | None = None,
    train_per_class: int | None = None,
    classes: tuple[str, ...] = (),
) -> Parts:
    """Split off a test part as `split.carve_test` does: stratified, the same for every seed.

    `classes` as in `Parts`.

    Raises
    ------
    UserError
        A single class, or a class with one image.
    """
    labels, found = _encode(entries, classes)
    _check_classes(Parts(origin, entries, classes=classes), labels, found)
    rest, test = carve_test(labels, share=share, train_per_class=train_per_class)
    return Parts(
        origin,
        train=[entries[i] for i in rest],
        test=[entries[i] for i in test],
        classes=classes,
        carve=Carve(share, train_per_class),
    )


def build_task(
    parts: Parts,
    preprocessing: Preprocessing,
    *,
    name: str,
    family: str = "",
    flips: bool = True,
    seed: int = 0,
    limit: int | None = 1000,
    progress: Progress | None = None,
) -> Task:
    """Choose, decode and split the images of `parts`.

    Raises
    ------
    UserError
        A single class; a class with one image (a warning where the splits are official); a class
        of the test part without training images (a warning where the classes are given); an image
        in two splits; more than one image and more than 1 % of them unreadable.
    """
    check_parts(parts)
    return decode_parts(
        parts,
        preprocessing,
        name=name,
        family=family,
        flips=flips,
        seed=seed,
        limit=limit,
        progress=progress,
    )


def check_parts(parts: Parts) -> None:
    """Refuse classes and splits that `build_task` refuses, before any image is decoded."""
    train, classes = _encode(parts.train, parts.classes)
    _check_classes(parts, train, classes)
    _check_splits(parts, classes)


def decode_parts(
    parts: Parts,
    preprocessing: Preprocessing,
    *,
    name: str,
    family: str,
    flips: bool,
    seed: int,
    limit: int | None,
    progress: Progress | None,
) -> Task:
    """Do as `build_task` with parts that `check_parts` has taken."""
    train, classes = _encode(parts.train, parts.classes)
    validation, _ = _encode(parts.validation, classes)
    test, _ = _encode(parts.test, classes)
    if limit is not None:
        held = round(VALIDATION_SHARE * limit) if parts.validation else 0
        chosen = sample(train, limit - held, seed, least=1 if parts.validation else 2)
        used = sample(validation, held, seed, least=1)
    else:
        chosen, used = np.arange(len(train)), np.arange(len(validation))
    decoder = _Decoder(preprocessing, len(chosen) + len(used) + len(test), progress)
    train_images = decoder.decode([parts.train[i] for i in chosen], train[chosen])
    validation_images = decoder.decode([parts.validation[i] for i in used], validation[used])
    cut = float(np.median(decoder.cut_away)) if decoder.cut_away else 0.0
    test_images = decoder.decode(parts.test, test)
    check_unreadable(decoder.unreadable, decoder.total, parts.origin)
    if not parts.validation:
        if decoder.unreadable:
            _check_classes(parts, train_images.labels, classes)
        kept, held_out = _hold_out(parts, train_images, classes, seed)
        train_images, validation_images = train_images.subset(kept), train_images.subset(held_out)
    task = make_task(
        name=name,
        family=family,
        classes=classes,
        splits=(train_images, validation_images, test_images),
        flips=flips,
        unreadable=tuple(decoder.unreadable),
        left_out=parts.left_out,
    )
    return replace(task, cut_away=cut)


def _hold_out(
    parts: Parts, images: Images, classes: tuple[str, ...], seed: int
) -> tuple[Indices, Indices]:
    """Draw the validation part, group by group where images have groups: `(train, validation)`."""
    group_of = {entry.name: entry.group for entry in parts.train}
    groups = [group_of[name] for name in images.names]
    if not any(groups):
        return split(images.labels, seed)
    kept, held = split_groups(images.labels, numbers_of(groups), seed)
    for label in np.flatnonzero(np.bincount(images.labels) > 1):
        rows = np.flatnonzero(images.labels == label)
        if np.isin(rows, held).any() and np.isin(rows, kept).any():
            continue
        mine = {groups[i] or images.names[i] for i in rows}
        how = "one group" if len(mine) == 1 else "groups that hold other classes, too"
        raise UserError(
            f"{parts.origin}: the {len(rows):,} training images of the class {classes[label]} are "
            f"{how} (such as {images.names[rows[0]]} and {images.names[rows[1]]}), so that it "
            "cannot both train and validate; add images of other groups, or leave the groups out "
            "(--group-by-hash, the column group)"
        )
    return kept, held


def numbers_of(groups: Sequence[str]) -> Indices:
    """Give each group, by its name, a number; an image without a group is one by itself."""
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(group or f"\0{i}", len(known)) for i, group in enumerate(groups)],
        np.int64,
    )


def make_task(
    *,
    name: str,
    family: str,
    classes: tuple[str, ...],
    splits: tuple[Images, Images, Images],
    flips: bool,
    unreadable: tuple[LeftOut, ...] = (),
    left_out: tuple[LeftOut, ...] = (),
) -> Task:
    """Make a task of decoded splits (train, validation, test), with its digest."""
    arrays: dict[str, Array] = {"classes": _text(classes)}
    for key, images in zip(("train", "validation", "test"), splits, strict=True):
        arrays[f"{key}.pixels"] = images.pixels
        arrays[f"{key}.labels"] = images.labels
        arrays[f"{key}.names"] = _text(images.names)
    digest = sha256_arrays(arrays)
    return Task(name, family, classes, *splits, flips, unreadable, digest, left_out)


def images_beyond(task: Task, everything: Task) -> Images:
    """Training images of `everything` that `task`, a sample of the same data, does not use."""
    used = {*task.train.names, *task.validation.names}
    names = everything.train.names + everything.validation.names
    rows = [i for i, name in enumerate(names) if name not in used]
    pixels = np.concatenate([everything.train.pixels, everything.validation.pixels])
    labels = np.concatenate([everything.train.labels, everything.validation.labels])
    return Images(pixels, labels, names).subset(rows)


class _Decoder:
    """Decodes entries to arrays and keeps those that cannot be read."""

    def __init__(self, preprocessing: Preprocessing, total: int, progress: Progress | None) -> None:
        self.preprocessing = preprocessing
        self.total = total
        self.progress = progress
        self.done = 0
        self.unreadable: list[LeftOut] = []
        self.cut_away: list[float] = []

    def decode(self, entries: Sequence[Entry], labels: Indices) -> Images:
        size = self.preprocessing.image_size
        pixels = np.empty((len(entries), size, size, 3), np.uint8)
        good: list[int] = []
        hashes: list[PictureHash] = []
        for index, entry in enumerate(entries):
            try:
                image = entry.open()
                pixels[len(good)] = to_array(image, self.preprocessing, entry.name)
                self.cut_away.append(cut_away(*image.size, self.preprocessing))
                hashes.append(hash_picture(image))
                good.append(index)
            except UnreadableImageError as error:
                self.unreadable.append(LeftOut(entry.name, error.reason))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        names = tuple(entries[i].name for i in good)
        kept = labels[np.asarray(good, np.int64)]
        return Images(pixels[: len(good)], kept, names, stack(hashes))


def check_unreadable(unreadable: Sequence[LeftOut], total: int, origin: str) -> None:
    """Refuse more than one image and more than `UNREADABLE_SHARE` of `total` that is unreadable."""
    count = len(unreadable)
    if count > max(1, UNREADABLE_SHARE * total):
        some = "; ".join(map(str, unreadable[:3])) + ("; ..." if count > 3 else "")
        raise UserError(
            f"{origin}: {count:,} of {total:,} images cannot be read, more than "
            f"{100 * UNREADABLE_SHARE:.0f} % ({some}); repair or remove them"
        )


def _encode(
    entries: Sequence[Entry], classes: tuple[str, ...] = ()
) -> tuple[Indices, tuple[str, ...]]:
    found = classes or tuple(sorted({entry.label for entry in entries}))
    index = {label: i for i, label in enumerate(found)}
    return np.array([index[entry.label] for entry in entries], np.int64), found


def _check_classes(parts: Parts, labels: Indices, classes: tuple[str, ...]) -> None:
    for label in classes:
        check_storable(label, f"{parts.origin}: the class")
    origin, given = parts.origin, bool(parts.classes)
    counts = np.bincount(labels, minlength=len(classes))
    empty, single = ([classes[i] for i in np.flatnonzero(counts == n)] for n in (0, 1))
    if len(classes) - given * len(empty) < 2:
        here = [label for label in classes if label not in empty]
        what = f"only one class ({here[0]})" if here else "no training images"
        raise UserError(f"{origin}: {what}; a task needs images of two classes at least")
    if empty and not given:
        raise UserError(
            f"{origin}: no readable training image of {_some(empty)}; add some or remove the class"
        )
    if single and not parts.official:
        raise UserError(
            f"{origin}: only one image of {_some(single)}; a class needs two at least, one to "
            "train and one to validate"
        )
    if empty:
        warnings.warn(
            f"{origin}: no training image of {len(empty):,} of the {len(classes):,} classes "
            f"({_some(empty)}), so they are never predicted",
            stacklevel=4,
        )
    if single and parts.official and not parts.validation:
        warnings.warn(
            f"{origin}: the official training split has only one image of {_some(single)}, so "
            "nothing of that class validates",
            stacklevel=4,
        )


def _check_splits(parts: Parts, classes: tuple[str, ...]) -> None:
    for key, entries in (("validation", parts.validation), ("test", parts.test)):
        unknown = sorted({entry.label for entry in entries} - set(classes))
        if unknown:
            raise UserError(
                f"{parts.origin}: the {key} part holds {_some(unknown)}, of which the training "
                "part has no image; add some or remove the class"
            )
    check_once((*parts.train, *parts.validation, *parts.test), parts.origin)


def check_once(entries: Iterable[Entry], origin: str) -> None:
    """Refuse an image that is listed twice."""
    counts = Counter(entry.name for entry in entries)
    double = sorted(name for name, count in counts.items() if count > 1)
    if double:
        raise UserError(
            f"{origin}: {_some(double)} listed more than once; an image belongs to one split and "
            "one class"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def _text(strings: Sequence[str]) -> npt.NDArray[np.uint8]:
    # surrogateescape: names of files need not be UTF-8.
    return np.frombuffer("\0".join(strings).encode("utf-8", "surrogateescape"), np.uint8)
