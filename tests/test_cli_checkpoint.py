"""`--checkpoint` with files of other libraries, through `load_backbone` and the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
from command_line import class_folders, run
from golden import DESCRIBED, GOLDEN, checkpoint_of, copied
from safetensors.torch import load_file

from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.errors import UserError


@pytest.mark.parametrize("case", DESCRIBED)
def test_a_checkpoint_with_its_config_is_a_backbone_at_any_size(case: str) -> None:
    path, pixels = checkpoint_of(GOLDEN / case), load_file(GOLDEN / "pixels.safetensors")
    own, small = load_backbone(checkpoint=path), load_backbone(checkpoint=path, image_size=12)
    assert (own.name, own.image_size, small.image_size) == ("model", 20, 12)
    assert own.sha256 == small.sha256
    theirs = load_file(GOLDEN / case / "expected.safetensors")["own"]
    with torch.inference_mode():
        # The sum of two float16 numbers, registers' class token, is rounded again.
        torch.testing.assert_close(own.model(pixels["own"]), theirs, rtol=2e-2, atol=2e-2)
        found = small.model(pixels["small"])
        own.model.set_input_size((12, 12))  # timm's own resizing
        torch.testing.assert_close(found, own.model(pixels["small"]), rtol=1e-5, atol=1e-5)


def test_the_pixels_of_the_files_win_over_those_of_the_timm_id(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    torch.save(timm.create_model(name).state_dict(), tmp_path / "w.bin")
    assert load_backbone(name, checkpoint=tmp_path / "w.bin").preprocessing.mean[0] == 0.5
    shutil.copy(GOLDEN / "transformers-4-dinov2" / "preprocessor_config.json", tmp_path)
    backbone = load_backbone(name, checkpoint=tmp_path / "w.bin")
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    assert f"architecture {name} (`backbone`)" in backbone.facts


def test_a_timm_id_of_another_shape_is_refused() -> None:
    path = checkpoint_of(GOLDEN / "transformers-5-vit")
    with pytest.raises(
        UserError, match=r"`backbone='vit_tiny_patch16_224'`: has heads 3, .* say 4"
    ):
        load_backbone("vit_tiny_patch16_224", checkpoint=path)


def test_fit_says_what_it_took_and_assumed(tmp_path: Path) -> None:
    path = copied("transformers-4-clip-gelu", tmp_path / "clip")
    data = class_folders(tmp_path / "pets", per_class=20)
    result = run(
        "fit",
        "--checkpoint",
        str(path),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "o.hgbundle"),
    )
    assert result.exit_code == 0, result.output
    assert "without the text tower (20 tensors)" in " ".join(result.output.split())


def test_the_bundled_backbone_is_the_same_from_other_files(shared: Path, tmp_path: Path) -> None:
    source = shared / "assets" / "dinov2-small" / "model.safetensors"
    bundled = load_backbone("dinov2-small", image_size=112)
    assert load_backbone(checkpoint=source, image_size=112).sha256 == bundled.sha256
    mask = {"mask_token": torch.zeros(1, 384)}
    torch.save({"model": load_file(source) | mask}, tmp_path / "dinov2_vits14_pretrain.pth")
    meta = load_backbone(checkpoint=tmp_path / "dinov2_vits14_pretrain.pth", image_size=112)
    assert (meta.sha256, meta.preprocessing) == (bundled.sha256, bundled.preprocessing)
    assert torch.equal(meta.model.pos_embed, bundled.model.pos_embed)
