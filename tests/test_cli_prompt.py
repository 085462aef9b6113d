"""`hgedge prompt`: what it shows of a bank, and what it trains."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import class_folders, run, small_bank
from toys import shorten_start

from hgprompt_edge.prompts.bank import read_bank, write_start
from hgprompt_edge.prompts.prompt import write_prompt


def test_prompt_show_names_every_prompt_on_a_narrow_terminal() -> None:
    rows = run("prompt", "show", "tiny").stdout.splitlines()
    column = "".join(row.split(" ")[0] for row in rows)
    for prompt in read_bank("tiny").basis:
        assert prompt.name in column


def test_prompt_show_of_several_init_seeds_needs_no_scipy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    second = read_bank(small_bank(tmp_path)).prompts[1]
    write_prompt(tmp_path / f"{second.name}.safetensors", replace(second, init_seed=7))
    shown = run("prompt", "show", str(tmp_path), "--json")
    assert shown.exit_code == 0, shown.stderr
    assert [fact["init_seed"] for fact in json.loads(shown.stdout)] == [0, 7]


def test_prompt_train_writes_a_prompt_that_fit_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = class_folders(tmp_path / "mine", 10)
    options = "--tokens 2 --epochs 1 --batch-size 16 --all-images"
    words = f"prompt train --backbone tiny --data {data} {options}"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    assert "unprompted" in result.stdout
    names = ["mine.safetensors", "untrained.safetensors"]
    assert sorted(path.name for path in (tmp_path / "prompts").iterdir()) == names
    start = (tmp_path / "prompts" / "untrained.safetensors").read_bytes()
    (tmp_path / "prompts" / ".mine.training").write_bytes(b"of another training")
    again = run(*words.replace("1 --b", "2 --b").split())
    assert again.exit_code == 0, again.stderr
    assert "resuming" not in again.stderr
    assert (tmp_path / "prompts" / "untrained.safetensors").read_bytes() == start
    fit = run("fit", "--sources", "prompts", "--data", str(data), "--steps", "0")
    assert fit.exit_code == 0, fit.stderr


def test_a_prompt_that_would_not_fit_its_bank_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hgprompt_edge.training.prompt_tuning.PromptTrainer.run", lambda *_: pytest.fail("ran")
    )
    data, bank = class_folders(tmp_path / "mine", 3), small_bank(tmp_path / "prompts", 1)
    before = sorted(bank.iterdir())
    result = run("prompt", "train", "--backbone", "tiny", "--data", str(data), "--tokens", "10")
    assert result.exit_code == 2
    assert (
        "prompts/mine.safetensors does not fit cifar10.safetensors: it has 10 tokens, not 50"
        in (result.stderr)
    )
    assert sorted(bank.iterdir()) == before


def test_a_start_of_other_prompts_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bank = small_bank(tmp_path / "prompts", 1)
    trained = replace(read_bank(bank).prompts[0], init_seed=1)
    write_start(bank, trained, trained.tokens)
    for words in ("fit --task digits --conditions dark --no-keep-sources --sources", "prompt show"):
        result = run(*words.split(), str(bank))
        assert "untrained: not the start of cifar10" in result.stderr
