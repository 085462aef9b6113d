"""Backbones: loading, fingerprints, preprocessing and every reason to refuse."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import vision_transformer as vit
from torch import nn

from hgprompt_edge.backbones.backbone import wrap_backbone
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import RESAMPLING, to_array

TINY = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0,
}  # fmt: skip


def small(**options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(**{**SMALL, **options})


def save(model: nn.Module, path: Path, **changes: torch.Tensor | None) -> Path:
    """Save weights; `changes` replace tensors by name (`__` for a dot), None leaves one out."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        weights.pop(key, None)
        if tensor is not None:
            weights[key] = tensor
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(TINY)


def test_the_bundled_backbone_is_frozen_and_says_what_it_is() -> None:
    backbone = load_backbone("tiny")
    assert backbone.name == "tiny"
    assert (backbone.depth, backbone.embed_dim, backbone.num_heads) == (8, 192, 3)
    assert (backbone.image_size, backbone.patch_size) == (64, 8)
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    assert backbone.preprocessing.resize == 64
    assert not backbone.model.training
    for parameter in backbone.model.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    assert load_backbone("tiny").sha256 == backbone.sha256


def test_fingerprint_follows_the_weights_and_leaves_out_the_head() -> None:
    torch.manual_seed(0)
    model = small(num_classes=7)
    first = wrap_backbone("custom", model).sha256
    model.reset_classifier(3)
    assert wrap_backbone("custom", model).sha256 == first
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[0] += 1e-6
    assert wrap_backbone("custom", model).sha256 != first


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_backbone("tiny")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "name", [TINY, "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_siglip_gap_224"]
)
def test_preprocessing_is_timms_evaluation_transform(name: str) -> None:
    model = timm.create_model(name, depth=1, img_size=64)
    backbone = wrap_backbone(name, model)
    config = resolve_model_data_config(model, args={"input_size": (3, 64, 64)})
    transform = create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    pixels = np.random.default_rng(0).integers(0, 256, (97, 150, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = (transform(image) * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(to_array(image, backbone.preprocessing), expected)
    assert backbone.preprocessing.interpolation in RESAMPLING


@pytest.mark.parametrize(
    "changes",
    [{"crop_mode": "border"}, {"interpolation": "random"}, {"crop_mode": "squash"}],
)
def test_preprocessing_that_cannot_be_reproduced_is_refused(changes: dict[str, str]) -> None:
    model = small()
    model.pretrained_cfg = {"crop_pct": 0.9, **changes}
    with pytest.raises(UserError, match="`backbone='odd'`: its preprocessing"):
        wrap_backbone("odd", model)


# Checkpoints


def test_checkpoint_gives_its_weights_without_the_head(tiny: nn.Module, tmp_path: Path) -> None:
    backbone = load_backbone(TINY, checkpoint=save(tiny, tmp_path / "w.safetensors"))
    assert backbone.sha256 == wrap_backbone(TINY, timm_copy(tiny)).sha256
    assert backbone.name == TINY
    # Half-precision files load as what they are, and another head does not matter.
    half = save(
        timm_copy(tiny).half(), tmp_path / "h.safetensors", head__weight=torch.zeros(2, 192)
    )
    assert load_backbone(TINY, checkpoint=half).model.pos_embed.dtype == torch.float32


def timm_copy(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        copy = timm.create_model(TINY)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("spec", [TINY, "tiny"])
def test_another_image_size_resamples_the_positions(
    spec: str, tiny: nn.Module, tmp_path: Path
) -> None:
    checkpoint = save(tiny, tmp_path / "w.safetensors") if spec == TINY else None
    backbone = load_backbone(spec, checkpoint=checkpoint, image_size=96)
    assert backbone.image_size == backbone.preprocessing.image_size == 96
    resized = load_backbone(spec, checkpoint=checkpoint).model
    resized.set_input_size((96, 96))
    torch.testing.assert_close(backbone.model.pos_embed.data, resized.pos_embed.data)
    assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm__bias": None}, "misses 'norm.bias', so"),
        ({"norm__bias": None, "norm__weight": None}, "misses 'norm.bias' and 1 more"),
        ({"cls_token": None}, "misses 'cls_token', so"),
        ({"extra": torch.zeros(1)}, "has an unexpected 'extra'"),
        ({"norm__bias": torch.zeros(3)}, r"'norm.bias' has shape \[3\], .* for \[192\]"),
        ({"pos_embed": torch.zeros(1, 17, 192)}, r"'pos_embed' has shape \[1, 17, 192\]"),
        ({"norm__bias": torch.full((192,), float("nan"))}, "'norm.bias' holds NaN or inf"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_the_first_name(
    changes: dict[str, Any], words: str, tiny: nn.Module, tmp_path: Path
) -> None:
    path = save(tiny, tmp_path / "bad.safetensors", **changes)
    with pytest.raises(UserError, match=f"`checkpoint='.*bad.safetensors'`: .*{words}"):
        load_backbone(TINY, checkpoint=path)


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors at all", (1 << 40).to_bytes(8, "little") + b"{}", None]
)
def test_damaged_checkpoints_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    if content is not None:
        path.write_bytes(content)
    words = "cannot be read|is empty|neither a safetensors file"
    with pytest.raises(UserError, match=f"`checkpoint='.*damaged.safetensors'`: .*({words})"):
        load_backbone(TINY, checkpoint=path)


@pytest.mark.parametrize("spec", [TINY, "tiny"])
def test_image_sizes_that_patches_do_not_fill_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"`image_size=100`: .* multiple of (16|8)"):
        load_backbone(spec, image_size=100)


# The hub


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("name not known"),
        TimeoutError(),
        huggingface_hub.errors.LocalEntryNotFoundError("nothing cached"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        RuntimeError("anything"),
    ],
)
def test_a_hub_that_fails_gets_one_sentence_at_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    if isinstance(error, huggingface_hub.errors.EntryNotFoundError):
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"`backbone='{TINY}'`: .* `checkpoint`$") as caught:
        load_backbone(TINY)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 10


def test_weights_in_the_hubs_cache_need_no_network(
    tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tiny, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)
    assert load_backbone(TINY).sha256 == load_backbone(TINY, checkpoint=path).sha256
    resized = load_backbone(TINY, image_size=96)
    expected = load_backbone(TINY, checkpoint=path, image_size=96)
    torch.testing.assert_close(resized.model.pos_embed.data, expected.model.pos_embed.data)


def test_incomplete_weights_in_the_hubs_cache_are_not_taken(
    tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tiny, tmp_path / "model.safetensors", norm__bias=None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    with pytest.raises(UserError, match="`checkpoint`"):
        load_backbone(TINY)


# What is supported
