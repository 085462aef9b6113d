"""Images are found and checked before a backbone is loaded, and a bundle knows where they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import class_folders, hgedge, photo, run, small_bank
from toys import shorten_start

from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle

FIT = "fit --sources bank --steps 0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_bank(tmp_path / "bank")
    class_folders(tmp_path / "mine")
    return tmp_path


def no_backbone(*_: object, **__: object) -> None:
    raise AssertionError("the backbone was loaded first")


@pytest.mark.parametrize("command", ["fit", "compare", "prompt train"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--data nowhere", "--data nowhere: no such file"),
        ("--task pest", "--task pest: no such task"),
        ("--data mine/Bombay", "mine/Bombay"),
        ("--data mine --image-size 0", "--image-size 0"),
        ("--data mine --image-size -14", "--image-size -14"),
    ],
)
def test_data_and_options_are_checked_before_the_backbone_is_loaded(
    command: str, options: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("_bundled", "_from_hub", "read_checkpoint"):
        monkeypatch.setattr(f"hgprompt_edge.backbones.load.{part}", no_backbone)
    result = run(*command.split(), *options.split(), "--backbone", "vit_tiny_patch16_224")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in here.iterdir()) in (
        ["bank", "mine"],
        ["bank", "mine", "prompts"],
    )


def test_a_bundle_finds_its_images_again_and_notices_what_changed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    fit = run(*FIT.split(), "--data", "mine", "--task", "pets")
    assert fit.exit_code == 0, fit.stderr
    assert "pets is a local task: the images in" in fit.stderr
    bundle = read_bundle(here / "pets.hgbundle")
    assert (bundle.task, bundle.data) == ("pets", str(here / "mine"))

    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    tune = "tune ../pets.hgbundle --steps 1 --batch-size 16"
    assert run(*tune.split()).exit_code == 0
    assert read_bundle(here / "pets.tuned.hgbundle").data == bundle.data
    quantize = "export ../pets.hgbundle --precision int8"
    found = run(*quantize.split())
    assert "15 training images, and int8 takes at least 32" in found.stderr
    assert "does not fit" not in found.stderr

    shutil.copytree(here / "mine", here / "copy")
    photo(here / "mine" / "Bombay" / "0.jpg", 1, 77)
    assert run(*tune.split(), "--data", "../copy").exit_code == 0
    condition = "condition ../pets.hgbundle --conditions dark --epochs 1"
    for words in (tune, condition):
        changed = run(*words.split())
        assert changed.exit_code == 2
        assert "mine: the images have changed since it was fitted; run" in changed.stderr
    assert "mine: the images have changed since it was fitted" in run(*quantize.split()).stderr

    shutil.rmtree(here / "mine")
    for words in (tune, condition, quantize):
        gone = run(*words.split())
        assert gone.exit_code == 2
        assert "and they are gone; name their folder with --data" in gone.stderr


def test_the_bundle_that_a_model_was_made_from_is_named(here: Path) -> None:
    assert run(*FIT.split(), "--data", "mine").exit_code == 0
    assert run(*"export mine.hgbundle -o model.onnx".split()).exit_code == 0
    (here / "mine.hgbundle").rename(here / "kept.hgbundle")
    write_bundle(here / "mine.hgbundle", replace(read_bundle(here / "kept.hgbundle"), seed=1))
    result = run(*"verify model.onnx --bundle mine.hgbundle --json".split())
    assert result.exit_code == 1
    (check,) = (c for c in json.loads(result.stdout)["checks"] if c["name"] == "bundle")
    assert check["detail"].endswith(": kept.hgbundle")


def test_unknown_conditions_are_refused_before_pytorch_loads(tmp_path: Path) -> None:
    (tmp_path / "nothing" / "torch").mkdir(parents=True)
    (tmp_path / "nothing" / "torch" / "__init__.py").write_text("raise ImportError('loaded')")
    words = "fit --task digits --conditions dark,fire"
    result = hgedge(tmp_path, *words.split(), PYTHONPATH=str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert result.stderr == (
        "hgedge: --conditions: unknown condition 'fire'; choose from dark, blur, noise, cast, "
        "jpeg, lowres\n"
    )
