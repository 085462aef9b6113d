"""The one image rule: timm's evaluation transform, and what a decoder may meet."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hgprompt_edge.images.decode import MAX_PIXELS
from hgprompt_edge.images.preprocess import (
    RESAMPLING,
    RULES,
    Preprocessing,
    UnknownRuleError,
    UnreadableImageError,
    cut_away,
    open_image,
    read_image,
    to_array,
)

ROOT = Path(__file__).resolve().parents[1]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def packed(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@settings(max_examples=250, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    size=st.integers(2, 80),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.15]),
    mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(sorted(RESAMPLING)),
)
def test_equals_timm_pixel_for_pixel(
    width: int, height: int, size: int, crop_pct: float, mode: str, interpolation: str
) -> None:
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, size, size),
        is_training=False,
        interpolation=interpolation,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop_pct=crop_pct,
        crop_mode=mode,
    )
    image = noise(width, height, seed=width * 1000 + height)
    expected = (transform(image).permute(1, 2, 0) * 255).round().byte().numpy()
    rule = Preprocessing(size, math.floor(size / crop_pct), mode, interpolation)
    np.testing.assert_array_equal(to_array(image, rule), expected)


@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (224, 224), (225, 231), (50, 61)])
def test_equals_timm_at_224(size: tuple[int, int]) -> None:
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, 224, 224), is_training=False, mean=(0,) * 3, std=(1,) * 3, crop_pct=0.9,
        interpolation="bicubic",
    )  # fmt: skip
    expected = (transform(noise(*size)).permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(to_array(noise(*size), Preprocessing(224, 248)), expected)


MEAN = (0.485, 0.456, 0.406)


def boxed(size: int, interpolation: str = "bicubic") -> Preprocessing:
    own = Preprocessing(size, size + 5, "center", interpolation, MEAN)
    return own.with_rule("letterbox")


@settings(max_examples=250, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    size=st.integers(2, 80),
    interpolation=st.sampled_from(sorted(RESAMPLING)),
)
def test_a_letterbox_equals_timms_border(
    width: int, height: int, size: int, interpolation: str
) -> None:
    data = pytest.importorskip("timm.data")
    transforms = data.create_transform(
        (3, size, size),
        is_training=False,
        interpolation=interpolation,
        mean=MEAN,
        std=(1.0, 1.0, 1.0),
        crop_pct=1.0,
        crop_mode="border",
    ).transforms[:2]
    image = expected = noise(width, height, seed=width * 1000 + height)
    found = to_array(image, boxed(size, interpolation))
    if round(min(width, height) / (max(width, height) / size)) > 0:  # else timm's has no pixels
        for transform in transforms:
            expected = transform(expected)
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(210, 90), (90, 210), (353, 1000), (112, 112), (7, 3)])
def test_a_letterbox_equals_pillows_pad(size: tuple[int, int]) -> None:
    image = noise(*size)  # of an odd remainder Pillow puts the larger half on either side
    expected = ImageOps.pad(image, (112, 112), Image.Resampling.BICUBIC, color=(124, 116, 104))
    np.testing.assert_array_equal(to_array(image, boxed(112)), np.asarray(expected))


@pytest.mark.parametrize("size", [(10_000, 20), (20, 10_000), (200_000, 1)])
def test_a_letterbox_of_a_very_thin_picture_shows_some_of_it(size: tuple[int, int]) -> None:
    pixels = to_array(Image.new("RGB", size, (255, 0, 0)), boxed(64))
    red = (pixels == (255, 0, 0)).all(-1)
    long, short = red.any(np.argmax(size)), red.any(np.argmin(size))
    assert (red.sum(), long.sum(), short.sum()) == (64, 64, 1)


def test_a_letterbox_of_an_upright_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 10).save(tmp_path / "turned.png", exif=exif)
    noise(20, 10).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = (read_image(tmp_path / f"{n}.png", boxed(16)) for n in ("turned", "upright"))
    np.testing.assert_array_equal(turned, upright)
    border = (upright == (124, 116, 104)).all((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(border), [0, 1, 2, 3, 12, 13, 14, 15])


@pytest.mark.parametrize("name", sorted(RULES))
def test_preprocessing_survives_json(name: str) -> None:
    own = Preprocessing(224, 248, "center", "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    rule = own.with_rule(name)
    assert Preprocessing.from_json(rule.to_json()) == rule
    assert rule.with_rule(name) == rule
    assert (rule == own) == (name == "crop")
    assert ("fill" in json.loads(rule.to_json())) == (name == "letterbox")


def test_a_rule_of_a_newer_version_is_refused_by_name() -> None:
    fields = {**json.loads(boxed(64).to_json()), "crop_mode": "seam", "energy": 1}
    with pytest.raises(UnknownRuleError, match="unknown resize rule 'seam', none of center, "):
        Preprocessing.from_json(json.dumps(fields))
    with pytest.raises(UnknownRuleError, match="'seam'"):
        Preprocessing(64, 64, "seam")
    del fields["energy"], fields["crop_mode"]
    with pytest.raises(ValueError, match="fill colour"):
        Preprocessing.from_json(json.dumps(fields))


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize=st.integers(64, 80),
    name=st.sampled_from(sorted(RULES)),
)
def test_what_is_cut_away(width: int, height: int, resize: int, name: str) -> None:
    rule = Preprocessing(64, resize).with_rule(name)
    found = cut_away(width, height, rule)
    if name != "crop":
        assert found == 0
        return
    side = min(width, height) * 64 / resize  # of the square that is seen, in the picture's pixels
    assert found == pytest.approx(1 - side**2 / (width * height), abs=1 / 64)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(TURNS))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise(7, 5)
    upright = np.asarray(open_image(packed(image, kind, exif=exif)))
    np.testing.assert_array_equal(upright, TURNS[orientation](np.asarray(image)))


def test_grey_palette_cmyk_and_alpha_become_rgb() -> None:
    image = noise(9, 6)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(
        np.asarray(open_image(packed(image.convert("L"), "PNG"))), np.stack([grey] * 3, -1)
    )
    bilevel = np.asarray(open_image(packed(image.convert("1"), "PNG")))
    assert set(np.unique(bilevel)) <= {0, 255}
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(
        np.asarray(open_image(packed(palette, "PNG", transparency=0))),
        np.asarray(palette.convert("RGB")),
    )
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(grey))
    np.testing.assert_array_equal(np.asarray(open_image(packed(alpha, "PNG"))), np.asarray(image))
    cmyk = open_image(packed(image.convert("CMYK"), "TIFF"))
    assert np.abs(np.asarray(cmyk).astype(int) - np.asarray(image)).max() <= 2
    assert open_image(packed(image.convert("CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut_off(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    image = Image.fromarray(np.tile(ramp, (4, 1)))
    pixels = np.asarray(open_image(packed(image, kind)))
    np.testing.assert_array_equal(pixels[0, :, 0], np.arange(256))


def test_floating_point_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="floating-point pixels; save it with 8 bits"):
        open_image(packed(Image.new("F", (4, 4), 0.5), "TIFF"), "depth.tif")


def png_claiming(width: int, height: int) -> io.BytesIO:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(
    ("width", "height"), [(16_001, 16_000), (19_000, 19_000), (60_000, 60_000)]
)
def test_decompression_bombs_are_refused_undecoded(width: int, height: int) -> None:
    assert width * height > MAX_PIXELS
    with pytest.raises(UnreadableImageError, match="bomb"):
        open_image(png_claiming(width, height), "bomb.png")


def test_thin_image_that_resizing_would_blow_up_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    Image.new("RGB", (1, 60_000)).save(path)
    with pytest.raises(UnreadableImageError, match=r"thin\.png: too long and thin \(1 x 60000\)"):
        read_image(path, Preprocessing(64, 64))
    assert read_image(path, Preprocessing(64, 64, "squash")).shape == (64, 64, 3)


SMALL_DEVICE = """
import resource, sys
from pathlib import Path
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, read_image

path, room = Path(sys.argv[1]), int(sys.argv[2])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
try:
    print(read_image(path, Preprocessing(8, 8)).shape)
except UnreadableImageError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux alone")
def test_a_large_photo_takes_the_memory_of_one_decoded_copy(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (4000, 3000), "teal").save(path)
    decoded = 4 * 4000 * 3000  # Pillow holds RGB in four bytes
    said = {}
    for share in (0.5, 1.7):
        words = [sys.executable, "-c", SMALL_DEVICE, str(path), str(int(share * decoded))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        said[share] = subprocess.check_output(words, text=True, env=environment).strip()
    assert said[0.5] == f"{path}: needs more memory than there is here; scale it down first"
    assert said[1.7] == "(8, 8, 3)"


def test_messages_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: no such file"):
        open_image(tmp_path / "none.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    with pytest.raises(UnreadableImageError, match=r"text\.jpg: not a readable image \(unknown"):
        open_image(text)
    with pytest.raises(UnreadableImageError, match="not a readable image"):
        open_image(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_read_or_are_unreadable_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"]))
    damaged = bytearray(packed(noise(20, 16), kind).getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 400) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(damaged)))
    try:
        assert open_image(io.BytesIO(bytes(damaged[:length])), "x").mode == "RGB"
    except UnreadableImageError as error:
        assert str(error).startswith("x: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_unreadable(kind: str) -> None:
    whole = packed(noise(60, 60), kind).getvalue()
    with pytest.raises(UnreadableImageError):
        open_image(io.BytesIO(whole[: len(whole) // 2]), f"half.{kind.lower()}")
