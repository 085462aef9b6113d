"""scikit-learn's handwritten digits, which need no files."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.data.parts import Entry, Parts, parts_without_test
from hgprompt_edge.errors import MissingPackageError, argument

DIGITS_TEST_SHARE = 797 / 1797
"""Of scikit-learn's 1,797 digits 1,000 train."""


def read_digits() -> Parts:
    """scikit-learn's handwritten digits, 8 x 8: 1,000 train, 797 test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError(argument("task", "digits"), "scikit-learn", "server") from error
    found = load_digits()
    pixels = np.round(found.images * (255.0 / 16.0)).astype(np.uint8)
    entries = [
        Entry(f"digits/{i:04d}", str(label), partial(_grey, pixels[i]))
        for i, label in enumerate(found.target)
    ]
    return parts_without_test("digits", entries, share=DIGITS_TEST_SHARE)


def _grey(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")
