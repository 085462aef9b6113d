"""Each rewrite of weights changes no result: float64, against the modules that it rewrites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_vits import randomize
from timm.layers import LayerScale
from torch import nn
from torch.nn import functional

from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.rewrites import Linear
from hgprompt_edge.export.graph.writer import to_array

WIDTH, HEADS, TOKENS, PROMPT = 12, 3, 7, 4


def random(module: Any) -> Any:
    return randomize(module, 0).double()


def apply(x: np.ndarray, linear: Linear) -> np.ndarray:
    weight, bias = linear
    return x @ weight if bias is None else x @ weight + bias


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def run(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.tensor(x)).numpy()


def plain_norm(x: np.ndarray, eps: float) -> np.ndarray:
    return functional.layer_norm(torch.tensor(x), (WIDTH,), eps=eps).numpy()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_bias", [True, False])
def test_fold_affine(bias: bool, norm_bias: bool) -> None:
    norm = random(nn.LayerNorm(WIDTH, eps=0.1, bias=norm_bias))
    layer = random(nn.Linear(WIDTH, 5, bias=bias))
    x = rows(TOKENS, WIDTH)
    folded = rewrites.fold_affine(norm, rewrites.linear_of(layer))
    np.testing.assert_allclose(
        apply(plain_norm(x, 0.1), folded), run(layer, run(norm, x)), atol=1e-12
    )


def test_fold_affine_of_a_norm_without_one() -> None:
    layer = rewrites.linear_of(random(nn.Linear(WIDTH, 5)))
    folded = rewrites.fold_affine(nn.LayerNorm(WIDTH, elementwise_affine=False), layer)
    np.testing.assert_array_equal(folded[0], layer[0])
    np.testing.assert_array_equal(folded[1], layer[1])


@pytest.mark.parametrize("scale", [LayerScale(5), nn.Identity()])
def test_fold_layer_scale(scale: nn.Module) -> None:
    layer, scale = random(nn.Linear(WIDTH, 5)), random(scale)
    x = rows(TOKENS, WIDTH)
    folded = rewrites.fold_layer_scale(rewrites.linear_of(layer), scale)
    np.testing.assert_allclose(apply(x, folded), run(scale, run(layer, x)), atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_fold_normalization(bias: bool) -> None:
    convolution = random(nn.Conv2d(3, 5, 4, 4, bias=bias))
    mean, std = (0.2, 0.4, 0.6), (0.3, 0.5, 0.7)
    patch = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(float)
    normalised = (patch / 255 - mean) / std
    expected = run(convolution, normalised.transpose(2, 0, 1)[None])[0, :, 0, 0]
    kernel = to_array(convolution.weight).transpose(2, 3, 1, 0)
    given = to_array(convolution.bias) if bias else None
    folded = rewrites.fold_normalization(kernel, given, mean, std)
    np.testing.assert_allclose(apply(patch.ravel(), folded), expected, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_split_and_join(bias: bool) -> None:
    layer = random(nn.Linear(WIDTH, 3 * WIDTH, bias=bias))
    x = rows(TOKENS, WIDTH)
    parts = rewrites.split_qkv(rewrites.linear_of(layer))
    apart = np.concatenate([apply(x, part) for part in parts], axis=1)
    np.testing.assert_allclose(apart, run(layer, x), atol=1e-12)
    np.testing.assert_allclose(apply(x, rewrites.join(*parts)), run(layer, x), atol=1e-12)
    q, k, v = parts
    _, joined_bias = rewrites.join(q, (k[0], None), v)
    if bias:  # one that is missing is zero
        np.testing.assert_array_equal(joined_bias[WIDTH : 2 * WIDTH], np.zeros(WIDTH))


def heads_of(x: np.ndarray) -> np.ndarray:
    """`[N, D]` to `[H, N, d]`."""
    return x.reshape(len(x), HEADS, WIDTH // HEADS).transpose(1, 0, 2)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of `[H, *, d]`, heads merged: `[rows, D]`."""
    q, k, v = (torch.tensor(x)[None] for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, scale=1.0)[0].numpy()
    return mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1)


def weights() -> tuple[Linear, Linear, Linear, Linear]:
    layers = [
        rewrites.linear_of(randomize(nn.Linear(WIDTH, WIDTH), seed).double()) for seed in range(4)
    ]
    return layers[0], layers[1], layers[2], layers[3]


@pytest.mark.parametrize("prompted", [True, False])
def test_key_bias_goes_away_and_value_bias_moves(prompted: bool) -> None:
    q, k, v, projection = weights()
    z, prompt = rows(TOKENS, WIDTH), rows(PROMPT if prompted else 0, WIDTH, seed=1)
    given = [heads_of(apply(prompt, layer)) for layer in (k, v)]
    image = [heads_of(apply(z, layer)) for layer in (q, k, v)]
    keys, values = (np.concatenate(pair, 1) for pair in zip(given, image[1:], strict=True))
    expected = apply(attend(image[0], keys, values), projection)

    k, keys_given = rewrites.drop_key_bias(k, given[0])
    v, projection, values_given = rewrites.move_value_bias(v, projection, given[1])
    assert k[1] is None
    assert v[1] is None
    keys = np.concatenate([keys_given, heads_of(apply(z, k))], 1)
    values = np.concatenate([values_given, heads_of(apply(z, v))], 1)
    np.testing.assert_allclose(
        apply(attend(image[0], keys, values), projection), expected, atol=1e-12
    )
    assert rewrites.drop_key_bias(k, None)[1] is None
    assert rewrites.move_value_bias(v, projection, None)[2] is None


def test_absorbed_keys_and_values() -> None:
    q, k, v, _ = weights()
    k, v = (k[0], None), (v[0], None)
    z = rows(TOKENS, WIDTH)
    query = heads_of(apply(z[:1], q))  # [H, 1, d]
    keys, values = heads_of(apply(z, k)), heads_of(apply(z, v))
    seeking = query @ rewrites.absorb_keys(k, HEADS)
    np.testing.assert_allclose(seeking @ z.T, query @ keys.transpose(0, 2, 1), atol=1e-12)
    shares = np.random.default_rng(2).dirichlet(np.ones(TOKENS), (HEADS, 1))
    mixed = shares @ z @ rewrites.absorb_values(v, HEADS)
    np.testing.assert_allclose(mixed, shares @ values, atol=1e-12)
