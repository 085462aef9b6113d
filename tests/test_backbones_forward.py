"""Token form = prefix form, over the families of vision transformers that are supported."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.backbones.backbone import wrap_backbone
from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.forward import (
    attention,
    block_rows,
    extract_features,
    features_prefix,
    features_token,
    normalize,
    pool,
    prepare_tokens,
    project_prefix,
)
from hgprompt_edge.backbones.load import load_backbone

FAMILIES = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 64}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "deit3": ("deit3_small_patch16_224", {"img_size": 64}),
    "clip quick-gelu": ("vit_base_patch16_clip_quickgelu_224", {"img_size": 64}),
    "qk-norm": ("vit_tiny_patch16_224", {"img_size": 64, "qk_norm": True, "qkv_bias": False}),
    "average": ("vit_base_patch16_siglip_gap_224", {"img_size": 64}),
    "average with registers": ("vit_wee_patch16_reg1_gap_256", {"img_size": 64}),
}
TOKENS = 5


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its neutral start, at a scale that keeps activations sane."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = ("norm" in name and name.endswith("weight")) or name.endswith("gamma")
            if is_scale:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim >= 2 and name.endswith("weight"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval().requires_grad_(False)


def make(family: str, **options: int) -> VisionTransformer:
    name, kwargs = FAMILIES[family]
    return randomize(timm.create_model(name, num_classes=0, **{**kwargs, **options}))


def images(model: VisionTransformer, n: int = 3) -> Tensor:
    side = model.patch_embed.img_size[0]
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def random_prompt(model: VisionTransformer, mode: str, tokens: int = TOKENS) -> Tensor:
    layers = len(model.blocks) if mode == "deep" else 1
    return torch.randn(layers, tokens, model.embed_dim, generator=torch.Generator().manual_seed(2))


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("mode", ["deep", "shallow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_form_equals_token_form(family: str, mode: str) -> None:
    model = make(family, depth=3)
    prompt, x = random_prompt(model, mode), images(model)
    token = features_token(model, x, prompt)
    assert token.shape == (3, model.embed_dim)
    assert relative(features_prefix(model, x, prompt), token) < 1e-5
    unprompted = features_token(model, x, None)
    assert relative(token, unprompted) > 1e-2, "the prompt does nothing, so the test proves little"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_prompt_both_forms_equal_timm(family: str) -> None:
    model = make(family, depth=3)
    x = images(model)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert relative(features_token(model, x, None), expected) < 1e-5
    assert relative(features_prefix(model, x, None), expected) < 1e-5


@pytest.mark.parametrize("family", ["plain", "average with registers", "clip quick-gelu"])
@pytest.mark.parametrize("prompted", [True, False])
def test_rows_of_blocks_equal_what_hooks_see_there(family: str, prompted: bool) -> None:
    model = make(family, depth=3)
    prompt, x = random_prompt(model, "deep") if prompted else None, images(model)
    features, rows = block_rows(model, x, prompt)
    assert relative(features, features_token(model, x, prompt)) < 1e-5
    sequence = prepare_tokens(model, x)
    count = sequence.shape[1]
    for layer, block in enumerate(model.blocks):
        parts = [sequence] if prompt is None else [sequence, prompt[layer].expand(3, -1, -1)]
        sequence = block(torch.cat(parts, dim=1))[:, :count]
        assert relative(rows[:, layer], model.pool(sequence)) < 1e-5
    with pytest.raises(ValueError, match="must be deep"):
        block_rows(model, x, random_prompt(model, "shallow"))


@pytest.mark.parametrize("mode", ["deep", "shallow"])
@pytest.mark.parametrize("family", ["registers", "average with registers"])
def test_token_form_equals_the_definition_in_timm_blocks(family: str, mode: str) -> None:
    """VPT as METHOD 2 states it, with timm's own blocks and the prompt behind the patches."""
    model = make(family, depth=3)
    prompt, x = random_prompt(model, mode), images(model)
    sequence = prepare_tokens(model, x)
    count = sequence.shape[1]
    carried = prompt[0].expand(3, -1, -1)
    for layer, block in enumerate(model.blocks):
        if mode == "deep":
            carried = prompt[layer].expand(3, -1, -1)
        out = block(torch.cat([sequence, carried], dim=1))
        sequence, carried = out[:, :count], out[:, count:]
    expected = pool(model, sequence, 0)
    assert relative(features_token(model, x, prompt), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deep", "shallow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forms_are_equal_at_full_depth_and_size(family: str, mode: str) -> None:
    name, kwargs = FAMILIES[family]
    full = {key: value for key, value in kwargs.items() if key != "img_size"}
    if "dinov2" in name:
        full["img_size"] = 224
    model = randomize(timm.create_model(name, num_classes=0, **full))
    prompt, x = random_prompt(model, mode, 50), images(model, 2)
    token = features_token(model, x, prompt)
    assert relative(features_prefix(model, x, prompt), token) < 1e-5


@pytest.mark.parametrize("mode", ["deep", "shallow"])
@pytest.mark.parametrize("family", ["plain", "qk-norm", "average with registers"])
def test_gradients_of_the_two_forms_are_equal_in_float64(family: str, mode: str) -> None:
    model = make(family, depth=2).double()
    x = images(model, 2).double()
    gradients = []
    for form in (features_token, features_prefix):
        prompt = random_prompt(model, mode).double().requires_grad_()
        features = form(model, x, prompt)
        direction = torch.linspace(-1, 1, features.numel(), dtype=torch.float64)
        (features.flatten() @ direction).backward()
        assert prompt.grad is not None
        gradients.append(prompt.grad)
    assert float(gradients[0].abs().max()) > 0
    assert relative(gradients[1], gradients[0]) < 1e-9


@pytest.mark.parametrize("layers", [2, 1])
def test_prefix_form_passes_gradcheck(layers: int) -> None:
    model = randomize(
        VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0, qk_norm=True
        )
    ).double()
    prompt = random_prompt(model, "deep", 2)[:layers].double().requires_grad_()
    x = images(model, 1).double()
    assert torch.autograd.gradcheck(lambda p: features_prefix(model, x, p), (prompt,))


def test_one_block_is_deep_and_shallow_at_once() -> None:
    model = make("plain", depth=1)
    prompt, x = random_prompt(model, "deep"), images(model)
    assert relative(features_prefix(model, x, prompt), features_token(model, x, prompt)) < 1e-5


def test_projected_prefix_equals_keys_and_values_of_the_block() -> None:
    model = make("qk-norm", depth=2)
    prompt = random_prompt(model, "deep")
    pairs = project_prefix(model, prompt)
    assert len(pairs) == 2
    for (k, v), block, tokens in zip(pairs, model.blocks, prompt, strict=True):
        width, heads = model.embed_dim, block.attn.num_heads
        projected = block.attn.qkv(block.norm1(tokens)).split(width, dim=1)
        keys = [block.attn.k_norm(head) for head in projected[1].chunk(heads, dim=1)]
        torch.testing.assert_close(k, torch.stack(keys))
        torch.testing.assert_close(v, torch.stack(projected[2].chunk(heads, dim=1)))


def test_tokens_of_a_deep_prompt_have_no_order() -> None:
    model = make("deit3", depth=3)
    prompt, x = random_prompt(model, "deep"), images(model)
    shuffled = prompt[:, torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))]
    expected = features_prefix(model, x, prompt)
    assert relative(features_prefix(model, x, shuffled), expected) < 1e-5


def test_bfloat16_runs_in_both_forms_and_stays_close() -> None:
    model = make("plain", depth=3)
    prompt, x = random_prompt(model, "deep"), images(model)
    expected = features_token(model, x, prompt)
    half = make("plain", depth=3).to(torch.bfloat16)
    prompt = prompt.to(torch.bfloat16).requires_grad_()
    for form in (features_token, features_prefix):
        features = form(half, x, prompt)
        assert features.dtype == torch.bfloat16
        assert relative(features.float(), expected) < 0.1
    features.float().sum().backward()
    assert prompt.grad is not None
    assert torch.isfinite(prompt.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (4, 7, 7))
    fast = attention(q, k, v, 0.3)
    written_out = attention(q.requires_grad_(), k, v, 0.3)
    reference = torch.einsum(
        "nhqk,nhkd->nhqd",
        torch.einsum("nhqd,nhkd->nhqk", q.double(), k.double()).mul(0.3).softmax(-1),
        v.double(),
    )
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for result in (fast, written_out):
        torch.testing.assert_close(result.double(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 5, 192), (3, 5, 100), (5, 192)])
def test_prompts_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = make("plain", depth=3)
    for form in (features_token, features_prefix):
        with pytest.raises(ValueError, match=r"\[3, T, 192\] \(deep\) or \[1, T, 192\]"):
            form(model, images(model), torch.zeros(shape))


def test_normalize_is_timms_evaluation_normalisation() -> None:
    backbone = wrap_backbone("clip", make("clip quick-gelu", depth=1))
    pixels = torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3).to(torch.uint8)
    mean, std = (np.array(v) for v in (backbone.preprocessing.mean, backbone.preprocessing.std))
    expected = (pixels.double().numpy() / 255 - mean) / std
    result = normalize(pixels, backbone.preprocessing)
    assert result.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("layers", [None, 8, 1])
def test_extracted_features_do_not_depend_on_the_batch(layers: int | None) -> None:
    backbone = load_backbone("tiny")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    prompt = None if layers is None else rng.normal(size=(layers, 4, 192)).astype(np.float32)
    whole = extract_features(backbone, pixels, prompt)
    assert whole.shape == (5, 192)
    assert whole.dtype == torch.float32
    small = backbone.with_compute(Compute(micro_batch=2))
    assert relative(extract_features(small, pixels, prompt), whole) < 1e-5
    x = normalize(torch.from_numpy(pixels.copy()), backbone.preprocessing)
    token = features_token(backbone.model, x, None if prompt is None else torch.tensor(prompt))
    assert relative(whole, token) < 1e-5
    # An ordinary tensor, not one of inference mode: a head may be trained on it.
    (whole @ torch.ones(192, requires_grad=True)).sum().backward()


def test_extracting_from_no_images_gives_no_rows() -> None:
    features = extract_features(load_backbone("tiny"), np.zeros((0, 64, 64, 3), np.uint8), None)
    assert features.shape == (0, 192)
