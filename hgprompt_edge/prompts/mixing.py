"""Mix prompts by weights, one for each prompt or one for each prompt and layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def mix(tokens: Floats, weights: npt.ArrayLike) -> Floats:
    """Fold `tokens [N, L, T, D]` into one prompt `[L, T, D]` (METHOD eq. 1).

    `weights` are `[N]`, or `[N, L]` where each layer has its own.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim == 1:
        return np.tensordot(weights, tokens.astype(np.float64), axes=1).astype(np.float32)
    mixed: Floats = np.einsum("nl,nltd->ltd", weights, tokens, dtype=np.float64).astype(np.float32)
    return mixed


def on_basis(weights: npt.ArrayLike, size: int) -> npt.NDArray[np.float64]:
    """Weights `[N]` or `[N, L]` of the sources as weights of a basis of so many prompts."""
    weights = np.asarray(weights, dtype=np.float64)
    return np.concatenate([weights, np.zeros((size - len(weights), *weights.shape[1:]))])


def source_shares(weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Share `[N]` of each source: its weight, of weights `[N, L]` the mean over the layers."""
    weights = np.asarray(weights, dtype=np.float64)
    return weights if weights.ndim == 1 else weights.mean(1)


def effective_sources(weights: npt.ArrayLike) -> float:
    """Effective number of sources: the exponential of the entropy of their shares.

    `weights` are those of the sources, `[N]` or `[N, L]`; they need not sum to 1.
    """
    weights = source_shares(weights)
    positive = weights[weights > 0]
    positive = positive / positive.sum()
    return float(np.exp(-np.sum(positive * np.log(positive))))
