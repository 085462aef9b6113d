"""Reorder the tokens of a prompt so that they correspond to another prompt's (METHOD 1)."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def match_tokens(reference: Floats, tokens: Floats) -> Floats:
    """Permute `tokens [L, T, D]`, layer by layer, to correspond to `reference [L, T, D]`."""
    # scipy comes with the server extra; a device never matches.
    from scipy.optimize import linear_sum_assignment

    result = np.empty_like(tokens)
    for layer, (target, moving) in enumerate(zip(reference, tokens, strict=True)):
        cosine = _centred_directions(target) @ _centred_directions(moving).T  # [T, T]
        _, columns = linear_sum_assignment(cosine, maximize=True)
        result[layer] = moving[columns]
    return result


def _centred_directions(tokens: Floats) -> npt.NDArray[np.float64]:
    centred = tokens.astype(np.float64) - tokens.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(centred, axis=-1, keepdims=True)
    return cast("npt.NDArray[np.float64]", centred / np.maximum(norms, 1e-12))
