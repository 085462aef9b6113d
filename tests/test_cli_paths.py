"""A folder where a file is wanted, and a file where a folder is: named as what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import class_folders, run
from PIL import Image
from planted import Planted
from small_vits import make_backbone, make_bundle

import hgprompt_edge
from hgprompt_edge import UserError
from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.runtime.learned import open_history, state_folder

WRONG_KIND = {
    "predict --model folder a.png": "folder: a folder, not a model file; make it with",
    "evaluate folder --data mine": "folder: a folder, not a model file; make it with",
    "verify pets.onnx --bundle folder": "--bundle folder: a folder, not a file",
    "verify pets.onnx --key folder": "--key folder: a folder, not a key file",
    "prompt import folder --name a --preprocessing none --backbone tiny": (
        "folder: a folder, not a file"
    ),
    "fit --task digits --backbone tiny --sources a.png": (
        "--sources a.png: a file, not a folder; name one that holds prompt files"
    ),
    "adapt --model pets.onnx --data a.png": "--data a.png: a file, not a folder",
    "predict --model pets.onnx --watch a.png": "--watch a.png: a file, not a folder",
    "predict --model pets.onnx --state a.png a.png": "--state a.png: a file, not a folder; name",
    "evaluate pets.onnx --data mine --state a.png": "--state a.png: a file, not a folder; name",
    "state history --model pets.onnx --state a.png": "--state a.png: a file, not a folder; name",
    "fit --data mine -o folder": "--output folder: a folder, not a file; name a file",
    "compare --data mine -o folder": "--output folder: a folder, not a file; name a file",
    "tune pets.hgbundle -o folder": "--output folder: a folder, not a file; name a file",
    "condition pets.hgbundle -o folder": "--output folder: a folder, not a file; name a file",
    "merge a.json --bundle pets.hgbundle -o folder": "--output folder: a folder, not a file",
    "evaluate pets.onnx --data mine --csv folder": "--csv folder: a folder, not a file; name a",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("here")
    Planted(here)
    write_bundle(here / "pets.hgbundle", make_bundle(make_backbone()))
    class_folders(here / "mine", 2)
    (here / "folder").mkdir()
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(here / "a.png")
    return here


@pytest.mark.parametrize("words", WRONG_KIND)
def test_a_path_of_the_wrong_kind_is_named(
    words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    before = set(here.rglob("*"))
    result = run(*words.split())
    assert result.exit_code == 2
    assert WRONG_KIND[words] in result.stderr.splitlines()[-1]
    assert not result.stdout
    made = {path for path in here.rglob("*") if "pets.state" not in path.parts}
    assert made <= before


def test_a_folder_that_is_no_state_is_no_silent_return_to_the_start(
    here: Path, tmp_path: Path
) -> None:
    """The weights of a device are in force, or it is said that they are not."""
    model, image = shutil.copytree(here, tmp_path / "copy") / "pets.onnx", str(here / "a.png")
    with pytest.raises(UserError, match=r"--state .*a\.png: a file, not a folder"):
        hgprompt_edge.load(model, state=here / "a.png")
    words = ("predict", "--model", str(model), image, "--state")
    said = "so the initial weights are in force"
    folder = run(*words, str(here / "folder"))
    assert folder.exit_code == 0
    assert f"folder: holds nothing that was learned (yet), {said}" in folder.stderr
    predictor = hgprompt_edge.load(model).predictor
    assert predictor.bank is not None
    with open_history(state_folder(model), predictor.bank, predictor.classes) as history:
        history.commit(predictor.bank.initial, method="labelled", images=1, figures={})
    assert said not in run(*words, str(state_folder(model))).stderr
