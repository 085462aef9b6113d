"""The examples run: a backbone pretrained for a moment is one that every command takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hgprompt_edge import load_backbone
from hgprompt_edge.vit.forward import extract_features

ROOT = Path(__file__).resolve().parents[1]


def test_a_pretrained_backbone_is_loaded_with_its_own_architecture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    out = tmp_path / "my-vit.safetensors"
    words = (
        f"examples/pretrain_backbone.py {tmp_path / 'images'} --out {out} --image-size 32 "
        "--embed-dim 24 --depth 2 --num-heads 2 --epochs 3 --batch-size 8 --workers 0"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *words.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "step 6/6" in result.stdout
    backbone = load_backbone("bundled", checkpoint=out)
    assert (backbone.depth, backbone.embed_dim, backbone.image_size) == (2, 24, 32)
    assert backbone.sha256 != load_backbone("bundled").sha256
    pixels = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    assert bool(extract_features(backbone, pixels, None).isfinite().all())
