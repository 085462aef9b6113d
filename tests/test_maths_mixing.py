"""METHOD eq. 2 = projecting the LayerNorm of the mix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_vits import make_backbone

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import project_prefix
from hgprompt_edge.maths.mixing import BlockWeights, Norm, project_bank
from hgprompt_edge.prompts.mixing import mix

SOURCES, TOKENS = 4, 3


def norm_of(module: torch.nn.Module) -> Norm | None:
    if not isinstance(module, torch.nn.LayerNorm):
        return None
    return Norm(module.weight.numpy(), module.bias.numpy(), module.eps)


def weights_of(block: torch.nn.Module) -> BlockWeights:
    weight = block.attn.qkv.weight.numpy().T
    width = weight.shape[1] // 3
    bias = block.attn.qkv.bias
    bias = np.zeros(3 * width, np.float32) if bias is None else bias.numpy()
    norm = norm_of(block.norm1)
    assert norm is not None
    return BlockWeights(
        norm=norm,
        weight_k=weight[:, width : 2 * width],
        bias_k=bias[width : 2 * width],
        weight_v=weight[:, 2 * width :],
        bias_v=bias[2 * width :],
        key_norm=norm_of(block.attn.k_norm),
    )


def sources(layers: int, width: int, seed: int = 0) -> np.ndarray:
    """Prompts that share a start, as those of a bank do, and an offset that LayerNorm removes."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(1, layers, TOKENS, width))
    own = 0.5 * rng.normal(size=(SOURCES, layers, TOKENS, width))
    return (start + own + 0.7).astype(np.float32)


class Case:
    def __init__(self, backbone: Backbone, layers: int | None = None) -> None:
        self.backbone = backbone
        blocks = [weights_of(block) for block in backbone.model.blocks][:layers]
        self.tokens = sources(len(blocks), backbone.embed_dim)
        self.bank = project_bank(self.tokens, blocks, backbone.num_heads)

    def check(self, weights: np.ndarray, tolerance: float = 1e-5) -> None:
        keys, values = self.bank.keys_values(weights)
        assert keys.dtype == values.dtype == np.float32
        mixed = np.tensordot(weights, self.tokens.astype(np.float64), axes=1)
        model = self.backbone.model.double()
        try:
            expected = project_prefix(model, torch.from_numpy(mixed))
        finally:
            model.float()
        assert len(keys) == len(values) == len(expected)
        for layer, (k, v) in enumerate(expected):
            for got, want in ((keys[layer], k.numpy()), (values[layer], v.numpy())):
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


PLAIN = Case(make_backbone("tanh gelu"))
QK_NORM = Case(make_backbone("layer scale, pre-norm, qk-norm"))
LARGE_EPS = Case(make_backbone("large epsilon"))
NO_BIAS = Case(make_backbone("qk-norm"))
SHALLOW = Case(make_backbone("tanh gelu"), layers=1)

simplex = st.lists(st.floats(1e-12, 1), min_size=SOURCES, max_size=SOURCES).map(
    lambda values: np.array(values) / np.sum(values)
)


@given(weights=simplex)
@example(weights=np.full(SOURCES, 1 / SOURCES))
@example(weights=np.array([1.0, 0, 0, 0]))
@example(weights=np.array([0, 0, 0, 1.0]))
@example(weights=np.array([1 - 3e-30, 1e-30, 1e-30, 1e-30]))
@example(weights=np.array([1e-8, 1 - 3e-8, 1e-8, 1e-8]))
@settings(max_examples=40, deadline=None)
def test_mixing_equals_projecting_the_mix(weights: np.ndarray) -> None:
    for case in (PLAIN, QK_NORM, LARGE_EPS, NO_BIAS, SHALLOW):
        case.check(weights)


def test_folded_prompt_of_a_bundle_and_the_device_agree() -> None:
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    prompt = torch.tensor(mix(PLAIN.tokens, weights))
    keys, values = PLAIN.bank.keys_values(weights)
    for layer, (k, v) in enumerate(project_prefix(PLAIN.backbone.model, prompt)):
        np.testing.assert_allclose(keys[layer], k.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(values[layer], v.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [[1.5, -0.5, 0.5, -0.5], [0, 0, 0, 0]])
def test_equation_holds_off_the_simplex(weights: list[float]) -> None:
    PLAIN.check(np.array(weights, dtype=np.float64), tolerance=1e-4)


def test_equal_sources_mix_to_themselves() -> None:
    tokens = np.repeat(PLAIN.tokens[:1], 3, axis=0)
    blocks = [weights_of(block) for block in PLAIN.backbone.model.blocks]
    bank = project_bank(tokens, blocks, PLAIN.backbone.num_heads)
    one, other = bank.keys_values([1, 0, 0]), bank.keys_values([0.2, 0.3, 0.5])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-5)


def test_sources_that_cancel_stay_finite() -> None:
    tokens = np.concatenate([PLAIN.tokens[:1], -PLAIN.tokens[:1]])
    blocks = [weights_of(block) for block in PLAIN.backbone.model.blocks]
    bank = project_bank(tokens, blocks, PLAIN.backbone.num_heads)
    for array in bank.keys_values([0.5, 0.5]):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("seed", range(8))
def test_rounding_never_makes_a_variance_negative(seed: int) -> None:
    block = weights_of(PLAIN.backbone.model.blocks[0])
    block = replace(block, norm=replace(block.norm, eps=1e-12))
    rng = np.random.default_rng(seed)
    first, second = 1e4 * rng.normal(size=(2, 1, 50, 32)).astype(np.float32)
    bank = project_bank(np.stack([first, second, -first - second]), [block], 2)
    for array in bank.keys_values(np.full(3, 1 / 3)):
        assert np.isfinite(array).all()


def test_layers_must_fit_the_blocks() -> None:
    blocks = [weights_of(block) for block in PLAIN.backbone.model.blocks]
    with pytest.raises(ValueError, match=r"must be \[N, 2, T, D\]"):
        project_bank(sources(3, 32), blocks, 2)
