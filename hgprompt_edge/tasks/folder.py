"""Images of your own: a folder of class folders."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

from hgprompt_edge.errors import UserError
from hgprompt_edge.preprocess import IMAGE_SUFFIXES, open_image
from hgprompt_edge.tasks.task import Entry, Parts, parts_without_test

TEST_SHARE = 0.2
"""Of a folder that has no test part."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def read_folder(folder: Path) -> Parts:
    """List a folder of class folders, or of `train`, `test` and `val` folders of class folders.

    `FOLDER/CLASS/**/IMAGE`: a seeded, stratified 20 % become the test part, the same for every
    seed of a fit. `FOLDER/train/CLASS/**/IMAGE`, with `test` or `val` (`valid`, `validation`)
    beside it: those are the splits; without `test`, 20 % of `train` become the test part, and what
    else lies there is left out with a warning. Hidden files and files without an image's suffix are
    skipped.

    Raises
    ------
    UserError
        No class folders (the message says what is there), an empty class, a single class, a class
        with one image.
    """
    splits = _split_folders(folder)
    if splits is None:
        entries = _list_classes(folder, folder)
        return parts_without_test(str(folder), entries, share=TEST_SHARE)
    listed = {key: _list_classes(path, folder) for key, path in splits.items()}
    train, validation = listed["train"], listed.get("validation", [])
    if "test" in listed:
        return Parts(str(folder), train, validation, listed["test"], official=True)
    carved = parts_without_test(str(folder), train, share=TEST_SHARE)
    return Parts(carved.origin, carved.train, validation, carved.test)


def is_class_folder(folder: Path) -> bool:
    """Whether `folder` holds folders with images, so that `read_folder` would take it."""
    return folder.is_dir() and any(_has_images(path) for path in _subfolders(folder))


def holds_images(folder: Path) -> bool:
    """Whether images lie in `folder` itself, not in folders below it."""
    return any(_is_image(path, folder) for path in folder.glob("*"))


def _split_folders(folder: Path) -> dict[str, Path] | None:
    """Find the folders of the splits; None where the folder holds classes."""
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in filter(_has_images, _subfolders(folder)):
        key = SPLIT_NAMES.get(path.name.lower())
        if (
            key is not None
            and key not in found
            and is_class_folder(path)
            and not holds_images(path)
        ):
            found[key] = path
        else:
            others.append(path)
    named = [path for path in others if path.name.lower() in SPLIT_NAMES]
    # One folder of folders, called train, may be a class among others; two splits are none.
    if "train" not in found or (others and not named and len(found) == 1):
        return None
    if others:
        names = ", ".join(path.name for path in others)
        warnings.warn(
            f"{folder}: {names} not read, since {found['train'].name} is the training part; lay "
            "the images out as train/CLASS, val/CLASS and test/CLASS to use them",
            stacklevel=2,
        )
    return found


def _list_classes(folder: Path, root: Path) -> list[Entry]:
    entries = []
    empty = []
    for path in _subfolders(folder):
        files = _images(path)
        if not files:
            empty.append(path.name)
        for file in files:
            name = file.relative_to(root).as_posix()
            entries.append(Entry(name, path.name, partial(open_image, file, name)))
    if not entries:
        raise UserError(
            f"{folder}: no class folders with images in it ({_seen(folder)}); lay the images out "
            "as CLASS/IMAGE.jpg"
        )
    if empty:
        raise UserError(
            f"{folder}: the class folder {empty[0]} holds no images "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove it"
        )
    return entries


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--data {folder}: cannot be read ({reason}); name a folder") from error


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path, folder))


def _has_images(folder: Path) -> bool:
    return any(_is_image(path, folder) for path in folder.rglob("*"))


def _is_image(path: Path, root: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )


def _seen(folder: Path) -> str:
    folders = len(_subfolders(folder))
    files = [path for path in folder.iterdir() if path.is_file()]
    images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
    if not folders and not files:
        return "it is empty"
    return f"seen: {folders} folders, {images} images, {len(files) - images} other files"
