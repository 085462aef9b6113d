"""What a reader of any layout finds: images that are not decoded yet, and the part each is in."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from hgprompt_edge.data.split import Indices, carve_test
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.listing import LeftOut
from hgprompt_edge.paths import check_storable


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
    labels, found = encode(entries, classes)
    check_classes(Parts(origin, entries, classes=classes), labels, found)
    rest, test = carve_test(labels, share=share, train_per_class=train_per_class)
    return Parts(
        origin,
        train=[entries[i] for i in rest],
        test=[entries[i] for i in test],
        classes=classes,
        carve=Carve(share, train_per_class),
    )


def check_parts(parts: Parts) -> None:
    """Refuse classes and splits that `build_task` refuses, before any image is decoded."""
    train, classes = encode(parts.train, parts.classes)
    check_classes(parts, train, classes)
    _check_splits(parts, classes)


def encode(
    entries: Sequence[Entry], classes: tuple[str, ...] = ()
) -> tuple[Indices, tuple[str, ...]]:
    """Labels `[n]` int64 of the entries among the `classes`; none given: the sorted labels."""
    found = classes or tuple(sorted({entry.label for entry in entries}))
    index = {label: i for i, label in enumerate(found)}
    return np.array([index[entry.label] for entry in entries], np.int64), found


def check_classes(parts: Parts, labels: Indices, classes: tuple[str, ...]) -> None:
    """Refuse a single class, and classes of too few of the training images' `labels [n]`."""
    for label in classes:
        check_storable(label, f"{parts.origin}: the class")
    origin, given = parts.origin, bool(parts.classes)
    counts = np.bincount(labels, minlength=len(classes))
    empty, single = ([classes[i] for i in np.flatnonzero(counts == n)] for n in (0, 1))
    if len(classes) - given * len(empty) < 2:
        here = [label for label in classes if label not in empty]
        what = f"only one class ('{here[0]}')" if here else "no training images"
        raise FileError(origin, f"{what}; a task needs images of at least two classes")
    if empty and not given:
        raise FileError(
            origin, f"no readable training image of {_some(empty)}; add some or remove the class"
        )
    if single and not parts.official:
        raise FileError(
            origin,
            f"only one image of {_some(single)}; a class needs at least two, one to train and one "
            "to validate",
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
    trained = {entry.label for entry in parts.train}
    for key, entries in (("validation", parts.validation), ("test", parts.test)):
        unknown = sorted({entry.label for entry in entries} - set(classes))
        if unknown:
            raise FileError(
                parts.origin,
                f"the {key} part holds {_some(unknown)}, of which the training part has no image; "
                "add some or remove the class",
            )
        missing = sorted(trained - {entry.label for entry in entries})
        if entries and missing:
            says = "cannot judge" if key == "validation" else "says nothing about"
            warnings.warn(
                f"{parts.origin}: the {key} part has no image of {_some(missing)}, so it {says} "
                f"{'them' if len(missing) > 1 else 'it'}",
                stacklevel=4,
            )
    check_once((*parts.train, *parts.validation, *parts.test), parts.origin)


def check_once(entries: Iterable[Entry], origin: str) -> None:
    """Refuse an image that is listed twice."""
    counts = Counter(entry.name for entry in entries)
    double = sorted(name for name, count in counts.items() if count > 1)
    if double:
        raise FileError(
            origin,
            f"{_some(double)} listed more than once; an image belongs to one split and one class",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"
