"""The examples run: a backbone pretrained for a moment is one that every command takes."""

from __future__ import annotations

import runpy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hgprompt_edge import load_backbone
from hgprompt_edge.backbones.forward import extract_features

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "pretrain_backbone.py"


def pretrain(
    images: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None
) -> None:
    """Run the example for three epochs of two steps; `stop_after`: let it fail after that step."""
    words = [
        *(str(images), "--out", str(out), "--image-size", "32", "--embed-dim", "24"),
        *("--depth", "2", "--num-heads", "2", "--epochs", "3", "--batch-size", "8"),
        *("--workers", "0", "--save-every", "2"),
    ]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *words])
    step, count = torch.optim.AdamW.step, [0]

    def counted(*given: Any) -> Any:
        if count[0] == stop_after:
            raise SystemExit("killed")
        count[0] += 1
        return step(*given)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    killed = pytest.raises(SystemExit, match="killed")
    with nullcontext() if stop_after is None else killed:
        runpy.run_path(str(SCRIPT), run_name="__main__")


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_pretrained_backbone_is_loaded_with_its_own_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "my-vit.safetensors"
    pretrain(tmp_path / "images", out, monkeypatch)
    assert "step 6/6" in capsys.readouterr().out
    backbone = load_backbone(checkpoint=out)
    assert (backbone.depth, backbone.embed_dim, backbone.image_size) == (2, 24, 32)
    assert backbone.sha256 != load_backbone("tiny").sha256
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    assert bool(extract_features(backbone, pixels, None).isfinite().all())


def test_an_interrupted_pretraining_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "my-vit.safetensors"
    with monkeypatch.context() as patch:
        pretrain(tmp_path / "images", out, patch, stop_after=3)
    state = tmp_path / ".my-vit.safetensors.training"
    assert state.exists()
    pretrain(tmp_path / "images", out, monkeypatch)
    printed = capsys.readouterr().out
    assert "goes on after step 2" in printed
    assert "step 4/6" in printed
    assert not state.exists()
    assert load_backbone(checkpoint=out).depth == 2


def test_an_older_torch_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "nowhere"])
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 2
    assert "has no Muon; run `pip install 'torch>=2.9'`" in capsys.readouterr().err
