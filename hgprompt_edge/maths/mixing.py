"""Mix source prompts on a device without projecting them again (METHOD eq. 2).

LayerNorm of the mix is the only nonlinearity between the weights and the keys and values of a deep
prompt. With the centred, scaled and projected sources at hand, a new mix costs `O(N L T D)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class Rows:
    """Arrays of one shape as one array `[N, ...]`, which is made where it is needed and let go.

    Banks that share prompts hold each of them once.
    """

    def __init__(self, arrays: Sequence[Floats]) -> None:
        self._arrays = arrays
        self.shape = (len(arrays), *arrays[0].shape)

    def __array__(
        self,
        dtype: np.dtype[np.float32] | None = None,
        copy: bool | None = None,  # numpy asks; the array is always a new one
    ) -> Floats:
        """Give numpy the array."""
        del copy
        return np.stack(self._arrays).astype(dtype or np.float32, copy=False)


@dataclass(frozen=True)
class BankKeysValues:
    """Keys and values of any mix of a bank, precomputed up to the weights.

    Attributes
    ----------
    keys, values
        `A_i` of each source, `[N, L, T, E]`.
    gram
        `<c_i, c_j>` of each token, `[L, T, N, N]`.
    key_bias, value_bias
        The constants `B`, `[L, E]`.
    eps
        Of each block's LayerNorm, `[L]`.
    heads, width
        Attention heads `H`, and the width `D` of a token.
    key_norm
        Of each head's keys where there is qk-norm: scale and bias `[L, d]`, epsilon `[L]`.
    """

    keys: Floats | Rows
    values: Floats | Rows
    gram: Doubles
    key_bias: Floats
    value_bias: Floats
    eps: Doubles
    heads: int
    width: int
    key_norm: tuple[Floats, Floats, Doubles] | None = None

    def keys_values(self, weights: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Keys and values `[L, H, T, d]` float32 of the mix with `weights [N]` (METHOD eq. 2).

        A block with qk-norm normalises each head's mixed keys afterwards, as it does with any key:
        that norm is not linear, so it cannot be moved before the mix.
        """
        a = np.asarray(weights, dtype=np.float64)
        # s(a)^2 = a^T G a / D + eps, [L, T]; rounding must not make the variance negative.
        variance = np.maximum((self.gram @ a) @ a, 0)
        inverse = 1 / np.sqrt(variance / self.width + self.eps[:, None])
        keys = self._split(_mix(a, np.asarray(self.keys), inverse, self.key_bias))
        values = self._split(_mix(a, np.asarray(self.values), inverse, self.value_bias))
        if self.key_norm is not None:
            keys = _layer_norm(keys, *self.key_norm)
        return keys, values

    def _split(self, x: Floats) -> Floats:
        """`[L, T, E]` to `[L, H, T, d]`."""
        layers, tokens, _ = x.shape
        heads = x.reshape(layers, tokens, self.heads, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(heads)


def project_bank(tokens: Floats, blocks: Sequence[BlockWeights], heads: int) -> BankKeysValues:
    """Centre, scale and project the sources `tokens [N, L, T, D]` for the `L` blocks."""
    if tokens.ndim != 4 or tokens.shape[1] != len(blocks):
        raise ValueError(
            f"The 'tokens' must be [N, {len(blocks)}, T, D], one layer for each of the "
            f"blocks. Got {list(tokens.shape)} instead."
        )
    centred = tokens.astype(np.float64)
    centred -= centred.mean(axis=-1, keepdims=True)  # c_i
    layers = list(zip(blocks, np.moveaxis(centred, 1, 0), strict=True))
    norms = [block.key_norm for block in blocks if block.key_norm is not None]
    return BankKeysValues(
        keys=np.stack([_project(c, b.norm, b.weight_k) for b, c in layers], axis=1),
        values=np.stack([_project(c, b.norm, b.weight_v) for b, c in layers], axis=1),
        gram=np.einsum("nltd,mltd->ltnm", centred, centred, optimize=True),
        key_bias=_rows(b.norm.bias @ b.weight_k + b.bias_k for b in blocks),
        value_bias=_rows(b.norm.bias @ b.weight_v + b.bias_v for b in blocks),
        eps=np.array([block.norm.eps for block in blocks]),
        heads=heads,
        width=tokens.shape[3],
        key_norm=(
            (
                _rows(norm.scale for norm in norms),
                _rows(norm.bias for norm in norms),
                np.array([norm.eps for norm in norms]),
            )
            if norms
            else None
        ),
    )


def _rows(rows: Iterable[Floats]) -> Floats:
    return np.stack(list(rows)).astype(np.float32)


def _mix(a: Doubles, projected: Floats, inverse: Doubles, bias: Floats) -> Floats:
    """`(sum_i a_i A_i) / s(a) + B`, `[L, T, E]`."""
    mixed = np.tensordot(a.astype(np.float32), projected, axes=1)
    return cast("Floats", mixed * inverse[..., None].astype(np.float32) + bias[:, None])


def _project(centred: Doubles, norm: Norm, weight: Floats) -> Floats:
    """`A_i = (gamma * c_i) W` for one block, `[N, T, E]`."""
    return ((norm.scale * centred) @ weight.astype(np.float64)).astype(np.float32)


def _layer_norm(x: Floats, scale: Floats, bias: Floats, eps: Doubles) -> Floats:
    """LayerNorm over the heads' width of keys `[L, H, T, d]`, another one in each layer."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + eps[:, None, None, None])
    scaled = normed * scale[:, None, None] + bias[:, None, None]
    return cast("Floats", scaled.astype(np.float32))
