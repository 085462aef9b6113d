"""Checkpoints that are damaged, foreign or not what they seem: one sentence each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import (
    copied,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hgprompt_edge.backbones.checkpoints.checkpoint import read_checkpoint
from hgprompt_edge.errors import UserError


class NotAllowed:
    """A class of somebody's own."""


def broken(kind: str, tmp_path: Path) -> Path:
    path = copied("transformers-4-vit", tmp_path)
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    norm = tensors["vit.layernorm.bias"]
    pickles: dict[str, Any] = {
        "namespace": {"model": tensors, "args": argparse.Namespace(lr=1)},
        "numpy scalar": {"model": tensors, "best": np.float64(0.5)},
        "own class": {"model": tensors, "config": NotAllowed()},
        "module": nn.Linear(2, 2),
        "list": [norm],
        "empty dict": {},
        "nothing known": {"optimizer": {"lr": 1.0}, "epoch": 3},
        "text among tensors": {**tensors, "note": "hello"},
    }
    changes: dict[str, dict[str, Tensor]] = {
        "nan": {"vit.layernorm.bias": torch.full_like(norm, float("nan"))},
        "inf": {"vit.layernorm.bias": torch.full_like(norm, float("inf"))},
        "beyond float32": {"vit.layernorm.bias": norm.double() + 1e300},
        "integers": {"vit.layernorm.bias": norm.to(torch.int8)},
        "other shape": {"vit.layernorm.bias": torch.zeros(3)},
        "scalar": {"vit.embeddings.cls_token": torch.tensor(1.0)},
        "flat": {"vit.embeddings.cls_token": torch.zeros(16)},
        "no square": {"vit.embeddings.position_embeddings": torch.zeros(1, 24, 16)},
        "uneven keys": {"vit.encoder.layer.0.attention.attention.key.bias": torch.zeros(3)},
        "distilled": {"vit.embeddings.distillation_token": torch.zeros(1, 1, 16)},
        "gated": {"vit.encoder.layer.0.mlp.weights_in.bias": norm.clone()},
        "extra": {"vit.encoder.layer.0.extra": norm.clone()},
    }
    if kind in pickles:
        torch.save(pickles[kind], path)
    elif kind in changes:
        save_file({**tensors, **changes[kind]}, path)
    elif kind == "unknown":
        save_file({"conv1.weight": norm, "layer1.0.bn.bias": norm.clone()}, path)
    elif kind == "no tensors":
        save_file({}, path)
    elif kind.startswith("truncated"):
        if kind == "truncated pickle":
            torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    elif kind == "script":
        with pytest.warns(Warning, match="deprecated"):
            torch.jit.script(nn.Linear(2, 2)).save(str(path))
    elif kind == "config":
        (tmp_path / "config.json").write_text("{")
    elif kind == "config list":
        (tmp_path / "config.json").write_text("[]")
    elif kind == "index":
        path = tmp_path / "model.safetensors.index.json"
        path.write_text('{"metadata": {}, "weight_map": {}}')
    elif kind == "folder":
        return tmp_path
    elif kind == "missing":
        return tmp_path / "nowhere.safetensors"
    else:
        contents = {
            "empty": b"",
            "text": b"hello",
            "lfs": b"version https://git-lfs.github.com/spec",
        }
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "namespace",
            "holds argparse.Namespace, which safe loading refuses; .* save only its state dict",
        ),
        ("numpy scalar", r"holds numpy\.\S*multiarray.scalar, which safe loading refuses"),
        ("own class", r"holds \S*NotAllowed, which safe loading refuses"),
        ("module", r"holds torch.nn.modules.linear.Linear, which safe loading refuses"),
        ("list", "holds a list, not a dictionary of weights"),
        ("empty dict", "holds nothing and no weights under teacher, model, state_dict"),
        ("nothing known", "holds 'optimizer', 'epoch' and no weights"),
        ("text among tensors", "'note' is a str, not a tensor"),
        ("nan", "'vit.layernorm.bias' holds NaN or inf"),
        ("inf", "'vit.layernorm.bias' holds NaN or inf"),
        ("beyond float32", "'vit.layernorm.bias' holds NaN or inf"),
        ("integers", "'vit.layernorm.bias' holds int8, not floats"),
        ("other shape", r"'vit.layernorm.bias' has shape \[3\], the other weights ask for \[16\]"),
        ("scalar", r"'vit.embeddings.cls_token' has shape \[\]"),
        ("flat", r"'vit.embeddings.cls_token' has shape \[16\]"),
        ("no square", "'vit.embeddings.position_embeddings' holds 24 positions"),
        ("uneven keys", r"key.bias' has shape \[3\], .*query.bias' \[16\]"),
        ("distilled", "distillation token"),
        ("gated", "gated MLPs"),
        ("extra", "has an unexpected 'vit.encoder.layer.0.extra'"),
        ("unknown", "unknown layout, its first tensors are 'conv1.weight', 'layer1.0.bn.bias'; "),
        ("no tensors", "holds no tensors"),
        ("truncated", "cannot be read as a safetensors file"),
        ("truncated pickle", "is truncated or not a file of torch.save"),
        ("script", "is a TorchScript program"),
        ("config", "config.json: cannot be read as JSON"),
        ("config list", "config.json: must be a JSON object"),
        ("index", "index of a checkpoint in several files"),
        ("folder", "is a folder; give .*model.safetensors"),
        ("missing", r"cannot be read \(no such file or directory\); check the path"),
        ("empty", "is empty"),
        ("text", "neither a safetensors file nor one of torch.save"),
        ("lfs", "pointer of Git LFS"),
    ],
)
def test_bad_checkpoints_get_one_sentence(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(broken(kind, tmp_path))
    assert "\n" not in str(caught.value)
