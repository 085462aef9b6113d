"""The examples run: a backbone pretrained for a moment is one that every command takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hgprompt_edge import load_backbone
from hgprompt_edge.backbones.forward import extract_features

ROOT = Path(__file__).resolve().parents[1]


def pretrain(images: Path, out: Path, stop_after: int | None = None) -> str:
    """Run the example for three epochs of two steps; `stop_after`: let it fail after that step."""
    words = [
        *(str(images), "--out", str(out), "--image-size", "32", "--embed-dim", "24"),
        *("--depth", "2", "--num-heads", "2", "--epochs", "3", "--batch-size", "8"),
        *("--workers", "0", "--save-every", "2"),
    ]
    script = ROOT / "examples" / "pretrain_backbone.py"
    code = f"import runpy, sys; sys.argv = [{str(script)!r}, *{words!r}]\n"
    if stop_after is not None:
        code += (
            "import torch\nstep, count = torch.optim.AdamW.step, [0]\n"
            "def counted(self, *given):\n"
            f"    if count[0] == {stop_after}: raise SystemExit('killed')\n"
            "    count[0] += 1\n    return step(self, *given)\n"
            "torch.optim.AdamW.step = counted\n"
        )
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == (stop_after is None), result.stderr
    return result.stdout


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_pretrained_backbone_is_loaded_with_its_own_architecture(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "my-vit.safetensors"
    assert "step 6/6" in pretrain(tmp_path / "images", out)
    backbone = load_backbone(checkpoint=out)
    assert (backbone.depth, backbone.embed_dim, backbone.image_size) == (2, 24, 32)
    assert backbone.sha256 != load_backbone("tiny").sha256
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    assert bool(extract_features(backbone, pixels, None).isfinite().all())


def test_an_interrupted_pretraining_goes_on_where_it_was(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "my-vit.safetensors"
    pretrain(tmp_path / "images", out, stop_after=3)
    state = tmp_path / ".my-vit.safetensors.training"
    assert state.exists()
    printed = pretrain(tmp_path / "images", out)
    assert "goes on after step 2" in printed
    assert "step 4/6" in printed
    assert not state.exists()
    assert load_backbone(checkpoint=out).depth == 2


def test_an_older_torch_is_named_before_anything_is_read(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "pretrain_backbone.py")
    code = (
        f"import runpy, sys, torch; sys.argv = [{script!r}, 'nowhere']; "
        "vars(torch.optim).pop('Muon', None); "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "has no Muon; run `pip install 'torch>=2.9'`" in result.stderr
    assert "Traceback" not in result.stderr
