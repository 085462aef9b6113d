"""Softmax and its logarithm over the last axis, safe for logits of any size."""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

Array = TypeVar("Array", npt.NDArray[np.float32], npt.NDArray[np.float64])


def softmax(logits: Array) -> Array:
    """Probabilities in the logits' own precision."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast("Array", exponentials / exponentials.sum(axis=-1, keepdims=True))


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logarithms of the probabilities, in float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    total: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return total
