"""Checkpoints that other libraries wrote, and what they compute from them (`data/checkpoints`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.backbones.checkpoints.checkpoint import read_checkpoint

GOLDEN = Path(__file__).parent / "data" / "checkpoints"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
DESCRIBED = [case for case in CASES if case.startswith("transformers")]
ORIGINAL = [case for case in CASES if case.startswith("original")]


def checkpoint_of(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.suffix == ".pth" or p.name == "model.safetensors")


def weights_of(case: str) -> dict[str, Tensor]:
    return read_checkpoint(checkpoint_of(GOLDEN / case)).weights


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype == torch.float32
        assert torch.equal(tensor, second[name]), name


def random_vit(**options: Any) -> VisionTransformer:
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = VisionTransformer(num_classes=0, **{**sizes, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def copied(case: str, folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """A golden folder with changes to one of its JSON files; None takes an entry out."""
    shutil.copytree(GOLDEN / case, folder, dirs_exist_ok=True)
    content = json.loads((folder / name).read_text())
    for key, value in changes.items():
        content.pop(key, None)
        if value is not None:
            content[key] = value
    (folder / name).write_text(json.dumps(content))
    return checkpoint_of(folder)
