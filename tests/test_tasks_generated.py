"""Generated tasks: the same image for the same place, no overlap, solvable, fast enough."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hgprompt_edge.errors import UserError
from hgprompt_edge.preprocess import Preprocessing
from hgprompt_edge.tasks import load_task
from hgprompt_edge.tasks.generated import KINDS, generate

kinds = pytest.mark.parametrize("kind", sorted(KINDS))


@kinds
@pytest.mark.parametrize("size", [8, 33, 64])
def test_shapes_and_balance(kind: str, size: int) -> None:
    images = generate(kind, 40, size, 3, "train")
    assert images.pixels.shape == (40, size, size, 3)
    assert images.pixels.dtype == np.uint8
    counts = np.bincount(images.labels, minlength=len(KINDS[kind].classes))
    assert counts.max() - counts.min() <= 1
    assert (images.pixels.std(axis=(1, 2)).max(axis=1) > 2).all()


@kinds
def test_image_depends_on_seed_split_and_place_alone(kind: str) -> None:
    few, many = generate(kind, 5, 32, 7, "train"), generate(kind, 20, 32, 7, "train")
    np.testing.assert_array_equal(few.pixels, many.pixels[:5])
    assert few.names == many.names[:5]


@kinds
def test_no_image_in_two_splits_or_seeds(kind: str) -> None:
    parts = [generate(kind, 60, 16, s, p) for s in (0, 1) for p in ("train", "validation", "test")]
    pixels = np.concatenate([part.pixels for part in parts]).reshape(360, -1)
    assert len(np.unique(pixels, axis=0)) == 360
    assert len({name for part in parts for name in part.names}) == 360


def colour_distance(image: np.ndarray) -> np.ndarray:
    """Largest difference of a pixel's channels to the image's median colour."""
    return np.abs(image.astype(int) - np.median(image, axis=(0, 1))).max(-1)


def test_bar_stands_at_its_angle() -> None:
    """The largest thing that differs from the background is the bar, with what touches it."""
    ndimage = pytest.importorskip("scipy.ndimage")
    images = generate("generated-orientation", 160, 64, 0, "train")
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        parts, _ = ndimage.label(colour_distance(pixels) > 55)
        y, x = np.nonzero(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
        _, vectors = np.linalg.eigh(np.cov(x, -y))
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        right += round(angle / 22.5) % 8 == label
    assert right / 160 > 0.85


def test_shapes_are_as_many_as_the_label_says() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = generate("generated-count", 160, 128, 0, "train")
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        mask = ndimage.binary_opening(colour_distance(pixels) > 58, iterations=1)
        right += ndimage.label(mask)[1] == label + 1
    assert right / 160 > 0.8


def test_target_is_in_its_cell() -> None:
    """The ring is black or white: nothing else in the image has so little colour."""
    images = generate("generated-location", 180, 64, 0, "train")
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        grey = np.ptp(pixels.astype(int), axis=-1) < 70
        ends = (pixels.max(-1) < 75) | (pixels.min(-1) > 180)
        y, x = np.nonzero(grey & ends & (colour_distance(pixels) > 40))
        if len(y):
            cell = int(np.median(y) * 3 / 64) * 3 + int(np.median(x) * 3 / 64)
            right += cell == label
    assert right / 180 > 0.6


@kinds
def test_as_a_task(kind: str) -> None:
    rule = Preprocessing(16, 16)
    task = load_task(kind, rule)
    assert (task.name, task.family) == (kind, "generated")
    assert task.flips == (kind == "generated-count")
    assert (len(task.train), len(task.validation), len(task.test)) == (800, 200, 1000)
    assert task.train.pixels.shape[1:] == (16, 16, 3)
    assert not {*task.train.names} & {*task.validation.names}
    other = load_task(kind, rule, seed=1, limit=100)
    assert len(other.train) + len(other.validation) == 100
    np.testing.assert_array_equal(other.test.pixels, task.test.pixels)


def test_refusals() -> None:
    with pytest.raises(UserError, match="generated tasks are generated-orientation"):
        generate("generated-colour", 1, 8, 0, "train")
    with pytest.raises(UserError, match="split 'dev' is unknown"):
        generate("generated-count", 1, 8, 0, "dev")


@pytest.mark.slow
@kinds
def test_two_thousand_images_a_second(kind: str) -> None:
    start = time.process_time()
    generate(kind, 1000, 64, 0, "train")
    assert time.process_time() - start < 0.5
