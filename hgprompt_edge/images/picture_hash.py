"""Hashes by which copies of a picture are found: of its pixels, and of what it looks like.

The first is equal for equal pixels, whatever file they came from. The second (ImageHash's pHash,
256 bits) differs in few bits for a picture that was re-encoded, resized or made brighter; that of
the mirrored picture is taken, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIDE = 64
"""A picture is looked at as a grey one of this side, four pixels for the shortest wave."""

HASH_SIDE = 16
"""The hash says of 16 x 16 frequencies whether they are above the median: 256 bits."""

HASH_BYTES = HASH_SIDE * HASH_SIDE // 8

LEAST_SIDE = 32
"""A smaller picture lacks the frequencies that are hashed; all drawings of a digit look alike."""

LEAST_CONTRAST = 2.0
"""Grey levels by which the pixels of the small grey picture deviate from its row and column means.
With less, the hash is that of noise, and equal for many pictures: flat ones, stripes, gradients."""

LEAST_SPREAD = 0.06
"""Over how much of the picture these deviations are spread: the square of their mean square by the
mean of their fourth power, 1/3 for noise and about as much in photographs. With less, the contrast
is that of a few spots or lines on a plain ground, and the hash says where they are and not what."""

PLAIN_GROUND, SAME_LEVEL = 0.8, 1 / 32
"""A drawing has a plain ground: more than this part of its small grey picture deviates from the
median by less than a 32nd of what lies between its darkest and brightest pixel. Two drawings at one
place have many equal bits, so that fewer may differ (`near_pairs`)."""

FLAT = 0
"""The digest of a picture of one colour, which is a copy of nothing."""

Bytes = npt.NDArray[np.uint8]


class PictureHash(NamedTuple):
    """The hashes of one picture.

    Attributes
    ----------
    digest
        Of the decoded pixels and their size, 64 bits; `FLAT` for a picture of one colour.
    look, mirrored
        `HASH_BYTES` bytes; empty where the picture shows too little (`LEAST_SIDE`,
        `LEAST_CONTRAST`, `LEAST_SPREAD`), or ImageHash is not installed. The first bit is 0 in
        pictures on a plain ground, else 1.
    """

    digest: int
    look: bytes = b""
    mirrored: bytes = b""


@dataclass(frozen=True)
class Hashes:
    """The hashes of many pictures.

    Attributes
    ----------
    digests
        `[n]` uint64.
    looks, mirrored
        `[n, HASH_BYTES]` uint8, zero where a picture has none.
    """

    digests: npt.NDArray[np.uint64]
    looks: Bytes
    mirrored: Bytes

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def plain(self) -> npt.NDArray[np.bool_]:
        """Whether a picture has a plain ground, `[n]` bool; means nothing without a look."""
        return self.looks[:, 0] < 128

    def subset(self, indices: npt.ArrayLike) -> Hashes:
        """Those hashes, in the order of `indices [m]` (int64)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Hashes(self.digests[chosen], self.looks[chosen], self.mirrored[chosen])


def sees_near_copies() -> bool:
    """Whether ImageHash is installed; else only equal pixels are found."""
    return _library() is not None


def hash_picture(image: Image.Image) -> PictureHash:
    """Hash a decoded RGB picture, as `open_image` returns it."""
    data = image.tobytes()
    if _one_colour(data):
        return PictureHash(FLAT)
    number = _digest(image.size, data)
    library = _library()
    if library is None or min(image.size) < LEAST_SIDE:
        return PictureHash(number)
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey = small.convert("L")
    if not _shows_enough(grey):
        return PictureHash(number)
    return PictureHash(number, _look(library, grey), _look(library, ImageOps.mirror(grey)))


def hash_pixels(pixels: Bytes) -> PictureHash:
    """Hash pixels `[H, W, 3]` as a model takes them, by equality alone."""
    data = pixels.tobytes()
    return PictureHash(FLAT if _one_colour(data) else _digest(pixels.shape[1::-1], data))


def stack(hashes: Sequence[PictureHash]) -> Hashes:
    """Put the hashes of pictures into arrays."""
    empty = bytes(HASH_BYTES)
    looks, mirrored = (
        np.frombuffer(b"".join(look or empty for look in found), np.uint8).reshape(-1, HASH_BYTES)
        for found in ([one.look for one in hashes], [one.mirrored for one in hashes])
    )
    return Hashes(np.array([one.digest for one in hashes], np.uint64), looks, mirrored)


def join(parts: Sequence[Hashes]) -> Hashes:
    """Put the hashes of several parts behind each other."""
    return Hashes(
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.looks for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
    )


def _digest(size: tuple[int, ...], data: bytes) -> int:
    digest = hashlib.sha256(repr(size).encode())
    digest.update(data)
    return int.from_bytes(digest.digest()[:8], "little") or 1  # not FLAT


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        if find_spec("scipy") is None:  # ImageHash imports it when it hashes
            return None
        import imagehash
    except ImportError:
        return None
    return imagehash


def _look(library: Any, grey: Image.Image) -> bytes:
    bits = library.phash(grey, hash_size=HASH_SIDE).hash.copy()
    # No wave exceeds the mean of pixels that are not negative, so this bit is always 1.
    bits[0, 0] = not _plain_ground(grey)
    return np.packbits(bits).tobytes()


def _plain_ground(grey: Image.Image) -> bool:
    pixels = np.asarray(grey, np.float32)
    near = np.abs(pixels - np.median(pixels)) < SAME_LEVEL * np.ptp(pixels)
    return bool(near.mean() > PLAIN_GROUND)


def _shows_enough(grey: Image.Image) -> bool:
    """Whether pixels deviate enough from row and column means, and enough of them do."""
    pixels = np.asarray(grey, np.float32)
    rows, columns = pixels.mean(1, keepdims=True), pixels.mean(0, keepdims=True)
    squares = np.square(pixels - rows - columns + pixels.mean())
    square = float(squares.mean())
    spread = square**2 / max(float(np.square(squares).mean()), 1e-9)
    return square >= LEAST_CONTRAST**2 and spread >= LEAST_SPREAD


def _one_colour(data: bytes) -> bool:
    pixel, count = data[:3], len(data) // 3
    # A few pixels mostly tell; all are compared where these are equal.
    return data.startswith(pixel * min(count, 16)) and data == pixel * count
