"""`hgedge prompt import`: prompts of others join a bank, or are refused."""

from __future__ import annotations

import json
import os
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
    assert "b: not known to share a's init_seed; its tokens were matched to it" in fit.stderr
    assert "normalised as for these prompts: mean 0.485 0.456 0.406" in fit.stderr
    export = run("export")
    assert export.exit_code == 0, export.stderr
    assert Predictor(tmp_path / "mine.onnx").preprocessing.mean == (0.485, 0.456, 0.406)


def test_an_imported_prompt_does_not_fit_a_bank_of_other_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_bank(tmp_path / "prompts", 1)
    vpt_file(tmp_path / "a.pth", read_bank("tiny").tokens[0])
    words = "prompt import a.pth --backbone tiny --name z --preprocessing"
    refused = run(*words.split(), "imagenet")
    assert refused.exit_code == 2
    assert "z.safetensors: trained on pixels normalised by mean 0.485" in refused.stderr
    assert "keep one bank a normalisation; name another folder with --output" in refused.stderr
    raw = run(*words.split(), "none")
    assert raw.exit_code == 2
    assert "z.safetensors: trained on pixels normalised by mean 0 0 0, std 1 1 1" in raw.stderr
    assert not Path("prompts", "z.safetensors").exists()
    for pixels in ("inception", "backbone"):
        assert run(*words.split(), pixels).exit_code == 0
        assert run("prompt", "show", "prompts").exit_code == 0


BAD_IMPORTS = {
    "missing": ("none.pth --backbone tiny --name a", "none.pth: no such file"),
    "a folder": (". --backbone tiny --name a", ".: a folder, not a file"),
    "a path as name": ("a.pth --backbone tiny --name ../a", "--name '../a': must be"),
    "no name": ("a.pth --backbone tiny --name=", "--name '': must be"),
    "unknown backbone": ("a.pth --backbone vit_tin --name a", "--backbone vit_tin: neither"),
    "another width": ("a.pth --backbone tiny --name a", "a.pth: its tokens are 100 wide"),
    "truncated": ("half.pth --backbone tiny --name a", "half.pth: truncated or not"),
    "code": ("code.pth --backbone tiny --name a", "code.pth: wants posix.system"),
}


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_a_bad_import_is_one_sentence_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vpt_file(tmp_path / "a.pth", np.ones((8, 3, 100), np.float32))
    (tmp_path / "half.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:2000])
    torch.save({"shallow_prompt": Code()}, tmp_path / "code.pth")
    words, message = BAD_IMPORTS[name]
    before = sorted(tmp_path.rglob("*"))
    result = run("prompt", "import", *words.split(), "--preprocessing", "imagenet")
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


class Code:
    """Pickled, it asks for a command when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)
