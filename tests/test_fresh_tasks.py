"""The fresh families of the studies: reproducible, and labelled by what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hgprompt_edge.data.known_tasks import FAMILIES
from hgprompt_edge.images.preprocess import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("torch")

from shared import fresh_tasks as fresh

RULE = Preprocessing(64, 64)


def shown(name: str, count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    images = fresh._images(name, count, size, 0, 0)
    return images.pixels, images.labels


def distance(image: np.ndarray) -> np.ndarray:
    """Largest difference of a pixel's channels to the image's median colour."""
    return np.abs(image.astype(int) - np.median(image, axis=(0, 1))).max(-1)


@pytest.mark.parametrize("name", fresh.FRESH)
def test_as_a_task(name: str) -> None:
    rule = Preprocessing(16, 16)
    task, other = fresh.load_fresh(name, rule, 0), fresh.load_fresh(name, rule, 1)
    assert (len(task.train), len(task.validation), len(task.test)) == (320, 80, 400)
    assert task.family == name
    assert name not in FAMILIES.values()
    np.testing.assert_array_equal(task.test.pixels, other.test.pixels)
    parts = [task.train, task.validation, task.test, other.train, other.validation]
    pixels = np.concatenate([part.pixels.reshape(len(part), -1) for part in parts])
    assert len(np.unique(pixels, axis=0)) == len(pixels)
    for part in (task.train, task.validation, task.test):
        counts = np.bincount(part.labels, minlength=len(task.classes))
        assert counts.max() - counts.min() <= 1


def test_rings_are_as_many_as_the_label_says() -> None:
    """Rings cut the background into one part more than there are rings."""
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels, labels = shown("fresh-rings", 90, 112)
    right = 0
    for image, label in zip(pixels, labels, strict=True):
        parts, _ = ndimage.label(distance(image) < 60)
        right += (np.bincount(parts.ravel())[1:] > 30).sum() == label + 2
    assert right / 90 > 0.75


def test_tallest_bar_is_that_of_the_label() -> None:
    pixels, labels = shown("fresh-bars", 90)
    right = 0
    for image, label in zip(pixels, labels, strict=True):
        # Above the middle of the tallest bar is only a little else, the upright axis above all.
        heights = (distance(image) > 60)[:, 8:].sum(axis=0)
        top = 8 + np.flatnonzero(heights >= heights.max() - 2).mean()
        right += abs(top / 64 * 6 - 0.5 - label) < 1.0
    assert right / 90 > 0.7


def test_patterns_have_the_axes_of_their_label() -> None:
    """Any place may hold the pattern: take the square that stands out least when mirrored."""
    pixels, labels = shown("fresh-symmetry", 40)
    grey = pixels.astype(float).mean(-1)

    def asymmetry(image: np.ndarray, axis: int) -> float:
        """Least share of differing pixels over where the axis can lie, in the middle rows."""
        shares = []
        for middle in range(20, 45):
            half = min(middle, 64 - middle, 18)
            near = np.take(image, np.arange(middle - half, middle), axis)
            far = np.take(image, np.arange(middle, middle + half), axis)
            near, far = near[::-1] if axis == 0 else near[:, ::-1], far
            inside = slice(20, 44)
            cut = (slice(None), inside) if axis == 0 else (inside, slice(None))
            shares.append((np.abs(near - far)[cut] > 45).mean())
        return min(shares)

    upright = np.array([asymmetry(image, 1) for image in grey])
    level = np.array([asymmetry(image, 0) for image in grey])
    assert upright[labels % 2 == 1].mean() < 0.5 * upright[labels == 0].mean()
    assert level[labels >= 2].mean() < 0.5 * level[labels == 0].mean()
    assert level[labels == 1].mean() > 2 * level[labels >= 2].mean()


def test_hand_points_at_the_hour() -> None:
    pixels, labels = shown("fresh-clock", 120, 96)
    # In the mean over pictures the hand leaves a trace: towards its hour pixels vary most.
    y, x = (np.mgrid[:96, :96] - 47.5) / 96
    turn = (np.degrees(np.arctan2(x, -y)) + 360.0) % 360.0
    edges = np.abs(np.diff(pixels.astype(float).mean(-1), axis=2, append=0))
    ring = (np.hypot(x, y) > 0.12) & (np.hypot(x, y) < 0.2)
    found = []
    for hour in range(12):
        mean = edges[labels == hour].mean(axis=0)
        parts = [
            mean[ring & (np.abs((turn - 30.0 * h + 180.0) % 360.0 - 180.0) < 15.0)].mean()
            for h in range(12)
        ]
        found.append(int(np.argmax(parts)))
    assert (np.array(found) == np.arange(12)).mean() > 0.6
