"""Images of your own: a folder of class folders."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os.path import relpath
from pathlib import Path

from hgprompt_edge.data.layouts.part_names import USUAL_NAMES, part_of
from hgprompt_edge.data.parts import Entry, Parts, parts_without_test
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.image_names import is_image_name
from hgprompt_edge.images.listing import (
    LeftOut,
    beside,
    holds_images,
    list_folders,
    subfolders,
    summary,
)
from hgprompt_edge.images.preprocess import open_image

TEST_SHARE = 0.2
"""Of a folder that has no test part."""


@dataclass(frozen=True)
class _Classes:
    """The class folders of one part: their images, and what lies there and is not used."""

    entries: list[Entry]
    left_out: list[LeftOut]


def read_folder(folder: Path) -> Parts:
    """List a folder of class folders, or of `train`, `test` and `val` folders of class folders.

    `FOLDER/CLASS/**/IMAGE`: a seeded, stratified 20 % become the test part, the same for every
    seed of a fit. `FOLDER/train/CLASS/**/IMAGE`, with `test` or `val` beside it, or what else such
    parts are called (`part_names`): those are the splits; without `test`, 20 % of `train` become
    the test part, and what else lies there is left out with a warning. Which files are images is
    said in `listing`.

    Raises
    ------
    UserError
        No class folders (the message says what is there), an empty class, a single class, a class
        with one image; folders that all hold the same folders, so that they may be parts of the
        data or classes.
    """
    listed, left_out = list_parts(folder, ("train",))
    train, validation = listed.get("train", listed.get("", [])), listed.get("validation", [])
    if "test" in listed:
        test = listed["test"]
        return Parts(str(folder), train, validation, test, official=True, left_out=left_out)
    carved = parts_without_test(str(folder), train, share=TEST_SHARE)
    return replace(carved, validation=validation, left_out=left_out)


def list_parts(
    folder: Path, needed: Collection[str] = ()
) -> tuple[dict[str, list[Entry]], tuple[LeftOut, ...]]:
    """List the images of each part that a folder has, and what lies there and is not read.

    Parameters
    ----------
    needed
        Parts without which folders are classes, whatever they are called.

    Returns
    -------
    Entries by part (`train`, `validation`, `test`), all under an empty name where the folder holds
    classes; and what is left out.

    Raises
    ------
    UserError
        As of `read_folder`, but for what only training needs.
    """
    splits = _split_folders(folder, needed)
    if splits is None:
        _check_not_parts(folder)
    places = {"": folder} if splits is None else splits
    found = _list_classes(list(places.values()), folder)
    listed = {part: each.entries for part, each in zip(places, found, strict=True)}
    return listed, tuple(item for each in found for item in each.left_out)


def is_class_folder(folder: Path) -> bool:
    """Whether `folder` holds folders with images, so that `read_folder` would take it."""
    return folder.is_dir() and any(_has_images(path) for path in subfolders(folder))


def _split_folders(folder: Path, needed: Collection[str]) -> dict[str, Path] | None:
    """Find the folders of the splits; None where the folder holds classes."""
    found: dict[str, Path] = {}
    others: list[Path] = []
    # Where two names mean one part, the usual one has it: test before eval.
    for path in sorted(filter(_has_images, subfolders(folder)), key=_unusual):
        key = part_of(path.name)
        if (
            key is not None
            and key not in found
            and is_class_folder(path)
            and not holds_images(path)
        ):
            found[key] = path
        else:
            others.append(path)
    named = [path for path in others if part_of(path.name)]
    # One folder of folders, called train, may be a class among others; two splits are none.
    if not found or not found.keys() >= set(needed):
        return None
    if others and not named and len(found) == 1:
        return None
    for path in subfolders(folder):
        if part_of(path.name) not in (None, *found) and not _has_images(path):
            warnings.warn(
                f"{folder}: {path.name} holds no images, so images of train take their place; put "
                "some there or remove it",
                stacklevel=2,
            )
    if others:
        names = ", ".join(path.name for path in others)
        part = "train" if "train" in found else min(found)
        what = "training" if part == "train" else part
        warnings.warn(
            f"{folder}: {names} not read, since {found[part].name} is the {what} part; lay "
            "the images out as train/CLASS, val/CLASS and test/CLASS to use them",
            stacklevel=2,
        )
    return found


def _unusual(folder: Path) -> tuple[bool, str]:
    return folder.name.lower() not in USUAL_NAMES, folder.name


def _check_not_parts(folder: Path) -> None:
    """Refuse folders that all hold the same folders: parts of the data, not classes."""
    classes = [path for path in subfolders(folder) if _has_images(path)]
    if len(classes) < 2 or any(holds_images(path) for path in classes):
        return
    inner = [{sub.name for sub in subfolders(path) if _has_images(sub)} for path in classes]
    common = sorted(set.intersection(*inner))
    # One name in common is a habit (cat/images, dog/images); several are the classes.
    if len(common) < 2:
        return
    here = ", ".join(path.name for path in classes[:3])
    raise FileError(
        folder,
        f"{here} all hold the folders {', '.join(common[:3])}, so they may be parts of the data "
        "rather than classes; call the parts train, val and test, or put the images of each "
        "class into one folder without folders in it",
    )


def _list_classes(parents: Sequence[Path], root: Path) -> list[_Classes]:
    """List the class folders in each of `parents`; no folder is read twice."""
    classes = [subfolders(parent) for parent in parents]
    listings = iter(list_folders([path for paths in classes for path in paths]))
    found = []
    for parent, paths in zip(parents, classes, strict=True):
        entries = []
        left_out = beside(parent, "beside the class folders")
        empty: dict[str, list[LeftOut]] = {}
        for path in paths:
            listing = next(listings)
            left_out += listing.left_out
            if not listing.images:
                empty[path.name] = list(listing.left_out)
            for file in listing.images:
                name = _name(file, root)
                entries.append(Entry(name, path.name, partial(open_image, file, name)))
        if not entries:
            raise FileError(
                parent,
                f"no class folders with images in it ({_seen(parent)}); lay the images out as "
                "CLASS/IMAGE.jpg",
            )
        for name, why in empty.items():
            seen = f" ({summary(why)})" if why else ""
            raise FileError(
                parent, f"the class folder '{name}' has no images{seen}; add some or remove it"
            )
        found.append(
            _Classes(entries, [LeftOut(_name(item.name, root), item.reason) for item in left_out])
        )
    return found


def _name(path: Path | str, root: Path) -> str:
    return Path(relpath(path, root)).as_posix()


def _has_images(folder: Path) -> bool:
    return bool(list_folders([folder])[0].images)


def _seen(folder: Path) -> str:
    folders = len(subfolders(folder))
    files = [path for path in folder.iterdir() if path.is_file()]
    images = sum(is_image_name(path.name) for path in files)
    if not folders and not files:
        return "it is empty"
    counts = {"folder": folders, "image": images, "other file": len(files) - images}
    words = [f"{count:,} {what}{'s'[: count != 1]}" for what, count in counts.items()]
    return f"it has {words[0]}, {words[1]} and {words[2]}"
