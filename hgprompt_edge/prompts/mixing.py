"""Mix prompts by weights, one for each prompt or one for each prompt and layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MixingWeights:
    """Weights of named prompts: one for each prompt, or one for each prompt and layer.

    Attributes
    ----------
    names
        Of the `N` prompts, in the order of the weights.
    values
        `[N]`, or `[N, L]` where each layer has its own; each column sums to 1, or is zero where no
        prompt is used.

    Raises
    ------
    ValueError
        Not as many weights as names, or an array of another rank.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.values.ndim not in (1, 2) or len(self.values) != len(self.names):
            raise ValueError(
                f"The 'values' must be [{len(self.names)}] or [{len(self.names)}, L]. "
                f"Got {list(self.values.shape)} instead."
            )

    @property
    def by_layer(self) -> bool:
        """Whether each layer has its own weights."""
        return self.values.ndim == 2

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share `[N]` of each prompt: its weight, the mean over the layers where these differ."""
        return source_shares(self.values)

    @property
    def named_shares(self) -> dict[str, float]:
        """Share of each prompt by its name."""
        return dict(zip(self.names, self.shares.tolist(), strict=True))

    def mix(self, tokens: Floats) -> Floats:
        """Fold `tokens [N, L, T, D]` into one prompt `[L, T, D]`."""
        return mix(tokens, self.values)


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
