"""How far a model's probabilities are from how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

BINS = 15
"""Equally wide bins of the largest probability, as in Guo et al."""
DRAWS = 100


@dataclass(frozen=True)
class Bin:
    """Images whose largest probability lies in one bin.

    Attributes
    ----------
    low, high
        Bounds of the bin; `high` belongs to it.
    confidence, accuracy
        Mean of the largest probability and share of right images; 0 without images.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error of a model.

    Attributes
    ----------
    error
        Mean over images of the distance between accuracy and confidence in the image's bin.
    by_chance
        What a perfectly calibrated model with these probabilities shows on so few images, in the
        mean over `DRAWS` draws.
    confidence
        Mean of the largest probability.
    """

    error: float
    by_chance: float
    confidence: float
    bins: tuple[Bin, ...]


def calibration(confidence: Floats, right: npt.NDArray[np.bool_]) -> Calibration:
    """Measure the expected calibration error.

    Parameters
    ----------
    confidence
        Largest probability of each image, `[n]` in 0 .. 1, of one image at least.
    right
        Whether its class is the image's, `[n]`.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger (2017), On calibration of modern neural networks,
    ICML. By chance: J. Broecker and L. A. Smith (2007), Increasing the reliability of reliability
    diagrams, Weather and Forecasting 22, 651-661.
    """
    confidence = confidence.astype(np.float64)
    places = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(places, minlength=BINS)
    total = np.bincount(places, weights=confidence, minlength=BINS)

    def right_in_bins(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        return np.bincount(places, weights=which, minlength=BINS).astype(np.float64)

    def error_of(count: npt.NDArray[np.float64]) -> float:
        return float(np.abs(count - total).sum() / len(confidence))

    count = right_in_bins(right)
    rng = np.random.default_rng(0)
    chance = [error_of(right_in_bins(rng.random(len(places)) < confidence)) for _ in range(DRAWS)]
    filled = np.maximum(images, 1)
    bins = zip(images, total / filled, count / filled, strict=True)
    return Calibration(
        error_of(count),
        float(np.mean(chance)),
        float(confidence.mean()),
        tuple(
            Bin(place / BINS, (place + 1) / BINS, int(n), float(mean), float(share))
            for place, (n, mean, share) in enumerate(bins)
        ),
    )
