"""`hgedge condition` and `fit --conditions`, from the bundle on."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from command_line import class_folders, run, small_bank
from toys import shorten_start

from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.cli.condition import condition
from hgprompt_edge.training.condition_trainer import ConditionRecipe, ConditionTrainer


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images in `mine` and their bundle."""
    shorten_start(monkeypatch)
    monkeypatch.chdir(tmp_path)
    bank, data = small_bank(tmp_path / "bank"), class_folders(tmp_path / "mine")
    result = run(*f"fit --sources {bank} --data {data} --steps 0".split())
    assert result.exit_code == 0, result.stderr
    return tmp_path


def test_interrupted_and_gone_on_with(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "condition --conditions dark,blur --epochs 1 --accept-unproven".split()
    before = (fitted / "mine.hgbundle").read_bytes()
    train = ConditionTrainer.run

    def interrupt_blur(trainer: ConditionTrainer, report: object) -> object:
        if trainer.condition == "blur":
            raise KeyboardInterrupt
        return train(trainer, report)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ConditionTrainer, "run", interrupt_blur)
        assert run(*words).exit_code == 130
    assert (fitted / "mine.hgbundle").read_bytes() == before
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "resuming from .mine.conditions" in result.stderr
    assert "with prompt" in result.stdout
    assert not (fitted / ".mine.conditions").exists()
    assert "next: hgedge export mine.conditions.hgbundle --adapt" in result.stdout
    assert (fitted / "mine.hgbundle").read_bytes() == before  # models were made from it
    names = [about["name"] for about in read_bundle(fitted / "mine.conditions.hgbundle").conditions]
    assert names == ["dark", "blur"]
    words = "condition mine.conditions.hgbundle --conditions noise --epochs 1 --accept-unproven"
    more = run(*words.split())
    assert "mine.conditions-2.hgbundle: 3 condition prompts" in more.stdout


def test_json_and_another_file(fitted: Path) -> None:
    before = (fitted / "mine.hgbundle").read_bytes()
    words = "condition mine.hgbundle --data mine --conditions noise --epochs 1 -o b.hgbundle --json"
    refused = run(*words.split())
    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "b.hgbundle: nothing was written; noise: " in said
    assert "too few to say whether its prompt helps" in said
    assert not (fitted / "b.hgbundle").exists()
    result = run(*words.split(), "--accept-unproven")
    assert "resuming from" in result.stderr, "what was trained is not trained again"
    assert result.exit_code == 0, result.stderr
    (worth,) = json.loads(result.stdout)["conditions"]
    assert worth["name"] == "noise"
    assert all(0 <= worth[key] <= 1 for key in ("clean", "clean_prompted"))
    assert worth["kept"] is True
    assert (fitted / "mine.hgbundle").read_bytes() == before
    (about,) = read_bundle(fitted / "b.hgbundle").conditions
    assert float(about["prompted"]) == worth["validation"]["prompted"]


def test_fit_trains_them_and_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    monkeypatch.setattr(ConditionRecipe, "__init__", one_epoch(ConditionRecipe.__init__))
    monkeypatch.chdir(tmp_path)
    bank, data = small_bank(tmp_path / "bank"), class_folders(tmp_path / "mine")
    words = f"fit --sources {bank} --data {data} --steps 0 --conditions dark,dark"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    assert result.stdout.index("kept: ") < result.stdout.index("with prompt")
    assert "left out: dark: " in result.stderr
    assert "next: hgedge export mine.hgbundle --format onnx" in result.stdout
    assert read_bundle(tmp_path / "mine.hgbundle").conditions == ()


def one_epoch(init: Callable[..., None]) -> Callable[..., None]:
    def shorter(self: ConditionRecipe, **options: Any) -> None:
        init(self, **{**options, "epochs": 1})

    return shorter


def test_epochs_are_those_of_the_recipe() -> None:
    assert signature(condition).parameters["epochs"].default == ConditionRecipe().epochs
