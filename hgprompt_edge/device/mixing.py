"""Mix source prompts on a device without projecting them again (METHOD eq. 2).

LayerNorm of the mix is the only nonlinearity between the weights and the keys and values of a deep
prompt. With the centred, scaled and projected sources at hand, a new mix costs `O(N L T D)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last axis: `scale [D]`, `bias [D]` and its epsilon."""

    scale: Floats
    bias: Floats
    eps: float


@dataclass(frozen=True)
class BlockWeights:
    """What turns prompt tokens `[T, D]` into keys and values in one block.

    Attributes
    ----------
    norm
        The LayerNorm before attention.
    weight_k, weight_v
        `[D, E]`, applied as `z @ weight`; `E` is heads times head width.
    bias_k, bias_v
        `[E]`; zeros where the block has none.
    key_norm
        The norm of each head's keys `[d]`, where the block has one (qk-norm).
    """

    norm: Norm
    weight_k: Floats
    bias_k: Floats
    weight_v: Floats
    bias_v: Floats
    key_norm: Norm | None = None


class BankKeysValues:
    """Keys and values of any mix of a bank, precomputed up to the weights.

    Parameters
    ----------
    tokens
        The sources, `[N, L, T, D]`.
    blocks
        Weights of the `L` blocks that take a prompt.
    heads
        Attention heads `H`.
    """

    def __init__(self, tokens: Floats, blocks: Sequence[BlockWeights], heads: int) -> None:
        if tokens.ndim != 4 or tokens.shape[1] != len(blocks):
            raise ValueError(
                f"The 'tokens' must be [N, {len(blocks)}, T, D], one layer for each of the "
                f"blocks. Got {list(tokens.shape)} instead."
            )
        self.heads, self._width = heads, tokens.shape[3]
        centred = tokens.astype(np.float64)
        centred -= centred.mean(axis=-1, keepdims=True)  # c_i
        self._gram = np.einsum("nltd,mltd->ltnm", centred, centred, optimize=True)
        self._eps = np.array([block.norm.eps for block in blocks])
        self._key_norms = [block.key_norm for block in blocks]
        layers = list(zip(blocks, np.moveaxis(centred, 1, 0), strict=True))
        self._keys = np.stack([_project(c, b.norm, b.weight_k) for b, c in layers], axis=1)
        self._values = np.stack([_project(c, b.norm, b.weight_v) for b, c in layers], axis=1)
        self._key_bias = np.stack([b.norm.bias @ b.weight_k + b.bias_k for b in blocks])
        self._value_bias = np.stack([b.norm.bias @ b.weight_v + b.bias_v for b in blocks])

    def keys_values(self, weights: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Keys and values `[L, H, T, d]` float32 of the mix with `weights [N]` (METHOD eq. 2).

        A block with qk-norm normalises each head's mixed keys afterwards, as it does with any key:
        that norm is not linear, so it cannot be moved before the mix.
        """
        a = np.asarray(weights, dtype=np.float64)
        # s(a)^2 = a^T G a / D + eps, [L, T]; rounding must not make the variance negative.
        variance = np.maximum(np.einsum("n,ltnm,m->lt", a, self._gram, a, optimize=True), 0)
        inverse = 1 / np.sqrt(variance / self._width + self._eps[:, None])
        keys = self._split(self._mix(a, self._keys, inverse, self._key_bias))
        values = self._split(self._mix(a, self._values, inverse, self._value_bias))
        for layer, norm in enumerate(self._key_norms):
            if norm is not None:
                keys[layer] = _layer_norm(keys[layer], norm)
        return keys, values

    def _mix(self, a: Doubles, projected: Floats, inverse: Doubles, bias: Floats) -> Floats:
        """`(sum_i a_i A_i) / s(a) + B`, `[L, T, E]`."""
        mixed = np.tensordot(a.astype(np.float32), projected, axes=1)
        return cast("Floats", mixed * inverse[..., None].astype(np.float32) + bias[:, None])

    def _split(self, x: Floats) -> Floats:
        """`[L, T, E]` to `[L, H, T, d]`."""
        layers, tokens, _ = x.shape
        heads = x.reshape(layers, tokens, self.heads, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(heads)


def _project(centred: Doubles, norm: Norm, weight: Floats) -> Floats:
    """`A_i = (gamma * c_i) W` for one block, `[N, T, E]`."""
    return ((norm.scale * centred) @ weight.astype(np.float64)).astype(np.float32)


def _layer_norm(x: Floats, norm: Norm) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return cast("Floats", centred / np.sqrt(variance + norm.eps) * norm.scale + norm.bias)
