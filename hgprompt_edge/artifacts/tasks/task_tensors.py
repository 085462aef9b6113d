"""What a task is to a backbone that serves many: keys, values and heads, as tensors.

In comments, `L` layers, `P` folded prompts, `T` tokens, width `D`, features of width `W`, `K`
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

KEYS, VALUES, MASK, HEAD, BIAS = "prefix_k", "prefix_v", "prefix_bias", "head_weight", "head_bias"
NAMES = (KEYS, VALUES, MASK, HEAD, BIAS)
"""Inputs of the backbone's graph beside the image, in this order."""
SHUT = -1e4
"""Added to the scores of padding: no token sees it, and a 16 bit float holds it."""


@dataclass(frozen=True)
class TaskTensors:
    """A task's prompts and heads, ready to be fed.

    Attributes
    ----------
    keys, values
        `[L, P, T, D]` float32, of each folded prompt in each layer.
    mask
        `[P, T]` float32, added to the scores: 0, or `SHUT` for padding.
    head_weight, head_bias
        `[P, W, K]`, `[P, K]` float32.
    """

    keys: Floats
    values: Floats
    mask: Floats
    head_weight: Floats
    head_bias: Floats

    def inputs(self) -> dict[str, Floats]:
        """All that the backbone takes beside the image, by name."""
        arrays = (self.keys, self.values, self.mask, self.head_weight, self.head_bias)
        return dict(zip(NAMES, arrays, strict=True))


def pad_tokens(
    pairs: Sequence[tuple[Floats, Floats] | None], layers: int, width: int
) -> tuple[Floats, Floats, Floats]:
    """Bring the folded prompts of a task to one number of tokens, at least one.

    Parameters
    ----------
    pairs
        Keys and values `[L, T, D]` of each; None for no prompt.

    Returns
    -------
    `TaskTensors.keys`, `values` and `mask`.
    """
    tokens = max([1, *(pair[0].shape[1] for pair in pairs if pair is not None)])
    keys, values = (np.zeros((layers, len(pairs), tokens, width), np.float32) for _ in range(2))
    mask = np.full((len(pairs), tokens), SHUT, np.float32)
    for index, pair in enumerate(pairs):
        if pair is not None:
            count = pair[0].shape[1]
            keys[:, index, :count], values[:, index, :count] = pair
            mask[index, :count] = 0
    return keys, values, mask
