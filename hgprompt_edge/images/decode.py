"""From the bytes of an image file to upright RGB pixels, within a bound on memory."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from hgprompt_edge.errors import UserError, first_line
from hgprompt_edge.images.depth import Depth
from hgprompt_edge.images.orientation import orientation_of

EXACT_PIXELS = 100_000_000
"""Larger images are read at half their side."""

MAX_PIXELS = 256_000_000
"""Larger images are refused before they are decoded: a small file can unpack to gigabytes."""

MAX_BYTES = 2_200_000_000
"""Reading one image takes no more memory than this, and mostly far less."""

PIXEL_BYTES = {"JPEG": 2, "MPO": 2, "TIFF": 10, "AVIF": 11, "HEIF": 10, "WEBP": 18}
"""Bytes of memory that reading takes for each pixel of a file above `EXACT_PIXELS`, at most. JPEG
is decoded at half its side, TIFF may be turned while it is decoded, the others pass through
copies."""
PROGRESSIVE_BYTES = 8
"""A progressive JPEG is held as coefficients before it is decoded."""
OTHER_BYTES = 6
"""PNG, BMP and what else is decoded in place."""

BAND_ROWS = 128
"""Rows at a time where a large image is converted; even, so that halving meets no edge."""


class UnreadableImageError(UserError):
    """An image file that cannot be decoded; `reason` is a short phrase for a list of such files."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def open_image(source: Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Decode an image to RGB, upright as its EXIF orientation says; deep pixels become 8 bits.

    Of a file with several pictures the first one. Above `EXACT_PIXELS` pixels at half its side.
    Takes at most `MAX_BYTES` of memory: `PIXEL_BYTES` says how much a pixel costs. Safe to call in
    several threads.

    Raises
    ------
    UnreadableImageError
        Not an image, truncated, more than `MAX_PIXELS` pixels or `MAX_BYTES` of memory; pixels of
        more than 8 bits that do not say how bright white is and would be read as black.
    """
    label = name or str(source)
    with _named(label), _quiet(), _opened(source) as image:
        return _decode(image, label)


def upright_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Do as `open_image` with an image that somebody else opened or made.

    Raises
    ------
    UnreadableImageError
        As of `open_image`; also where its file was closed before it was decoded.
    """
    with _named(name), _quiet():
        return _decode(image, name)


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Turn whatever goes wrong into an `UnreadableImageError`; only lack of memory goes through."""
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(label, "no such file") from error
    except Exception as error:  # what decoders raise on damaged bytes has no common base
        if label.lower().endswith((".heic", ".heif", ".hif")) and (problem := _register_heif()):
            raise UnreadableImageError(label, problem) from error
        raise UnreadableImageError(label, f"not a readable image ({_brief(error)})") from error


def _opened(source: Path | IO[bytes]) -> Image.Image:
    """Open with Pillow, and only what it does not know with pillow-heif, which maps 20 MB."""
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if _register_heif():
            raise
        return Image.open(source)


def _register_heif() -> str | None:
    """Let Pillow open HEIC photographs; why it cannot, where it cannot."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return "HEIC needs pillow-heif; install hgprompt-edge[heic]"
    try:
        register_heif_opener()
    except ImportError as error:  # its libraries: too little memory, or built for another system
        return f"HEIC needs pillow-heif, which does not load here ({first_line(error, 80)})"
    return None


def _decode(image: Image.Image, label: str) -> Image.Image:
    _check_size(image, label)
    large = image.size[0] * image.size[1] > EXACT_PIXELS
    depth = Depth(image)  # first: Pillow decodes a PNG to find its EXIF
    turn = orientation_of(image)
    shrunk = large and _shrink_while_decoding(image)
    image.load()
    rgb = _halve(image, depth) if large and not shrunk else depth.to_rgb(image)
    if problem := depth.problem(rgb):
        raise UnreadableImageError(label, problem)
    return rgb if turn is None else rgb.transpose(turn)


def _check_size(image: Image.Image, label: str) -> None:
    width, height = image.size
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise UnreadableImageError(
            label,
            f"{width} x {height} pixels, more than {MAX_PIXELS:,} (a decompression bomb?); scale "
            "it down first",
        )
    if pixels > EXACT_PIXELS:
        cost = PIXEL_BYTES.get(image.format or "", OTHER_BYTES)
        if image.info.get("progressive"):
            cost = PROGRESSIVE_BYTES
        if pixels * cost > MAX_BYTES:
            raise UnreadableImageError(
                label,
                f"{width} x {height} pixels in this format need {pixels * cost / 1e9:.1f} GB of "
                "memory; scale it down or save it as a baseline JPEG first",
            )


def _shrink_while_decoding(image: Image.Image) -> bool:
    """Let a JPEG or JPEG 2000 be decoded at half its side; whether it will be."""
    width, height = image.size
    if image.format == "JPEG2000":
        setattr(image, "reduce", 1)  # noqa: B010 - an attribute of this format only
        return True
    image.draft(None, (-(-width // 2), -(-height // 2)))
    return image.size != (width, height)


def _halve(image: Image.Image, depth: Depth) -> Image.Image:
    """Convert a decoded image to RGB at half its side, a band at a time."""
    width, height = image.size
    half = Image.new("RGB", (-(-width // 2), -(-height // 2)))
    for top in range(0, height, BAND_ROWS):
        band = image.crop((0, top, width, min(top + BAND_ROWS, height)))
        half.paste(depth.to_rgb(band).reduce(2), (0, top // 2))
    return half


class _Quiet:
    """Silences Pillow while images are opened: its warnings, and its limit, which is not ours.

    Both are global, so that the first thread in sets them and the last one out puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None
        self._warnings = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    Image.MAX_IMAGE_PIXELS = self._limit
                    self._warnings.__exit__(None, None, None)


_quiet = _Quiet()


def _brief(error: BaseException) -> str:
    unknown = isinstance(error, UnidentifiedImageError)
    text = getattr(error, "strerror", None) or first_line(error, 80)
    return "unknown format" if unknown else text.lower()
