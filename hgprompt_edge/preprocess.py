"""The one definition of image -> array, used on the server and on the device.

Resize, crop and colour conversion happen here, in Pillow; the cast to float, the normalisation and
the layout are inside the exported graph. The rule is timm's evaluation transform.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.decode import EXACT_PIXELS, UnreadableImageError, open_image

__all__ = ["Preprocessing", "UnreadableImageError", "open_image", "read_image", "to_array"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


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


def to_array(
    image: Image.Image, preprocessing: Preprocessing, name: str = "image"
) -> npt.NDArray[np.uint8]:
    """Resize and crop: the `[image_size, image_size, 3]` uint8 pixels that a model takes.

    Equal, pixel for pixel, to timm's evaluation transform before its normalisation.

    Raises
    ------
    UnreadableImageError
        So long and thin that resizing its shorter side makes more than `EXACT_PIXELS` pixels.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    width, height = image.size
    if preprocessing.crop_mode == "squash":
        scaled = (resize, resize)
    else:
        short = min(width, height)
        scaled = (int(resize * width / short), int(resize * height / short))
    if scaled[0] * scaled[1] > max(EXACT_PIXELS, resize * resize):
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
