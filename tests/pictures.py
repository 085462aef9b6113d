"""Pictures that look like photographs to a hash: no two seeds alike."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Draw something with the spectrum of a photograph: few large shapes, many small ones."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3))
    for side in (3, 6, 12, 24):
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels += np.asarray(small.resize(size, Image.Resampling.BICUBIC), float) * 3 / side
    return Image.fromarray((pixels * 255 / pixels.max()).astype(np.uint8))
