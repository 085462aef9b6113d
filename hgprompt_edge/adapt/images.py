"""The images that a device has seen: class folders where somebody sorted them, or any folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.images.listing import LeftOut, beside, list_folders, list_images, subfolders
from hgprompt_edge.images.near_pairs import same_pixels
from hgprompt_edge.images.picture_hash import hash_pixels, stack
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, read_image
from hgprompt_edge.paths import why_not

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """Images as the model takes them.

    Attributes
    ----------
    pixels
        `[n, S, S, 3]` uint8.
    labels
        `[n]`, places of the model's classes, or None.
    unreadable
        Images that cannot be read, and why.
    left_out
        Other files in the folder, and why they are not used.
    twice
        Pairs of paths that are one picture, pixel for pixel as the model takes it, in two classes.
    """

    pixels: Pixels
    labels: Labels | None
    unreadable: tuple[LeftOut, ...]
    left_out: tuple[LeftOut, ...] = ()
    twice: tuple[tuple[str, str], ...] = ()

    def absent(self, classes: Sequence[str]) -> str:
        """Classes of the model without a labelled image, the first few by name; empty: none."""
        if self.labels is None:
            return ""
        here = set(self.labels.tolist())
        missing = [name for place, name in enumerate(classes) if place not in here]
        return _some(missing) if missing else ""


def read_labelled(
    folder: Path,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Seen:
    """Read one folder a class, named as the model's classes are.

    Parameters
    ----------
    limit
        Take so many images at most, drawn at random, of all classes alike.

    Raises
    ------
    UserError
        No class folders, a folder that is not a class of the model, or one class alone.
    """
    names = [path.name for path in _folders(folder)]
    if not names:
        raise FileError(
            folder,
            f"holds no class folders; sort the images into one folder a class ({_some(classes)}), "
            "or use `unlabelled=True`",
        )
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise FileError(
            folder / unknown[0],
            f"'{unknown[0]}' is not a class of the model ({_some(classes)}); rename or remove the "
            "folder",
        )
    # An empty class folder is no mistake: nothing of it was seen.
    listings = list_folders([folder / name for name in names])
    left_out = beside(folder, "beside the class folders")
    left_out += (item for listing in listings for item in listing.left_out)
    found = [
        (path, classes.index(name))
        for name, listing in zip(names, listings, strict=True)
        for path in listing.images
    ]
    places = np.array([place for _, place in found], np.int64)
    rows = _draw_alike(places, limit, seed)
    paths = [found[row][0] for row in rows]
    pixels, read, bad = _read(paths, preprocessing)
    labels = places[rows][read]
    if len(np.unique(labels)) < 2:
        raise FileError(
            folder,
            f"holds readable images of {len(np.unique(labels))} of the model's classes; learning "
            "from one class would make the model predict only that: add another class, or use "
            "`unlabelled=True`",
        )
    twice = tuple(
        (str(paths[read[first]]), str(paths[read[second]]))
        for first, second in zip(
            *same_pixels(stack([hash_pixels(image) for image in pixels]), labels), strict=True
        )
    )
    return Seen(pixels, labels, bad, tuple(left_out), twice)


def read_unlabelled(
    data: Path | Sequence[Path],
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Seen:
    """Read all images below a folder, or those that are named.

    Raises
    ------
    UserError
        No such folder, or fewer than two images in it can be read.
    """
    where = [data] if isinstance(data, Path) else list(data)
    listing = list_images(where)
    if listing.missing:
        missing = listing.missing[0]
        raise ParameterError("data", missing.name, f"{missing.reason}; name a folder of images")
    paths = listing.images
    rows = _draw(len(paths), limit, seed)
    pixels, _, bad = _read([paths[row] for row in rows], preprocessing)
    if len(pixels) < 2:
        raise FileError(
            where[0] if where else "the images",
            "fewer than two of its images can be read; name another folder",
        )
    return Seen(pixels, None, bad, listing.left_out)


def _draw_alike(places: Labels, limit: int | None, seed: int) -> Labels:
    """Rows of the first image of each class, then of the second of each, up to the limit."""
    order = np.random.default_rng(seed).permutation(len(places))
    turn = np.zeros(len(places), np.int64)
    for place in np.unique(places):
        mine = order[places[order] == place]
        turn[mine] = np.arange(len(mine))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])


def _draw(count: int, limit: int | None, seed: int) -> Labels:
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[:limit])


def _read(
    paths: Sequence[Path], preprocessing: Preprocessing
) -> tuple[Pixels, Labels, tuple[LeftOut, ...]]:
    """Pixels of the readable ones, their places in `paths`, and what is wrong with the others."""
    side = preprocessing.image_size
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    places: list[int] = []
    bad: list[LeftOut] = []
    for place, path in enumerate(paths):
        try:
            pixels[len(places)] = read_image(path, preprocessing)
            places.append(place)
        except UnreadableImageError as error:
            bad.append(LeftOut(str(path), error.reason))
    return pixels[: len(places)], np.array(places, np.int64), tuple(bad)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ParameterError(
            "data", folder, f"{why_not(folder, 'folder')}; name the folder of the images"
        )
    return subfolders(folder)


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:5])
    return shown if len(classes) <= 5 else f"{shown}, ... {len(classes)} in all"
