"""A state that is not one is named, and the initial weights are not silently in force."""

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


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("here")
    Planted(here)
    write_bundle(here / "pets.hgbundle", make_bundle(make_backbone()))
    class_folders(here / "mine", 2)
    (here / "folder").mkdir()
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(here / "a.png")
    return here


def test_a_folder_that_is_no_state_is_no_silent_return_to_the_start(
    here: Path, tmp_path: Path
) -> None:
    """The weights of a device are in force, or it is said that they are not."""
    model, image = shutil.copytree(here, tmp_path / "copy") / "pets.onnx", str(here / "a.png")
    with pytest.raises(UserError, match=r"`state='.*a\.png'`: a file, not a folder"):
        hgprompt_edge.load(model, state=here / "a.png")
    words = ("predict", "--model", str(model), image, "--state")
    said = "so the initial weights are in force"
    folder = run(*words, str(here / "folder"))
    assert folder.exit_code == 0
    assert f"folder: holds nothing that was learned (yet), {said}" in folder.stderr
    predictor = hgprompt_edge.load(model).predictor
    assert predictor.bank is not None
    with open_history(state_folder(model), predictor.bank, predictor.metadata) as history:
        history.commit(predictor.bank.initial, method="labelled", images=1, figures={})
    assert said not in run(*words, str(state_folder(model))).stderr
