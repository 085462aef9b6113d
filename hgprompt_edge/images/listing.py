"""The one listing of files: which images lie in a folder, and what was left out and why.

Every command that takes a folder lists it here, so that the same folder means the same images
everywhere. What is left out is named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hgprompt_edge.errors import FileError, os_reason
from hgprompt_edge.images.image_names import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    is_image_name,
    suffix_of,
    why_not_file,
    why_not_folder,
)


@dataclass(frozen=True)
class LeftOut:
    """A file that lies there and is not used, and a phrase that says why.

    Attributes
    ----------
    name
        Its path, as the user would write it.
    reason
        Equal for files that are left out for the same reason.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What was found.

    Attributes
    ----------
    images
        In the order of the paths that were listed, each folder sorted by path.
    left_out
        Files in the folders that are not read.
    missing
        Paths that were listed and hold nothing: no such file, or a folder without images.
    """

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...] = ()
    missing: tuple[LeftOut, ...] = ()


def list_images(paths: Sequence[Path]) -> Listing:
    """List image files in the order given; a folder stands for the images below it.

    A file that is named is taken whatever its suffix. In a folder, links are followed and no folder
    is read twice; dot files and the folders of `SYSTEM_FOLDERS` are left out.
    """
    found: list[Path] = []
    left_out: list[LeftOut] = []
    missing: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            (inside,) = list_folders([path])
            found += inside.images
            left_out += inside.left_out
            if not inside.images:
                why = f" ({summary(inside.left_out)})" if inside.left_out else ""
                missing.append(LeftOut(str(path), f"no images in this folder{why}"))
        elif path.exists():
            found.append(path)
        else:
            missing.append(LeftOut(str(path), "no such file or folder"))
    return Listing(tuple(found), tuple(left_out), tuple(missing))


def list_folders(folders: Sequence[Path]) -> list[Listing]:
    """List the images below each of several folders, none of which is read twice.

    First the folders themselves, then what links in them lead to, so that a link into a folder of
    the list does not take its images away.
    """
    walks = [_Walk() for _ in folders]
    visited = {key for folder in folders for key in _above(folder)}
    visited -= {key for folder in folders if (key := _key(folder)) is not None}
    for folder, walk in zip(folders, walks, strict=True):
        walk.enter(folder, visited)
    while any(walk.links for walk in walks):
        for walk in walks:
            pending, walk.links = walk.links, []
            for link in sorted(pending):
                walk.enter(link, visited)
    return [Listing(tuple(sorted(walk.images)), tuple(walk.left_out)) for walk in walks]


def holds_images(folder: Path) -> bool:
    """Whether images lie in `folder` itself, not in folders below it."""
    return any(is_image_name(path.name) and path.is_file() for path in _entries(folder))


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, links to folders among them, without hidden and system ones.

    Raises
    ------
    UserError
        The folder cannot be read.
    """
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        reason = os_reason(error)
        raise FileError(folder, f"cannot be read ({reason}); name a folder") from error
    return [path for path in found if why_not_folder(path.name) is None]


def beside(folder: Path, reason: str) -> list[LeftOut]:
    """Name the images that lie in `folder` where class folders are read, and in its system folders.

    Parameters
    ----------
    reason
        Why those in `folder` itself are left out.
    """
    found = [
        LeftOut(str(path), reason)
        for path in _entries(folder)
        if is_image_name(path.name) and path.is_file()
    ]
    walk = _Walk()
    for path in _entries(folder):
        why = why_not_folder(path.name)
        if why is not None and path.is_dir() and not path.is_symlink():
            walk.count(path, why)
    return found + walk.left_out


def files_in(folder: Path, suffix: str) -> list[Path]:
    """List the files in a folder that end in `suffix`, sorted, without dot files.

    macOS writes a `._NAME` beside every file that it copies to a foreign disk.
    """
    return [
        path
        for path in _entries(folder)
        if path.name.endswith(suffix) and not path.name.startswith(".") and path.is_file()
    ]


def summary(left_out: Iterable[LeftOut]) -> str:
    """Count files by the reason why they were left out, the most frequent first."""
    counts = Counter(item.reason for item in left_out)
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


@dataclass
class _Walk:
    """The files below one folder."""

    images: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)

    def enter(self, folder: Path, visited: set[tuple[int, int]]) -> None:
        """Read a folder unless it has been read; links to folders are kept for later."""
        key = _key(folder)
        if key in visited:
            self.left_out.append(LeftOut(str(folder), "a link to a folder that is read already"))
            return
        if key is not None:  # else it cannot be read, which is said below
            visited.add(key)
        for entry in self._scan(folder):
            path = Path(entry.path)
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if not is_folder:
                self._take(path)
            elif (why := why_not_folder(entry.name)) is not None:
                self.count(path, why)
            elif entry.is_symlink():
                self.links.append(path)
            else:
                self.enter(path, visited)

    def count(self, folder: Path, why: str) -> None:
        """Name the images below a folder that is left out."""
        for entry in self._scan(folder):
            if entry.is_dir(follow_symlinks=False):
                self.count(Path(entry.path), why)
            elif suffix_of(entry.name) in IMAGE_SUFFIXES | HEIF_SUFFIXES:
                self.left_out.append(LeftOut(entry.path, why))

    def _take(self, path: Path) -> None:
        why = why_not_file(path)
        if why is None:
            self.images.append(path)
        elif why:
            self.left_out.append(LeftOut(str(path), why))

    def _scan(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            reason = os_reason(error)
            self.left_out.append(LeftOut(str(folder), f"a folder that cannot be read ({reason})"))
            return
        yield from found


def _entries(folder: Path) -> list[Path]:
    """List what lies in a folder, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _key(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _above(folder: Path) -> Iterator[tuple[int, int]]:
    """Name the folders above a folder: a link back to them would read everything again."""
    for parent in folder.resolve().parents:
        if (key := _key(parent)) is not None:
            yield key
