"""The one definition of image -> array, used on the server and on the device.

Resize, crop or padding, and colour conversion happen here, in Pillow; the cast to float, the
normalisation and the layout are inside the exported graph. The rule is timm's evaluation transform.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.errors import brief
from hgprompt_edge.images.decode import EXACT_PIXELS, UnreadableImageError, open_image

__all__ = [
    "Preprocessing",
    "UnknownRuleError",
    "UnreadableImageError",
    "cut_away",
    "open_image",
    "read_image",
    "to_array",
]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP, SQUASH, LETTERBOX = "center", "squash", "letterbox"
RULES = {"crop": CROP, "squash": SQUASH, "letterbox": LETTERBOX}
"""Ways to make a picture square, by what users call them, and the `crop_mode` of each."""


class UnknownRuleError(ValueError):
    """A resize rule that this version does not know: it cannot make the same pixels."""


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
        What is resized to that length: `center`, the shorter side; `squash`, both sides;
        `letterbox`, the longer side, so that nothing is cut off.
    interpolation
        A key of `RESAMPLING`.
    mean, std
        Per channel, for pixels in [0, 1].
    fill
        Colour of the border that `letterbox` needs, 0 to 255 per channel; None: no letterbox.

    Raises
    ------
    UnknownRuleError
        The `crop_mode` is none of these.
    ValueError
        A letterbox without a fill colour or with a crop, or a fill colour without a letterbox.
    """

    image_size: int
    resize: int
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_known(self.crop_mode)
        if (self.fill is not None) != (self.crop_mode == LETTERBOX):
            raise ValueError("'letterbox' needs a fill colour, other rules have none")
        if self.fill is not None:
            if self.resize != self.image_size:
                raise ValueError(f"'letterbox' of {self.resize} px for {self.image_size} px")
            if len(self.fill) != 3 or not all(0 <= int(value) <= 255 for value in self.fill):
                raise ValueError(f"the fill colour is {self.fill}")

    def with_rule(self, name: str) -> Preprocessing:
        """Make pictures square in another way, a key of `RULES`.

        `crop` keeps the share that a rule with a central crop cuts off; the others show the whole
        picture. The letterbox is filled with the mean colour, as whole numbers, so that every
        device has exactly the pixels of the server.
        """
        mode = RULES[name]
        if mode == self.crop_mode == CROP:
            return self
        red, green, blue = (round(255 * min(max(value, 0.0), 1.0)) for value in self.mean)
        fill = (red, green, blue) if mode == LETTERBOX else None
        return replace(self, resize=self.image_size, crop_mode=mode, fill=fill)

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back.

        It names the fill colour of a letterbox only: a version that knows no letterbox refuses the
        name, and reads every other rule as before.
        """
        fields = asdict(self)
        if self.fill is None:
            del fields["fill"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read what `to_json` wrote.

        Raises
        ------
        UnknownRuleError
            Of a newer version.
        """
        fields: dict[str, Any] = json.loads(text)
        _check_known(fields.get("crop_mode", CROP))  # first: it may come with fields of its own
        for name in fields.keys() & {"mean", "std", "fill"}:
            fields[name] = tuple(fields[name])
        return cls(**fields)


def to_array(
    image: Image.Image, preprocessing: Preprocessing, name: str = "image"
) -> npt.NDArray[np.uint8]:
    """Resize, and crop or pad: the `[image_size, image_size, 3]` uint8 pixels that a model takes.

    Equal, pixel for pixel, to timm's evaluation transform before its normalisation; a letterbox to
    its crop mode `border` without a crop.

    Raises
    ------
    UnreadableImageError
        So long and thin that resizing its shorter side makes more than `EXACT_PIXELS` pixels.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    width, height = image.size
    scaled = _scaled(width, height, preprocessing)
    if scaled[0] * scaled[1] > max(EXACT_PIXELS, resize * resize):
        raise UnreadableImageError(name, f"too long and thin ({width} x {height}); crop it first")
    if scaled != image.size:
        image = image.resize(scaled, RESAMPLING[preprocessing.interpolation])
    left, top = _crop_start(scaled[0], size), _crop_start(scaled[1], size)
    if preprocessing.fill is None:
        image = image.crop((left, top, left + size, top + size))
    elif scaled != (size, size):
        square = Image.new("RGB", (size, size), preprocessing.fill)
        square.paste(image, (-left, -top))
        image = square
    return np.asarray(image, dtype=np.uint8)


def cut_away(width: int, height: int, preprocessing: Preprocessing) -> float:
    """Share of a picture's area that no model sees, in [0, 1)."""
    scaled = _scaled(width, height, preprocessing)
    seen = (min(side, preprocessing.image_size) / side for side in scaled)
    return 1 - math.prod(seen)


def read_image(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """`open_image`, then `to_array`; what does not fit into memory is unreadable, too."""
    try:
        return to_array(open_image(path), preprocessing, str(path))
    except MemoryError as error:
        reason = "needs more memory than there is here; scale it down first"
        raise UnreadableImageError(str(path), reason) from error


def _check_known(crop_mode: object) -> None:
    if crop_mode not in RULES.values():
        known = ", ".join(RULES.values())
        raise UnknownRuleError(f"unknown resize rule '{brief(crop_mode)}', none of {known}")


def _scaled(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Sides after resizing, before the crop or the padding."""
    resize = preprocessing.resize
    if preprocessing.crop_mode == SQUASH:
        return resize, resize
    if preprocessing.crop_mode == LETTERBOX:
        ratio = max(width, height) / resize
        return max(1, round(width / ratio)), max(1, round(height / ratio))  # as timm, and not zero
    short = min(width, height)
    return int(resize * width / short), int(resize * height / short)


def _crop_start(length: int, size: int) -> int:
    """First pixel of a central crop; where the image is smaller, there is a border."""
    return round((length - size) / 2.0) if length >= size else -((size - length) // 2)
