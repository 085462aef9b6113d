"""The one definition of image -> array, used on the server and on the device.

Resize, crop and colour conversion happen here, in Pillow; the cast to float, the normalisation and
the layout are inside the exported graph. The rule is timm's evaluation transform.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from hgprompt_edge.errors import UserError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file can unpack to gigabytes."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class UnreadableImageError(UserError):
    """An image file that cannot be decoded; `reason` is a short phrase for a list of such files."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the pixels that a backbone expects.

    Attributes
    ----------
    image_size
        Side of the square that the model sees, in pixels.
    resize
        Length in pixels after resizing, before the central crop.
    crop_mode
        What is resized to that length: `center`, the shorter side; `squash`, both sides.
    interpolation
        A key of `RESAMPLING`.
    mean, std
        Per channel, for pixels in [0, 1].
    """

    image_size: int
    resize: int
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["mean"] = tuple(fields["mean"])
        fields["std"] = tuple(fields["std"])
        return cls(**fields)


def open_image(source: Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Decode an image to RGB, upright as its EXIF orientation says; 16-bit grey is scaled to 8.

    Raises
    ------
    UnreadableImageError
        Not an image, truncated, or more than `MAX_PIXELS` pixels.
    """
    label = name or str(source)
    try:
        with warnings.catch_warnings():
            # Remarks on odd metadata, and on sizes, where our own limit below is what counts.
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableImageError(
                        label,
                        f"{width} x {height} pixels, more than {MAX_PIXELS:,} (a decompression "
                        "bomb?); scale it down first",
                    )
                # In place: 48 megapixels are 192 MB decoded, and a small device holds one copy.
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(label, "no such file") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(label, "a decompression bomb; scale it down first") from error
    except MemoryError:
        raise
    except Exception as error:  # what decoders raise on damaged bytes has no common base
        raise UnreadableImageError(label, f"not a readable image ({_brief(error)})") from error


def to_array(
    image: Image.Image, preprocessing: Preprocessing, name: str = "image"
) -> npt.NDArray[np.uint8]:
    """Resize and crop: the `[image_size, image_size, 3]` uint8 pixels that a model takes.

    Equal, pixel for pixel, to timm's evaluation transform before its normalisation.

    Raises
    ------
    UnreadableImageError
        So long and thin that resizing its shorter side makes more than `MAX_PIXELS` pixels.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    width, height = image.size
    if preprocessing.crop_mode == "squash":
        scaled = (resize, resize)
    else:
        short = min(width, height)
        scaled = (int(resize * width / short), int(resize * height / short))
    if scaled[0] * scaled[1] > max(MAX_PIXELS, resize * resize):
        raise UnreadableImageError(name, f"too long and thin ({width} x {height}); crop it first")
    if scaled != image.size:
        image = image.resize(scaled, RESAMPLING[preprocessing.interpolation])
    left, top = _crop_start(scaled[0], size), _crop_start(scaled[1], size)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def read_image(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """`open_image`, then `to_array`; what does not fit into memory is unreadable, too."""
    try:
        return to_array(open_image(path), preprocessing, str(path))
    except MemoryError as error:
        reason = "needs more memory than there is here; scale it down first"
        raise UnreadableImageError(str(path), reason) from error


def _crop_start(length: int, size: int) -> int:
    """First pixel of a central crop; where the image is smaller, the border is black."""
    return round((length - size) / 2.0) if length >= size else -((size - length) // 2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 bits a channel")
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion cuts off at 255 instead of scaling.
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(values // 257, 0, 255).astype(np.uint8))
    elif image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _brief(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "unknown format" if isinstance(error, UnidentifiedImageError) else text[:80].lower()
