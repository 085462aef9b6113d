"""The images that a device has seen: class folders where somebody sorted them, or any folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.device.predictor import find_images
from hgprompt_edge.errors import UserError
from hgprompt_edge.preprocess import Preprocessing, UnreadableImageError, read_image

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
        Files that were left out, and why.
    """

    pixels: Pixels
    labels: Labels | None
    unreadable: tuple[str, ...]

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
        No class folders, a folder that is no class of the model, or one class alone.
    """
    names = sorted(p.name for p in _folders(folder))
    if not names:
        raise UserError(
            f"{folder}: holds no class folders; sort the images into one folder a class "
            f"({_some(classes)}), or use --unlabelled"
        )
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UserError(
            f"{folder / unknown[0]}: '{unknown[0]}' is no class of the model ({_some(classes)}); "
            "rename or remove the folder"
        )
    found = [(path, classes.index(name)) for name in names for path in _images(folder / name)]
    places = np.array([place for _, place in found], np.int64)
    rows = _draw_alike(places, limit, seed)
    pixels, read, bad = _read([found[row][0] for row in rows], preprocessing)
    labels = places[rows][read]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"{folder}: holds readable images of {len(np.unique(labels))} of the model's classes; "
            "weights learned from one class alone would predict nothing else: add another class, "
            "or use --unlabelled"
        )
    return Seen(pixels, labels, bad)


def read_unlabelled(
    folder: Path, preprocessing: Preprocessing, *, limit: int | None = None, seed: int = 0
) -> Seen:
    """Read all images below a folder.

    Raises
    ------
    UserError
        No such folder, or fewer than two images in it can be read.
    """
    paths = find_images([folder])
    rows = _draw(len(paths), limit, seed)
    pixels, _, bad = _read([paths[row] for row in rows], preprocessing)
    if len(pixels) < 2:
        raise UserError(f"{folder}: fewer than two of its images can be read; name another folder")
    return Seen(pixels, None, bad)


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
) -> tuple[Pixels, Labels, tuple[str, ...]]:
    """Pixels of the readable ones, their places in `paths`, and what is wrong with the others."""
    side = preprocessing.image_size
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    places: list[int] = []
    bad: list[str] = []
    for place, path in enumerate(paths):
        try:
            pixels[len(places)] = read_image(path, preprocessing)
            places.append(place)
        except UnreadableImageError as error:
            bad.append(f"{path}: {error.reason}")
    return pixels[: len(places)], np.array(places, np.int64), tuple(bad)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; name the one with the images")
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _images(folder: Path) -> list[Path]:
    try:
        return find_images([folder])
    except UserError:  # an empty class folder is no mistake: nothing of it was seen
        return []


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:5])
    return shown if len(classes) <= 5 else f"{shown}, ... {len(classes)} in all"
