"""The orientation of a photograph, read by itself: no other tag can cost it."""

from __future__ import annotations

import struct

from PIL import Image, TiffImagePlugin

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the value of the tag."""
NUMBERS = {1: "B", 3: "H", 4: "L"}
"""The types that whole numbers have in EXIF, for `struct`."""


def orientation_of(image: Image.Image) -> Image.Transpose | None:
    """Return what turns an opened image upright once it is decoded; None: nothing does.

    Pillow turns a TIFF by itself while it decodes it. It then writes all other tags anew, which
    fails on odd ones, so these are dropped here.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.getexif()
        for tag in set(tags) - {ORIENTATION}:
            del tags[tag]
        return None
    value = _in_bytes(image.info.get("exif") or b"")
    if value is None:
        try:  # a PNG's raw profile, XMP
            value = image.getexif().get(ORIENTATION)
        except Exception:  # what odd tags raise has no common base
            return None
    return TURNS.get(value) if isinstance(value, int) else None


def _in_bytes(data: bytes) -> int | None:
    """Find the orientation in an EXIF block; None where it has none that can be read."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHL", data, place)
            if tag == ORIENTATION and kind in NUMBERS:
                value: int = struct.unpack_from(order + NUMBERS[kind], data, place + 8)[0]
                return value
    except struct.error:  # cut short
        pass
    return None
