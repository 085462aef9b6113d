"""Hashes of pictures: equal pixels, copies that look alike, and pictures that must not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import scene
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from hgprompt_edge.images.decode import open_image
from hgprompt_edge.images.near_pairs import DRAWN_BITS, NEAR_BITS, near_pairs, near_pairs_within
from hgprompt_edge.images.picture_hash import FLAT, HASH_BYTES, Hashes, hash_picture, join, stack


def saved(image: Image.Image, kind: str, **options: object) -> Image.Image:
    data = io.BytesIO()
    image.save(data, kind, **options)
    data.seek(0)
    return open_image(data)


def test_equal_pixels_have_one_digest_whatever_the_file() -> None:
    image = scene(0)
    files = [saved(image, "PNG", compress_level=0), saved(image, "BMP"), saved(image, "TIFF")]
    assert {hash_picture(file) for file in files} == {hash_picture(image)}


def test_one_pixel_or_another_shape_is_another_digest() -> None:
    image = scene(0)
    spot = image.copy()
    spot.putpixel((5, 7), (0, 0, 0))
    reshaped = Image.frombytes("RGB", (120, 160), image.tobytes())
    digests = {hash_picture(one).digest for one in (image, spot, reshaped)}
    assert len(digests) == 3


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (10, 200, 30)])
def test_a_picture_of_one_colour_is_a_copy_of_nothing(colour: tuple[int, int, int]) -> None:
    assert hash_picture(Image.new("RGB", (80, 60), colour)) == (FLAT, b"", b"")


def test_one_other_pixel_makes_a_flat_picture_a_picture() -> None:
    image = Image.new("RGB", (2000, 1500))
    image.putpixel((0, 0), (1, 0, 0))
    assert hash_picture(image).digest != FLAT


def copies(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    return {
        "jpeg": saved(image, "JPEG", quality=50),
        "half": image.resize((width // 2, height // 2)),
        "mirrored": ImageOps.mirror(image),
        "mirrored jpeg": saved(ImageOps.mirror(image), "JPEG", quality=80),
        "dark": ImageEnhance.Brightness(image).enhance(0.7),
        "grey": image.convert("L").convert("RGB"),
        "cropped": image.crop((1, 1, width - 1, height - 1)),
    }


def test_copies_look_alike_and_other_scenes_do_not() -> None:
    pytest.importorskip("imagehash")
    originals = stack([hash_picture(scene(seed)) for seed in range(20)])
    for kind in copies(scene(0)):
        found = stack([hash_picture(copies(scene(seed))[kind]) for seed in range(20)])
        pairs = [
            pair for block in near_pairs(found, originals) for pair in zip(*block[:2], strict=True)
        ]
        assert pairs == [(i, i) for i in range(20)], kind


def test_flat_striped_spotted_and_tiny_pictures_have_no_look() -> None:
    pytest.importorskip("imagehash")
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::9] = 200
    noise = np.random.default_rng(0).integers(100, 102, (90, 90, 3), dtype=np.uint8)
    gradient = Image.linear_gradient("L").convert("RGB")
    spot = Image.new("RGB", (90, 90), "white")
    spot.paste((0, 0, 0), (42, 41, 48, 47))
    for image in (
        spot,
        Image.fromarray(stripes),
        Image.fromarray(noise),
        gradient,
        scene(0, (31, 31)),
    ):
        assert hash_picture(image).look == b""
        assert hash_picture(image).digest != FLAT
    assert hash_picture(scene(0, (32, 32))).look


def drawing(seed: int, ink: str = "black", paper: str = "white") -> Image.Image:
    """Draw a spot with a few corners, about as large as all others and at the same place."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    corners = 80 + rng.uniform(22, 34, (9, 1)) * np.stack([np.sin(angles), np.cos(angles)], 1)
    image = Image.new("RGB", (160, 160), paper)
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=ink)
    return image


@pytest.mark.parametrize("colours", [("black", "white"), ("white", "black"), ("red", "navy")])
def test_drawings_at_one_place_are_no_near_copies_but_their_copies_are(
    colours: tuple[str, str],
) -> None:
    imagehash = pytest.importorskip("imagehash")
    drawings = [drawing(seed, *colours) for seed in range(20)]
    distances = [
        imagehash.phash(one, hash_size=16) - imagehash.phash(other, hash_size=16)
        for one in drawings
        for other in drawings
        if one is not other
    ]
    assert min(distances) <= NEAR_BITS  # so near are they that photographs would be near-copies
    hashes = stack([hash_picture(one) for one in drawings])
    assert hashes.looks.any(1).all()
    assert hashes.plain.all()
    assert not [pair for block in near_pairs_within(hashes) for pair in zip(*block, strict=True)]
    for kind in ("jpeg", "half", "mirrored", "mirrored jpeg", "dark"):
        found = stack([hash_picture(copies(one)[kind]) for one in drawings])
        pairs = [pair for block in near_pairs(found, hashes) for pair in zip(*block, strict=True)]
        assert [pair[:2] for pair in pairs] == [(i, i) for i in range(20)], kind


def test_a_plain_ground_is_told_by_the_first_bit_alone() -> None:
    imagehash = pytest.importorskip("imagehash")
    for image, plain in ((drawing(0), True), (scene(0), False)):
        side = (64, 64)
        grey = image.resize(side, Image.Resampling.BILINEAR, reducing_gap=2.0).convert("L")
        theirs = imagehash.phash(grey, hash_size=16).hash.ravel()
        ours = np.unpackbits(np.frombuffer(hash_picture(image).look, np.uint8)).astype(bool)
        assert theirs[0]
        assert ours[0] != plain
        assert (theirs[1:] == ours[1:]).all()


def random_hashes(count: int, seed: int, lookless: bool = False) -> Hashes:
    """Hashes of which some are close to each other, and some have no look."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(1, 256, (count, HASH_BYTES), dtype=np.uint8)
    for i in range(1, count, 3):
        flips = np.zeros(8 * HASH_BYTES, np.uint8)
        flips[rng.permutation(len(flips))[: rng.integers(5, 55)]] = 1
        looks[i] = looks[i - 1] ^ np.packbits(flips)
    mirrored = np.roll(looks, 1, axis=0)
    if lookless:
        looks[::5] = 0
        mirrored[::5] = 0
    return Hashes(np.arange(1, count + 1, dtype=np.uint64), looks, mirrored)


def expected(first: Hashes, second: Hashes) -> set[tuple[int, int, int]]:
    def bits(a: np.ndarray, b: np.ndarray) -> int:
        return sum(bin(x ^ y).count("1") for x, y in zip(a.tolist(), b.tolist(), strict=True))

    found = set()
    for i in range(len(first)):
        for j in range(len(second)):
            if first.looks[i].any() and second.looks[j].any():
                least = min(
                    bits(rows[i], second.looks[j]) for rows in (first.looks, first.mirrored)
                )
                drawn = min(first.looks[i][0], second.looks[j][0]) < 128
                if least <= (DRAWN_BITS if drawn else NEAR_BITS):
                    found.add((i, j, least))
    return found


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.booleans())
def test_pairs_are_those_of_a_count_bit_by_bit(
    count: int, others: int, seed: int, lookless: bool
) -> None:
    first, second = random_hashes(count, seed, lookless), random_hashes(others, seed, lookless)
    found = {
        tuple(map(int, pair))
        for block in near_pairs(first, second)
        for pair in zip(*block, strict=True)
    }
    assert found == expected(first, second)


def test_blocks_leave_no_pair_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = random_hashes(60, 1)
    whole = [pair for block in near_pairs_within(hashes) for pair in zip(*block, strict=True)]
    monkeypatch.setattr("hgprompt_edge.images.near_pairs.ROWS", 7)
    monkeypatch.setattr("hgprompt_edge.images.near_pairs.COLUMNS", 11)
    blocks = [pair for block in near_pairs_within(hashes) for pair in zip(*block, strict=True)]
    assert sorted(blocks) == sorted(whole)
    assert len(set(blocks)) == len(blocks)
    assert all(i < j for i, j, _ in whole)
    assert {(i, j) for i, j, _ in whole} == {
        (i, j) for i, j, _ in expected(hashes, hashes) if i < j
    }


def test_hashes_are_chosen_and_joined_in_order() -> None:
    first, second = random_hashes(4, 0), random_hashes(3, 1)
    both = join([first, second]).subset([5, 0])
    assert both.digests.tolist() == [2, 1]
    assert (both.looks == [second.looks[1], first.looks[0]]).all()
