"""What makes two files one backbone, and what a command needs to find it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import class_folders, run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hgprompt_edge import UserError, load_backbone, models, read_bundle
from hgprompt_edge.backbones.backbone import fingerprint
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.cli.shared.inputs import bundled_bank_of

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)


def weights_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(models.backbone_file(name))


def as_float32(path: Path, scale: float = 1e-4) -> Path:
    """Write weights near those of `tiny` in float32: at 1e-4 they round to them, as a hub's do."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: value.float() * (1 + scale * torch.rand(value.shape, generator=generator))
        for key, value in weights_of("tiny").items()
    }
    save_file(weights, path)
    assert any(not torch.equal(value, value.half().float()) for value in weights.values())
    return path


def test_a_float32_file_and_its_float16_copy_are_one_backbone(tmp_path: Path) -> None:
    path = as_float32(tmp_path / "hub.safetensors")
    full, half = load_backbone("tiny", checkpoint=path), load_backbone("tiny")
    assert full.sha256 == half.sha256
    features = [extract_features(one, PIXELS, None) for one in (full, half)]
    assert torch.equal(*features)
    bank = bundled_bank_of(full)
    assert bank is not None
    assert bank.backbone == "tiny"
    other = load_backbone("tiny", checkpoint=as_float32(tmp_path / "other.safetensors", 1e-2))
    assert other.sha256 != half.sha256
    assert bundled_bank_of(other) is None


def test_the_hubs_name_and_the_bundled_name_are_one_backbone() -> None:
    bundled = load_backbone("dinov2-small")
    named = load_backbone(
        "vit_small_patch14_dinov2", checkpoint=models.backbone_file("dinov2-small"), image_size=112
    )
    assert named.sha256 == bundled.sha256
    assert named.preprocessing == bundled.preprocessing
    assert torch.equal(named.model.pos_embed, bundled.model.pos_embed)
    bank = bundled_bank_of(named)
    assert bank is not None
    assert bank.backbone == "dinov2-small"


def test_the_fingerprint_does_not_depend_on_the_image_size() -> None:
    assert load_backbone("tiny", image_size=96).sha256 == load_backbone("tiny").sha256


@settings(max_examples=15)
@given(st.sampled_from(sorted(weights_of("tiny"))), st.data())
def test_the_fingerprint_follows_every_weight(name: str, data: st.DataObject) -> None:
    weights = weights_of("tiny")
    changed = {**weights, name: weights[name].clone()}
    flat = changed[name].view(-1)
    index = data.draw(st.integers(0, len(flat) - 1))
    flat[index] = torch.nextafter(flat[index].float(), torch.tensor(1e4)).half() + 1
    assert fingerprint(changed) != fingerprint(weights)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    weights = {key: value.float() for key, value in weights_of("tiny").items()}
    weights["norm.bias"][0] = 1e6
    save_file(weights, tmp_path / "wild.safetensors")
    with pytest.raises(UserError, match=r"wild.safetensors'`: 'norm.bias' holds values beyond"):
        load_backbone("tiny", checkpoint=tmp_path / "wild.safetensors")


@pytest.mark.parametrize("size", [112, 224])
def test_positions_of_dinov2_are_resized_by_timms_rule(size: int) -> None:
    from timm.layers import resample_abs_pos_embed

    positions = weights_of("dinov2-small")["pos_embed"].float()
    side = size // 14
    expected = resample_abs_pos_embed(positions, [side, side], antialias=True)
    found = load_backbone("dinov2-small", image_size=size).model.pos_embed
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    plain = resample_abs_pos_embed(positions, [side, side], antialias=False)
    assert (found - plain).abs().max() > 1e-2  # what other libraries do is another model


def test_models_that_are_not_installed_get_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgprompt_edge.models.find_spec", lambda _: None)
    for words in ("--sources tiny", "--backbone tiny --sources none", ""):
        result = run("fit", "--task", "digits", *words.split())
        assert result.exit_code == 2
        assert "comes with hgprompt-edge-models, which is not installed; run" in result.stderr
        assert "pip install hgprompt-edge-models" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_bundle_remembers_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_float32(tmp_path / "own.safetensors", 1e-2)
    data = class_folders(tmp_path / "mine")
    words = f"fit --backbone tiny --checkpoint own.safetensors --data {data}"
    fitted = run(*words.split())
    assert fitted.exit_code == 0, fitted.stderr
    assert "no prompts for tiny at 64 px: fit learns the best head" in fitted.stderr
    assert read_bundle(Path("mine.hgbundle")).checkpoint == str(tmp_path / "own.safetensors")
    exported = run("export", "--json")
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["ok"]
    Path("own.safetensors").rename("moved.safetensors")
    gone = run("export")
    assert gone.exit_code == 2
    assert (
        f"{tmp_path / 'own.safetensors'}: no such file; the bundle of mine was fitted"
        in gone.stderr
    )
    assert run("export", "--checkpoint", "moved.safetensors").exit_code == 0
    other = run("export", "--checkpoint", str(models.backbone_file("tiny")))
    assert other.exit_code == 2
    assert "of mine does not fit the backbone tiny: it was fitted on the weights" in other.stderr


def test_the_bundled_backbones_are_listed_with_speed_and_accuracy() -> None:
    rows = json.loads(run("backbone", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(models.NAMES)
    assert [row["default"] for row in rows] == [True, False]
    large, small = rows
    assert large["parameters"] > small["parameters"]
    assert 0 < large["images_per_second"] < small["images_per_second"]
    assert large["accuracy"].keys() == small["accuracy"].keys()
    for name, found in large["accuracy"].items():
        assert 1 >= found > small["accuracy"][name] > 0.2
    shown = run("backbone", "list").stdout
    assert "default: dinov2-small" in shown
    assert f"{100 * large['accuracy']['dtd10']:.1f} %" in shown


def test_a_damaged_bundled_bank_is_named_and_not_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gtsrb.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr("hgprompt_edge.models.bank_folder", lambda _: tmp_path)
    result = run(*"fit --backbone tiny --task digits".split())
    assert result.exit_code == 2
    assert "gtsrb.safetensors: truncated or not a safetensors file" in result.stderr
