"""What files beside a checkpoint say: architecture and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import (
    GOLDEN,
    checkpoint_of,
    copied,
    random_vit,
)
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from hgprompt_edge.backbones.checkpoints.checkpoint import read_checkpoint
from hgprompt_edge.errors import UserError

# Architecture


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dino_tiny.pth", {}),
        ("dino_slim.pth", {"mlp_ratio": 85 / 128, "init_values": 0.1}),
        ("deit_norm.pth", {"qk_norm": True}),
        ("vit_base_patch32_224.augreg_in1k.pth", {}),
        ("dinov2_reg.pth", {"reg_tokens": 2, "no_embed_class": True}),
        ("deit_reg.pth", {"reg_tokens": 2}),
        ("dino_after.pth", {"fc_norm": True}),
    ],
)
def test_architecture_follows_from_shapes(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = random_vit(**options)
    torch.save(model.state_dict(), tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    built = checkpoint.build()
    built.load_state_dict(checkpoint.weights, assign=True)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        torch.testing.assert_close(built.eval()(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    assert "2 heads (assumed: one for each 64 of the width 128)" in checkpoint.architecture_facts
    assert "by the name" in checkpoint.data_facts[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pre_norm": True}, "differ in their activation"),
        ({"embed_dim": 96}, "width 96 is no multiple of 64"),
        ({"no_embed_class": True}, "class token has no position"),
        ({"no_embed_class": True, "reg_tokens": 2, "img_size": 16}, "fit images of two sizes"),
        ({"qkv_bias": False}, "has no 'blocks.0.attn.qkv.bias'"),
        ({"class_token": False, "global_pool": "avg"}, "has no 'cls_token'"),
        ({"final_norm": False}, "not exactly one of 'norm.weight'"),
    ],
)
def test_what_shapes_leave_open_needs_a_timm_id(
    options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "dino.pth"
    torch.save(random_vit(**options).state_dict(), path)
    with pytest.raises(UserError, match=f"{why}.*name its timm id with `backbone`"):
        read_checkpoint(path).build()


def test_nobody_guesses_how_pixels_are_normalised(tmp_path: Path) -> None:
    torch.save(random_vit().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"no preprocessor_config.json says how pixels"):
        read_checkpoint(tmp_path / "w.pth").build()


def test_registers_that_the_name_promises_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(random_vit().state_dict() | {"mask_token": torch.zeros(1, 128)}, path)
    with pytest.raises(UserError, match=r"misses 'blocks.0.ls1.gamma'"):
        read_checkpoint(path)
    model = random_vit(init_values=1.0)
    torch.save(model.state_dict() | {"mask_token": torch.zeros(1, 128)}, path)
    with pytest.raises(UserError, match="its name speaks of register tokens"):
        read_checkpoint(path).build()


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("transformers-4-vit", {"hidden_size": 32}, "says hidden_size 32, its weights say 16"),
        ("transformers-5-vit", {"num_hidden_layers": 3}, "num_hidden_layers 3, its weights say 2"),
        ("transformers-4-vit", {"intermediate_size": 64}, "intermediate_size 64, .* say 32"),
        ("transformers-4-vit", {"patch_size": 8}, "patch_size 8, its weights say 4"),
        ("transformers-4-vit", {"image_size": 40}, "image_size 40, its weights say 20"),
        ("transformers-4-vit", {"qkv_bias": False}, "qkv_bias False, its weights say True"),
        ("transformers-4-vit", {"num_attention_heads": 3}, "num_attention_heads 3, .* width 16"),
        ("transformers-4-vit", {"num_attention_heads": "4"}, "num_attention_heads 4"),
        ("transformers-4-vit", {"hidden_act": "relu"}, "hidden_act 'relu'.* not supported"),
        ("transformers-4-vit", {"model_type": "clip"}, "layout of transformers ViT.* of a 'clip'"),
        ("transformers-4-vit", {"architecture": "vit_tiny_patch16_224"}, "names the architecture"),
        ("transformers-4-registers", {"num_register_tokens": 4}, "num_register_tokens 4, .* say 3"),
        ("transformers-4-dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn True"),
        ("transformers-4-clip-gelu", {"vision_config": 3}, "vision_config must be an object"),
    ],
)
def test_a_config_of_another_model_is_refused(
    case: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        read_checkpoint(copied(case, tmp_path, **changes))


def test_without_a_config_a_clip_tower_needs_a_timm_id(tmp_path: Path) -> None:
    path = copied("transformers-5-clip-tower", tmp_path, model_type=None, num_attention_heads=4)
    (tmp_path / "config.json").unlink()
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture is None
    with pytest.raises(UserError, match=r"multiple of 64|differ in their activation"):
        checkpoint.build()


def test_a_whole_clip_leaves_default_values_out(tmp_path: Path) -> None:
    # transformers writes into `vision_config` only what is not the default.
    golden = json.loads((GOLDEN / "transformers-4-clip-gelu" / "config.json").read_text())
    vision = {k: v for k, v in golden["vision_config"].items() if k != "hidden_act"}
    path = copied("transformers-4-clip-gelu", tmp_path, vision_config=vision)
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture is not None
    assert checkpoint.architecture["act_layer"] == "quick_gelu"
    assert "without the text tower (20 tensors)" in checkpoint.facts


def test_a_timm_id_has_to_compute_what_the_files_say() -> None:
    checkpoint = read_checkpoint(checkpoint_of(GOLDEN / "transformers-4-clip-tower"))
    options = dict(checkpoint.architecture or {})
    checkpoint.check_computes_as(VisionTransformer(num_classes=0, **options), "same")
    for name, words in (("num_heads", "heads 2, .* say 4"), ("act_layer", "activation gelu, ")):
        other = {**options, name: {"num_heads": 2, "act_layer": "gelu"}[name]}
        with pytest.raises(UserError, match=f"`backbone='x'`: has {words}"):
            checkpoint.check_computes_as(VisionTransformer(num_classes=0, **other), "x")


def test_timms_own_config_names_the_architecture(tmp_path: Path) -> None:
    config = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear"},
        "model_args": {"img_size": 32, "depth": 1, "no_embed_class": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = random_vit(
        img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, no_embed_class=True
    )
    save_file(
        {**model.state_dict(), "head.weight": torch.zeros(5, 192)}, tmp_path / "m.safetensors"
    )
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    built = checkpoint.build()
    built.load_state_dict(checkpoint.weights, assign=True)
    assert (checkpoint.name, built.pretrained_cfg["mean"]) == ("vit_tiny_patch16_224", [0.1] * 3)
    assert "without the classifier (1 tensor)" in checkpoint.facts
    save_file(random_vit().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"of another model"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_a_file_of_ours_holds_its_own_architecture(tmp_path: Path) -> None:
    path, model = tmp_path / "w.safetensors", random_vit()
    shape = {"img_size": 24, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 4}
    pixels = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    metadata = {"architecture": json.dumps(shape), "data_config": json.dumps(pixels)}
    save_file(model.state_dict(), path, {**metadata, "image_size": "16"})
    checkpoint = read_checkpoint(path)
    built = checkpoint.build()
    assert (built.patch_embed.img_size, built.blocks[0].attn.num_heads) == ((16, 16), 4)
    assert checkpoint.data_facts[0].endswith("(the file's metadata)")
    for wrong, words in (
        ("{", "its metadata are damaged"),
        ("3", "its metadata are damaged"),
        (json.dumps({**shape, "num_heads": 3}), "cannot be built"),
        (json.dumps({**shape, "flavour": "sweet"}), "cannot be built .*flavour"),
        (json.dumps({**shape, "depth": 1}), "has an unexpected 'blocks.1"),
    ):
        save_file(model.state_dict(), path, {**metadata, "architecture": wrong})
        with pytest.raises(UserError, match=words):
            read_checkpoint(path)


# Preprocessing


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, {"crop_pct": 20 / 24, "crop_mode": "center", "interpolation": "bicubic"}),
        (
            {"size": 30, "crop_size": 24, "resample": 2},
            {"crop_pct": 0.8, "input_size": (3, 24, 24)},
        ),
        ({"do_center_crop": None, "size": 20}, {"crop_pct": 1.0, "crop_mode": "squash"}),
        ({"do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        ({"image_mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3)}),
        ({"do_center_crop": False}, "not brought to a square"),
        ({"size": {"height": 24, "width": 30}}, "not brought to a square"),
        ({"do_rescale": False}, "not divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "not divided by 255"),
        ({"resample": 9}, "unknown 9"),
        ({"crop_size": None}, "unknown 'crop_size'"),
        ({"image_mean": [0.1, 0.2]}, "preprocessing that is not supported"),
        ({"image_mean": None}, "unknown 'image_mean'"),
    ],
)
def test_preprocessing_is_what_the_preprocessor_says(
    changes: dict[str, Any], wanted: dict[str, Any] | str, tmp_path: Path
) -> None:
    path = copied("transformers-4-dinov2", tmp_path, "preprocessor_config.json", **changes)
    if isinstance(wanted, str):
        with pytest.raises(UserError, match=f"preprocessor_config.json: .*{wanted}"):
            read_checkpoint(path)
        return
    config = read_checkpoint(path).data_config or {}
    assert {key: config[key] for key in wanted} == wanted


def test_version_5_may_write_the_preprocessor_into_another_file(tmp_path: Path) -> None:
    path = copied("transformers-5-clip-gelu", tmp_path)
    own = tmp_path / "preprocessor_config.json"
    content = {"image_processor": json.loads(own.read_text()), "processor_class": "CLIPProcessor"}
    own.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    checkpoint = read_checkpoint(path)
    assert checkpoint.data_facts == (
        "mean 0.4815 0.4578 0.4082, standard deviation 0.2686 0.2613 0.2758 "
        "(processor_config.json)",
    )


def test_without_a_file_a_family_gives_the_preprocessing(tmp_path: Path) -> None:
    path = copied("transformers-4-dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    checkpoint = read_checkpoint(path)
    assert (checkpoint.data_config or {})["mean"] == (0.485, 0.456, 0.406)
    assert not checkpoint.data_stated
    for name, mean in (("vit_base_patch32_224.augreg_in1k", 0.5), ("dino_vits16", 0.485)):
        torch.save(random_vit().state_dict(), tmp_path / f"{name}.pth")
        (tmp_path / "config.json").unlink(missing_ok=True)
        assert (read_checkpoint(tmp_path / f"{name}.pth").data_config or {})["mean"][0] == mean
    teacher = read_checkpoint(checkpoint_of(GOLDEN / "original-dino-training"))
    assert "those of DINO's training" in teacher.data_facts[0]
    assert "'teacher' taken, not student, epoch" in teacher.facts
