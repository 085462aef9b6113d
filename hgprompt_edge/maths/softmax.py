"""Softmax and its logarithm over the last axis, safe for logits of any size."""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

Array = TypeVar("Array", npt.NDArray[np.float32], npt.NDArray[np.float64])


def softmax(logits: Array) -> Array:
    """Probabilities in the logits' own precision; NaN beside a logit that is NaN or infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return cast("Array", exponentials / exponentials.sum(axis=-1, keepdims=True))


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logarithms of the probabilities, in float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    total: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return total


def log_mean_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Log of the mean probability `[n, K]`, of logits `[P, n, K]` of `P` folded prompts.

    The sum is taken in logarithms in float64, so that no probability is rounded to zero on the way.
    """
    logs = log_softmax(logits)
    largest = logs.max(axis=0)
    total = np.exp(logs - largest).sum(axis=0)
    return cast("npt.NDArray[np.float32]", (largest + np.log(total / len(logs))).astype(np.float32))
