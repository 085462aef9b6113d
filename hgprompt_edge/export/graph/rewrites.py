"""Exact rewrites of the weights of a vision transformer, one function each, and their switches.

Every function takes and gives float64 arrays, so that several foldings are rounded once, at the
end. A linear layer is a pair: weight `[D, E]`, applied as `x @ weight`, and bias `[E]` or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hgprompt_edge.export.graph.writer import Doubles, to_array

Linear = tuple[Doubles, Doubles | None]


class Attention(str, Enum):
    """How attention is written down.

    `PLAIN`: MatMul, Softmax, MatMul. `FUSED`: onnxruntime's own operator MultiHeadAttention.
    `STANDARD`: the operator Attention of opset 23, prefix and image joined before it. `PAST`: that
    operator with the prefix as past keys and values.
    """

    PLAIN = "plain"
    FUSED = "fused"
    STANDARD = "standard"
    PAST = "past"


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites a graph gets: for the ablation in the benchmark, not for users.

    Attributes
    ----------
    class_row
        The last block computes the class token's row alone, where that is what is pooled.
    absorbed
        Its key and value projections move to the query and to the mixed tokens (METHOD 2).
    affine
        A LayerNorm's scale and bias move into the matrix behind it.
    biases
        The keys' bias goes away, since softmax does not see it; the values' moves behind the mix.
    joined
        Queries, keys and values come from one product.
    attention
        How attention is written.
    """

    class_row: bool = True
    absorbed: bool = True
    affine: bool = True
    biases: bool = True
    joined: bool = False
    attention: Attention = Attention.STANDARD


NO_REWRITES = Rewrites(False, False, False, False, False, Attention.PLAIN)


def linear_of(layer: nn.Linear) -> Linear:
    """Weight `[D, E]` and bias of a layer of PyTorch."""
    return to_array(layer.weight).T, None if layer.bias is None else to_array(layer.bias)


def fold_layer_scale(linear: Linear, scale: Any) -> Linear:
    """`gamma * (x W + b)` as one linear layer; `scale` without `gamma` changes nothing."""
    gamma = getattr(scale, "gamma", None)
    return linear if gamma is None else multiply(linear, to_array(gamma))


def multiply(linear: Linear, factor: Doubles | float) -> Linear:
    """`(x W + b) * factor` as one linear layer; the factor is a number or `[E]`."""
    weight, bias = linear
    return weight * factor, None if bias is None else bias * factor


def fold_affine(norm: nn.LayerNorm, linear: Linear) -> Linear:
    """`(gamma * z + beta) W + b = z (gamma W) + (beta W + b)`: the norm's affine part, folded.

    `z` may hold several normed tokens, one behind the other.
    """
    weight, bias = linear
    if norm.bias is not None:
        shift = affine_part(norm.bias, len(weight)) @ weight
        bias = shift if bias is None else bias + shift
    if norm.weight is None:
        return weight, bias
    return affine_part(norm.weight, len(weight))[:, None] * weight, bias


def affine_part(parameter: torch.Tensor, width: int) -> Doubles:
    """Scale or bias `[D]` of a norm for features of some width, which hold one or more tokens."""
    array = to_array(parameter)
    return np.tile(array, width // len(array))


def fold_normalization(
    weight: Doubles, bias: Doubles | None, mean: npt.ArrayLike, std: npt.ArrayLike
) -> tuple[Doubles, Doubles]:
    """Patch projection `[p, p, 3, D]` of normalised pixels to one of raw ones, 0 to 255.

    Returns the weight `[p p 3, D]` and the bias `[D]`.
    """
    mean, std = np.asarray(mean)[:, None], np.asarray(std)[:, None]
    shift = -(weight * (mean / std)).sum((0, 1, 2))
    flat = (weight / (255 * std)).reshape(-1, weight.shape[-1])
    return flat, shift if bias is None else bias + shift


def split_qkv(qkv: Linear) -> tuple[Linear, Linear, Linear]:
    """Cut a joined projection into queries, keys and values: `[D, 3 D]` to three of `[D, D]`."""
    weight, bias = qkv
    biases = (None, None, None) if bias is None else np.split(bias, 3)
    q, k, v = zip(np.split(weight, 3, axis=1), biases, strict=True)
    return q, k, v


def join(*layers: Linear) -> Linear:
    """Several linear layers as one that gives their outputs side by side, `[D, 3 D]` for three.

    A missing bias is zero, all missing stay missing.
    """
    weight = np.concatenate([part for part, _ in layers], axis=1)
    if all(bias is None for _, bias in layers):
        return weight, None
    biases = [np.zeros(part.shape[1]) if bias is None else bias for part, bias in layers]
    return weight, np.concatenate(biases)


def drop_key_bias(k: Linear, prefix: Doubles | None) -> tuple[Linear, Doubles | None]:
    """Keys without their bias, for the image and for the prefix `[H, T, d]`.

    `q . (k_j + b) = q . k_j + q . b`: the last term is the same for all keys `j`, and softmax does
    not see it. A prefix contains the bias, so it is taken from it. Not exact where the keys are
    normalised afterwards.
    """
    weight, bias = k
    return (weight, None), None if prefix is None else _without(prefix, bias)


def move_value_bias(
    v: Linear, projection: Linear, prefix: Doubles | None
) -> tuple[Linear, Linear, Doubles | None]:
    """Values without their bias, which moves into the projection behind attention.

    The shares sum to 1, so `sum_j p_j (v_j + b) = sum_j p_j v_j + b`.
    """
    weight, bias = v
    out_weight, out_bias = projection
    if bias is not None:
        out_bias = bias @ out_weight + (0 if out_bias is None else out_bias)
    taken = None if prefix is None else _without(prefix, bias)
    return (weight, None), (out_weight, out_bias), taken


def absorb_keys(k: Linear, heads: int) -> Doubles:
    """`[H, d, D]`: takes a head's query to where it meets the tokens themselves (METHOD 2).

    `q^T K = (W_k q)^T z`, without the bias, see `drop_key_bias`.
    """
    weight, _ = k
    return np.transpose(weight.reshape(len(weight), heads, -1), (1, 2, 0))


def absorb_values(v: Linear, heads: int) -> Doubles:
    """`[H, D, d]`: takes a head's mix of tokens to its mix of values (METHOD 2).

    `sum_j p_j V_j = W_v (sum_j p_j z_j)`, without the bias, see `move_value_bias`.
    """
    weight, _ = v
    return np.transpose(weight.reshape(len(weight), heads, -1), (1, 0, 2))


def _without(prefix: Doubles, bias: Doubles | None) -> Doubles:
    """Take a bias `[H d]` from a prefix `[H, T, d]`."""
    return prefix if bias is None else prefix - bias.reshape(len(prefix), 1, -1)
