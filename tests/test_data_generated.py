"""Generated tasks: the same image for the same place, no overlap, solvable, fast enough."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hgprompt_edge.data import load_task
from hgprompt_edge.data.generated import KINDS, generate
from hgprompt_edge.data.generated.characters import _folder, _glyph
from hgprompt_edge.data.known_tasks import FAMILIES, NO_FLIPS
from hgprompt_edge.data.vtab import VTAB
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

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


def test_families_and_flips() -> None:
    families = {kind: described.family for kind, described in KINDS.items()}
    # A target of VTAB must not be served by pictures that imitate its own.
    for kind, family in families.items():
        assert FAMILIES[kind] == family
        assert KINDS[kind].flips == (kind not in NO_FLIPS)
    for name, task in VTAB.items():
        if task.like:
            assert families[task.like] == task.family, name
            assert KINDS[task.like].flips == task.flips


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


def test_sprite_is_in_its_column() -> None:
    images = generate("generated-sprite-location", 64, 64, 0, "train")
    middle = (images.pixels[..., 0].astype(float) * (np.arange(64) + 0.5)).sum((1, 2))
    middle /= images.pixels[..., 0].sum((1, 2))
    # Columns are two pixels wide; the middle of a heart's mass is not that of its outline.
    assert np.abs(middle - (17 + 2 * images.labels)).max() < 2.5
    assert np.corrcoef(middle, images.labels)[0, 1] > 0.98


def test_sprites_of_one_label_have_one_orientation() -> None:
    """The long axis of an ellipse turns by 22.5 degrees from one class to the next."""
    images = generate("generated-sprite-orientation", 320, 64, 0, "train")
    found = 0
    for pixels, label in zip(images.pixels[..., 0], images.labels, strict=True):
        y, x = np.nonzero(pixels > 128)
        values, vectors = np.linalg.eigh(np.cov(x, y))
        if values[1] > 2.5 * values[0]:
            found += 1
            angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) - 90.0
            off = (angle - 22.5 * (label + 0.4) + 90.0) % 180.0 - 90.0
            assert abs(off) < 20.0
            assert label < 8
    assert found > 40


def test_solids_are_as_many_as_the_label_says() -> None:
    """Colours stand out from the grey ground; neighbours may touch, grey ones are not counted."""
    ndimage = pytest.importorskip("scipy.ndimage")
    images = generate("generated-solid-count", 80, 96, 0, "train")
    found = [
        ndimage.label(ndimage.binary_opening(np.ptp(pixels.astype(int), axis=-1) > 60))[1]
        for pixels in images.pixels
    ]
    assert np.corrcoef(found, images.labels)[0, 1] > 0.6


def test_nearest_solid_is_as_near_as_the_label_says() -> None:
    """The lowest place of something coloured is higher up the farther the nearest solid is."""
    images = generate("generated-solid-distance", 120, 64, 0, "train")
    coloured = np.ptp(images.pixels.astype(int), axis=-1).max(axis=2) > 70
    lowest = [np.flatnonzero(rows).max() if rows.any() else 0 for rows in coloured]
    assert np.corrcoef(lowest, images.labels)[0, 1] < -0.6


def test_objects_turn_with_the_azimuth() -> None:
    """Seen from the left and from the right, objects look left and right: mirrored in the mean."""
    images = generate("generated-object-azimuth", 600, 32, 0, "train")
    edges = np.abs(np.diff(images.pixels.astype(float).mean(-1), axis=1))
    mean = np.stack([edges[images.labels == k].mean(axis=0) for k in range(12)])
    left, right = mean[3], mean[9]
    assert np.abs(left - right[:, ::-1]).mean() < 0.9 * np.abs(left - right).mean()


def test_light_comes_from_its_side() -> None:
    """Towards the light, a bump gets brighter slowly and darker at its outline at once."""
    images = generate("generated-gradient", 80, 64, 0, "train")
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        grey = pixels.astype(float).mean(-1)
        down, across = np.gradient(grey)
        turn = np.radians(45.0 * np.arange(8))
        steps = np.cos(turn)[:, None, None] * across - np.sin(turn)[:, None, None] * down
        skew = (steps**3).mean(axis=(1, 2))
        right += abs((int(skew.argmin()) - label + 4) % 8 - 4) <= 1
    assert right / 80 > 0.75


def test_curves_cross_as_often_as_the_label_says() -> None:
    """Between two curves that cross k times lie k - 1 closed loops."""
    ndimage = pytest.importorskip("scipy.ndimage")
    images = generate("generated-intersections", 90, 112, 0, "train")
    right = 0
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        parts, _ = ndimage.label(colour_distance(pixels) <= 45)
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        right += (sizes[1:] > 12).sum() == max(0, label - 1)
    assert right / 90 > 0.6


def test_textures_have_the_spectra_of_their_names() -> None:
    """Stripes have one strong direction, grain has none."""
    images = generate("generated-texture", 96, 64, 0, "train")
    names = np.array(KINDS["generated-texture"].classes)[images.labels]

    def directed(pixels: np.ndarray) -> float:
        down, across = np.gradient(pixels.astype(float).mean(-1))
        low, high = np.linalg.eigvalsh(np.cov(across.ravel(), down.ravel()))
        return float(high / low)

    ratio = np.array([directed(pixels) for pixels in images.pixels])
    assert ratio[names == "stripes"].min() > 2.0
    assert ratio[names == "grain"].max() < 1.5
    assert np.median(ratio[names == "checks"]) < 2.0


def test_letters_need_the_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgprompt_edge.data.generated.characters.find_spec", lambda _: None)
    _folder.cache_clear()
    _glyph.cache_clear()
    with pytest.raises(UserError, match="needs matplotlib, which is not installed"):
        generate("generated-character", 1, 16, 0, "train")
    _folder.cache_clear()


@pytest.mark.parametrize("kind", ["generated-count", "generated-sprite-location"])
def test_as_a_task(kind: str) -> None:
    rule = Preprocessing(16, 16)
    task = load_task(kind, rule)
    assert (task.name, task.family, task.flips) == (kind, KINDS[kind].family, KINDS[kind].flips)
    assert (len(task.train), len(task.validation), len(task.test)) == (800, 200, 1000)
    assert task.train.pixels.shape[1:] == (16, 16, 3)
    assert not {*task.train.names} & {*task.validation.names}
    other = load_task(kind, rule, seed=1, limit=100)
    assert len(other.train) + len(other.validation) == 100
    np.testing.assert_array_equal(other.test.pixels, task.test.pixels)


def test_refusals() -> None:
    with pytest.raises(UserError, match="generated tasks are generated-orientation"):
        generate("generated-colour", 1, 8, 0, "train")
    with pytest.raises(UserError, match="`split='dev'`: unknown"):
        generate("generated-count", 1, 8, 0, "dev")


@pytest.mark.slow
@kinds
def test_a_training_epoch_takes_less_than_four_seconds(kind: str) -> None:
    start = time.process_time()
    generate(kind, 1000, 112, 0, "train")
    assert time.process_time() - start < 4.0
