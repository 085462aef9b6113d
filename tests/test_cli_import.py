"""`hgedge prompt import`: prompts of others join a bank, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import class_folders, run, small_bank
from safetensors.numpy import save_file as save_safetensors

from hgprompt_edge.prompts.bank import read_bank
from hgprompt_edge.runtime.predictor import Predictor


def vpt_file(path: Path, tokens: np.ndarray) -> None:
    """Save tokens as the VPT code does."""
    torch.save({"shallow_prompt": tokens[:1], "deep_prompt": tokens[1:]}, path)


def test_prompts_of_others_are_imported_matched_and_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = np.random.default_rng(0).normal(size=(8, 3, 192)).astype(np.float32)
    vpt_file(tmp_path / "prompt_ep100.pth", tokens)
    shuffled = {f"layers.{i}.prompt": tokens[i, ::-1].copy() for i in range(8)}
    save_safetensors(shuffled, tmp_path / "other.safetensors")
    common = "--backbone tiny --preprocessing imagenet"
    first = run(*f"prompt import prompt_ep100.pth {common} --name a --task svhn".split())
    assert first.exit_code == 0, first.stderr
    assert "deep: 8 layers x 3 tokens x 192; pixels: mean 0.485 0.456 0.406, std" in first.stdout
    assert first.stdout.endswith("next: hgedge fit --sources prompts --task NAME\n")
    second = run(*f"prompt import other.safetensors {common} --name b --json".split())
    assert json.loads(second.stdout)["normalization"]["mean"] == [0.485, 0.456, 0.406]
    shown = json.loads(run("prompt", "show", "prompts", "--json").stdout)
    assert [(fact["name"], fact["family"]) for fact in shown] == [("a", "digits"), ("b", "")]
    assert all(fact["init_seed"] is None for fact in shown)
    assert "None" not in run("prompt", "show", "prompts").stdout
    for prompt in read_bank("prompts").prompts:
        np.testing.assert_array_equal(prompt.tokens, tokens)

    data = str(class_folders(tmp_path / "mine"))
    fit = run(*"fit --sources prompts --steps 0 --data".split(), data)
    assert fit.exit_code == 0, fit.stderr
    assert (
        "b: its init_seed is unknown or differs from that of a; its tokens were matched"
        in fit.stderr
    )
    assert "normalised as for these prompts: mean 0.485 0.456 0.406" in fit.stderr
    export = run("export")
    assert export.exit_code == 0, export.stderr
    assert Predictor(tmp_path / "mine.onnx").preprocessing.mean == (0.485, 0.456, 0.406)


def test_an_imported_prompt_joins_a_bank_of_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_bank(tmp_path / "prompts", 1)
    vpt_file(tmp_path / "a.pth", read_bank("tiny").tokens[0])
    words = "prompt import a.pth --backbone tiny --name z --preprocessing"
    for pixels in ("inception", "backbone"):
        assert run(*words.split(), pixels).exit_code == 0
        assert run("prompt", "show", "prompts").exit_code == 0
