"""Odd metadata, deep pixels and large photographs: what they become, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from hgprompt_edge.images import decode
from hgprompt_edge.images.decode import UnreadableImageError, open_image

ROOT = Path(__file__).resolve().parents[1]
Array = npt.NDArray[np.integer]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 255 // height, columns * 255 // width, (rows + columns) % 256)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def packed(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def grey_tiff(values: Array, bits: int, **tags: int) -> io.BytesIO:
    """Write one strip of grey: samples of `bits` bits, and tags by their names below."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2)
        packs = np.stack(
            [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1
        )
        strip = packs.astype(np.uint8).tobytes()
    else:
        strip = values.astype(f"<i{bits // 8}" if values.min() < 0 else f"<u{bits // 8}").tobytes()
    numbers = {"bits": 258, "photometric": 262, "maximum": 281, "format": 339}
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    fields |= {279: len(strip)} | {numbers[name]: value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    start = 8 + len(strip)
    head = struct.pack("<2sHL", b"II", 42, start)
    return io.BytesIO(head + strip + struct.pack("<H", len(fields)) + entries + bytes(4))


def odd_exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """An orientation of 6 and one tag of any kind, in the order that EXIF asks for."""
    entries = sorted([(0x0112, 3, 1, b"\6\0\0\0"), (tag, kind, count, value)])
    body = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + body + bytes(range(64))


@given(
    tag=st.integers(0, 0xFFFF).filter(lambda tag: tag != 0x0112),
    kind=st.integers(0, 14),
    count=st.sampled_from([0, 1, 3, 50, 2**31, 2**32 - 1]),
    value=st.binary(min_size=4, max_size=4),
    form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
@example(tag=0x011A, kind=10, count=1, value=b"\x30\0\0\0", form="JPEG")  # a resolution
@example(tag=0x010E, kind=2, count=2**31, value=b"\xff\xff\xff\x7f", form="JPEG")  # before it
@example(tag=0x8769, kind=4, count=1, value=b"\x08\0\0\0", form="JPEG")  # a folder in a ring
def test_one_odd_tag_costs_neither_the_picture_nor_its_orientation(
    tag: int, kind: int, count: int, value: bytes, form: str
) -> None:
    plain = packed(noise(12, 8), form)
    expected = np.rot90(np.asarray(open_image(plain)), -1)
    plain.seek(0)
    odd = packed(Image.open(plain), form, exif=odd_exif(tag, kind, count, value))
    if form != "PNG":  # saved again, so that only the shape tells the orientation
        assert open_image(odd, "odd").size == (8, 12)
    else:
        np.testing.assert_array_equal(np.asarray(open_image(odd, "odd")), expected)


def test_an_odd_resolution_costs_a_tiff_nothing() -> None:
    whole = packed(noise(12, 8), "TIFF", tiffinfo={0x0112: 6, 282: 72.0, 283: 72.0})
    expected = np.asarray(open_image(whole))
    assert expected.shape == (12, 8, 3)
    odd = whole.getvalue().replace(struct.pack("<LL", 72, 1), struct.pack("<ll", -1, 0))
    assert odd != whole.getvalue()
    np.testing.assert_array_equal(np.asarray(open_image(io.BytesIO(odd), "odd.tif")), expected)


RAMP = np.tile(np.arange(256), (2, 1))


def levels(file: io.BytesIO) -> Array:
    return np.asarray(open_image(file, "deep"))[..., 0].astype(np.int64)


def refused(file: io.BytesIO, match: str) -> None:
    with pytest.raises(UnreadableImageError, match=match):
        open_image(file, "deep")


def test_deep_pixels_are_scaled_by_what_the_file_declares() -> None:
    twelve = RAMP * 4095 // 255
    full = {
        "12 bits": grey_tiff(twelve, 12),
        "16 bits": grey_tiff(RAMP * 257, 16),
        "16 bits that say 12": grey_tiff(twelve, 16, maximum=4095),
        "32 bits": grey_tiff(RAMP * 16843009, 32),
        "32 bits that say 8": grey_tiff(RAMP, 32, maximum=255),
        "16 bits, signed": grey_tiff(RAMP * 32767 // 255, 16, format=2),
        "PGM that says 12": io.BytesIO(b"P5 256 2 4095 " + twelve.astype(">u2").tobytes()),
    }
    for name, file in full.items():
        assert np.abs(levels(file) - RAMP).max() <= 1, name
    inverted = levels(grey_tiff(RAMP * 257, 16, photometric=0))
    np.testing.assert_array_equal(inverted, 255 - RAMP)
    # The largest value that was met says nothing of the depth.
    np.testing.assert_array_equal(levels(grey_tiff(RAMP * 257, 16, maximum=60000)), RAMP)


def test_deep_pixels_that_declare_nothing_and_would_be_black_are_refused() -> None:
    twelve = (RAMP * 4095 // 255).astype(np.uint16)
    words = r"pixels of 0 to 4,095 of 65,535 \(16 bits\), which would be read as black; scale them"
    refused(packed(Image.fromarray(twelve), "PNG"), words)
    refused(grey_tiff(twelve, 16), words)
    refused(io.BytesIO(b"P5 256 2 65535 " + twelve.astype(">u2").tobytes()), words)
    refused(grey_tiff(RAMP, 32), r"pixels of 0 to 255 of 4,294,967,295 \(32 bits\)")
    refused(grey_tiff(RAMP - 1, 16, format=2), r"negative pixels \(from -1\)")
    refused(grey_tiff(RAMP // 2, 8, format=2), "signed pixels")
    colour = np.stack([twelve] * 3, -1)
    refused(png(colour), r"pixels of 0 to 4,095 of 65,535 \(16 bits\)")
    assert np.array_equal(levels(png(colour * 16)), np.asarray(twelve >> 4))
    # A dark picture is one where it is dark at the top of the range, too; a black one is black.
    assert levels(grey_tiff(RAMP * 32, 16)).max() == 31
    assert levels(grey_tiff(RAMP * 0, 16)).max() == 0


def png(values: Array) -> io.BytesIO:
    """Write RGB of 16 bits, which Pillow cannot."""
    height, width, _ = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        tail = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + tail

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + body)


def sixteen(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


FORMS = {
    "PNG": (lambda image: image, "PNG"),
    "PNG with alpha": (lambda image: image.convert("RGBA"), "PNG"),
    "PNG, 16 bits": (sixteen, "PNG"),
    "PNG, grey": (lambda image: image.convert("L"), "PNG"),
    "TIFF": (lambda image: image, "TIFF"),
    "BMP": (lambda image: image, "BMP"),
    "WEBP": (lambda image: image, "WEBP"),
    "JPEG": (lambda image: image, "JPEG"),
    "JPEG2000": (lambda image: image, "JPEG2000"),
    "GIF": (lambda image: image.convert("P"), "GIF"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_images_are_read_at_half_their_side(
    name: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, kind = FORMS[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind in ("PNG", "TIFF", "JPEG", "WEBP") else {}
    file = packed(convert(smooth(641, 1100)), kind, **options)
    whole = open_image(file, "x")
    monkeypatch.setattr(decode, "EXACT_PIXELS", 10_000)
    file.seek(0)
    half = open_image(file, "x")
    expected = whole.reduce(2)
    assert half.size == expected.size
    difference = np.asarray(half).astype(int) - np.asarray(expected)
    # What is halved before it is turned meets its odd edge on the other side.
    inner = difference[2:-2, 2:-2]
    assert np.abs(inner).mean() < (4 if kind in ("JPEG", "JPEG2000") or orientation == 6 else 0.01)


BOUND = """
import json, multiprocessing, sys
from pathlib import Path
from types import ModuleType
from hgprompt_edge.images import decode

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def measure(large):
    decode.open_image(large.with_suffix(".small"))  # the format's library is loaded
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    size = decode.open_image(large).size
    return large.stem, [*size, memory("VmHWM") - before]

decode.EXACT_PIXELS = 1_000_000
# A new process for each format: what an earlier one has freed would be used again.
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    found = dict(pool.imap(measure, sorted(Path(sys.argv[1]).glob("*.large")), chunksize=1))
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone")
def test_memory_stays_within_the_bound_of_each_format(tmp_path: Path) -> None:
    forms = {**FORMS, "JPEG, progressive": FORMS["JPEG"], "AVIF": (lambda image: image, "AVIF")}
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        forms["HEIF"] = (lambda image: image, "HEIF")
    more = {
        "JPEG, progressive": {"progressive": True, "subsampling": 0},
        "AVIF": {"speed": 10},
        "WEBP": {"method": 0},
    }
    large = smooth(1800, 1400)
    pictures = {"small": large.resize((40, 30)), "large": large}
    for name, (convert, kind) in forms.items():
        for size, picture in pictures.items():
            with contextlib.suppress(KeyError):  # an older Pillow writes no AVIF
                convert(picture).save(tmp_path / f"{name}.{size}", kind, **more.get(name, {}))
    words = [sys.executable, "-c", BOUND, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    found = json.loads(subprocess.check_output(words, text=True, env=environment))
    assert len(found) >= len(FORMS)
    for name, (width, height, used) in found.items():
        assert (width, height) == (900, 700), name
        cost = decode.PIXEL_BYTES.get(forms[name][1], decode.OTHER_BYTES)
        cost = decode.PROGRESSIVE_BYTES if "progressive" in name else cost
        assert used <= cost * 1800 * 1400 + 4e6, name  # bands and buffers of a fixed size
        assert used >= 1800 * 1400 / 2, name  # else nothing was measured


PHOTO = """
import resource, sys
from pathlib import Path
from types import ModuleType
from PIL import Image
from hgprompt_edge.images.preprocess import Preprocessing, read_image

path, width, height = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
Image.new("RGB", (width, height), (128, 128, 128)).save(path)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
room = int(float(sys.argv[4]) * width * height) + 16_000_000
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
pixels = read_image(path, Preprocessing(8, 8))
print(pixels.shape, abs(pixels.astype(int) - 128).max())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux alone")
@pytest.mark.parametrize(
    ("name", "width", "height", "room"),
    [
        ("a.jpg", 12000, 9000, 2),
        pytest.param("a.jpg", 16320, 12240, 2, marks=pytest.mark.slow),
        pytest.param("a.png", 16320, 12240, 6, marks=pytest.mark.slow),
        pytest.param("a.tif", 16320, 12240, 10, marks=pytest.mark.slow),
    ],
)
def test_photographs_of_108_and_200_megapixels(
    name: str, width: int, height: int, room: int, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PHOTO, str(tmp_path / name), str(width), str(height), str(room)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    said = subprocess.check_output(words, text=True, env=environment)
    shape, _, difference = said.strip().rpartition(" ")
    assert shape == "(8, 8, 3)"
    assert int(difference) <= 1


def test_what_needs_too_much_memory_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(decode.PIXEL_BYTES.values()) * decode.EXACT_PIXELS < decode.MAX_BYTES
    assert decode.OTHER_BYTES * decode.MAX_PIXELS < decode.MAX_BYTES
    monkeypatch.setattr(decode, "EXACT_PIXELS", 100)
    monkeypatch.setattr(decode, "MAX_BYTES", 1000)
    refused(packed(noise(20, 20), "PNG"), r"20 x 20 pixels in this format need .* GB of memory")
    monkeypatch.setattr(decode, "MAX_BYTES", 1000 * 1000)
    assert open_image(packed(noise(20, 20), "PNG")).size == (10, 10)


def test_threads_leave_the_limits_of_pillow_as_they_were() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    file = packed(noise(200, 200), "PNG").getvalue()
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: open_image(io.BytesIO(file)).size, range(64)))
    assert set(sizes) == {(200, 200)}
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnreadableImageError, match=r"a\.HEIC: HEIC needs pillow-heif; install hg"):
        open_image(io.BytesIO(b"\0\0\0\x18ftypheic"), "a.HEIC")


def test_heic_whose_package_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ImportError("libx265.so: failed to map segment from shared object")

    broken = ModuleType("pillow_heif")
    vars(broken)["register_heif_opener"] = fails
    monkeypatch.setitem(sys.modules, "pillow_heif", broken)
    assert open_image(packed(noise(8, 8), "PNG"), "a.png").size == (8, 8)
    with pytest.raises(UnreadableImageError, match=r"does not load here \(libx265\.so: f"):
        open_image(io.BytesIO(b"\0\0\0\x18ftypheic"), "a.heic")


def test_heic_photographs_are_read_upright() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_image(packed(smooth(64, 32), "HEIF", exif=exif.tobytes(), quality=90), "a.heic")
    assert image.size == (32, 64)
    expected = np.rot90(np.asarray(smooth(64, 32)).astype(int), -1)
    assert np.abs(np.asarray(image) - expected).mean() < 12
