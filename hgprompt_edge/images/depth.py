"""How bright white is: from pixels of any depth to 8 bits, by what the file declares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT = 258, 262, 281, 339
"""Tags of TIFF."""
SIGNED = 2
WHITE_IS_ZERO = 0

DARK_SHARE = 16
"""Deep pixels that all stay below this part of the range are 12 bits in 16, say, undeclared."""


class Depth:
    """What the pixels of an opened image mean, and which values were met.

    Parameters
    ----------
    image
        Not decoded yet: decoding forgets some of it.

    Attributes
    ----------
    bits
        Of a sample in the file.
    white
        The value that is white.
    low, high
        The smallest and the largest value met, of deep images.

    Raises
    ------
    ValueError
        Floating-point pixels, or signed ones of 8 bits.
    """

    def __init__(self, image: Image.Image) -> None:
        tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        self.low, self.high = 0, 0
        self.unsigned = _first(tags.get(SAMPLE_FORMAT), 1) != SIGNED
        self.inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
        # Pillow halves the depth of colour while it decodes.
        self.halved = _is_sixteen(image) and not image.mode.startswith("I")
        self.bits = _bits(image)
        if tags:
            self.bits = _first(tags.get(BITS_PER_SAMPLE), self.bits)
        self.white = 2 ** (self.bits if self.unsigned else self.bits - 1) - 1
        declared = _first(tags.get(MAX_SAMPLE), 0)
        if 255 <= declared < self.white and (declared + 1) & declared == 0:
            self.white = declared  # not the largest value of this image, but of its depth
        if image.mode == "F":
            raise ValueError("floating-point pixels; save it with 8 bits a channel")
        if not self.unsigned and self.bits == 8:
            raise ValueError("signed pixels; save it with unsigned ones")

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert an image, or a part of it, to RGB of 8 bits; notes the values that it meets."""
        if image.mode.startswith("I"):
            image = Image.fromarray(self._to_bytes(np.asarray(image)))
        elif image.mode == "La":  # Pillow converts it to nothing else
            image = image.convert("LA")
        elif image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")

    def problem(self, rgb: Image.Image) -> str | None:
        """Say what is wrong with the values of the decoded image; None: they are plausible."""
        if self.low < 0:
            return f"negative pixels (from {self.low:,}); shift them to 0 and above first"
        if self.high > self.white:
            return f"pixels up to {self.high:,} where the file declares {self.white:,} as white"
        low, high = self.low, self.high
        if self.high == 0 and self.halved:
            brightest = max(top for _, top in rgb.getextrema())  # type: ignore[misc]
            if brightest * DARK_SHARE <= 255:
                low, high = 0, (brightest + 1) * 256 - 1
        if 0 < high <= self.white // DARK_SHARE:
            return (
                f"pixels of {low:,} to {high:,} of {self.white:,} ({self.bits} bits), which would "
                "be read as black; scale them to the whole range, or to 8 bits, first"
            )
        return None

    def _to_bytes(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Scale a band of deep values."""
        result = np.empty(values.shape, np.uint8)
        rows = max(1, (1 << 16) // max(1, values.shape[1]))
        for top in range(0, len(values), rows):
            deep = values[top : top + rows].astype(np.int64)
            if self.unsigned and self.bits == 32:
                deep &= 0xFFFFFFFF  # Pillow holds them as signed
            self.low, self.high = min(self.low, int(deep.min())), max(self.high, int(deep.max()))
            if self.inverted:
                deep = self.white - deep
            result[top : top + rows] = np.clip(deep * 255 // self.white, 0, 255)
        return result


def _bits(image: Image.Image) -> int:
    """Return the bits of a sample where the format is not TIFF."""
    if image.mode == "I":  # Pillow scales PGM to 16 bits, and older versions hold PNG so
        return 16 if image.format in ("PNG", "PPM") else 32
    return 16 if image.mode.startswith("I") or _is_sixteen(image) else 8


def _is_sixteen(image: Image.Image) -> bool:
    """Whether what will be decoded has 16 bits a sample, whatever the mode."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _first(value: object, default: int) -> int:
    """Return the first of a tag's values; what is no whole number counts as absent."""
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) and value > 0 else default
