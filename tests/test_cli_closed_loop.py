"""`hgedge monitor --adapt`: what a device does by itself when images look different."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from small_vits import make_backbone, make_bundle, make_mixable, token_features, token_logits
from test_device_folder import sources
from watched_folders import (
    CLASSES,
    GAIN,
    OWN,
    exported,
    folder_of,
    labels_of,
    pictures,
    with_reference,
)

from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.images.preprocess import read_image
from hgprompt_edge.maths.feature_statistics import measure_statistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.reference import fit_reference
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_reference(make_bundle(make_backbone()), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    """Model whose weights are folded in."""
    return exported(tmp_path, bundle)


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model whose weights can move, and which knows its own images and their statistics."""
    return make_adaptable(tmp_path_factory.mktemp("adaptable"))


@pytest.fixture(scope="module")
def remedied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but another mix gives dark images the very statistics of clean ones."""
    return make_adaptable(tmp_path_factory.mktemp("remedied"), remedied=True)


def make_adaptable(folder: Path, *, remedied: bool = False) -> Path:
    path = folder / "pets.onnx"
    known = knowing(folder, remedied=remedied)
    export_onnx(known, make_backbone(), path, runtime_weights=True, adapt=True)
    return path


def knowing(folder: Path, *, remedied: bool = False) -> Bundle:
    """A bundle that knows its own images; the folder is for pictures."""
    backbone = make_backbone()
    bundle, path = make_mixable(backbone), folder / "pets.onnx"
    export_onnx(bundle, backbone, path, runtime_weights=True, adapt=True)
    predictor = Predictor(path)
    assert predictor.bank is not None
    files = sorted(folder_of(folder / "own", pictures(OWN, 0)).iterdir())
    pixels = np.stack([read_image(file, predictor.preprocessing) for file in files])
    labels = labels_of(OWN, 0)
    mixed = np.tensordot(predictor.bank.initial, bank_tokens(bundle)[1], 1)
    features = token_features(replace(bundle, prompt=mixed), backbone, pixels)
    clean = measure_statistics(features, labels, CLASSES)
    if remedied:
        dark = sorted(folder_of(folder / "dark", pictures(OWN, 1, gain=GAIN)).iterdir())
        shown = np.stack([read_image(file, predictor.preprocessing) for file in dark])
        remedy = replace(bundle, prompt=bank_tokens(bundle)[1][-1])
        seen = token_features(remedy, backbone, shown)
        clean = measure_statistics(seen, labels_of(OWN, 1), CLASSES)
        features, labels = seen, labels_of(OWN, 1)
    # A head that tells the classes apart, as a fitted one does.
    means = np.stack([features[labels == place].mean(0) for place in range(CLASSES)])
    weight = 40 * (means - means.mean(0)).astype(np.float32)
    bias = (-(weight * (means + means.mean(0))).sum(1) / 2).astype(np.float32)
    known = replace(
        bundle,
        head=Head(weight, bias),
        clean=clean,
        reference=fit_reference(predictor.features(pixels), labels_of(OWN, 0), CLASSES),
    )
    return replace(known, probe_logits=token_logits(known, backbone, known.probe_images))


def versions(model: Path, state: Path) -> list[str]:
    result = run("state", "history", "--model", str(model), "--state", str(state), "--json")
    return [version["method"] for version in json.loads(result.stdout)]


def test_a_device_goes_back_by_itself_when_images_are_clean_again(
    adaptable: Path, tmp_path: Path
) -> None:
    state, predictor = tmp_path / "state", Predictor(adaptable)
    assert predictor.bank is not None
    corner = np.eye(len(predictor.bank.names), dtype=np.float32)[-1]
    opened = open_history(state, predictor.bank, predictor.metadata)
    with opened as history, history.exclusive():
        history.commit(corner, method="unlabelled", images=64, figures={})
    seen = folder_of(tmp_path / "seen", pictures(150, 30))
    words = ("monitor", "--model", str(adaptable), "--state", str(state), "--adapt", str(seen))
    result = run(*words)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert re.match(r"at image 6\d: back to the initial weights", first)
    assert first.endswith("version 3 is in force")
    assert second.endswith(": no shift found")
    assert versions(adaptable, state) == ["initial", "unlabelled", "return"]


def test_a_shift_is_adapted_to_under_the_guard(adaptable: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    seen = folder_of(tmp_path / "seen", pictures(80, 31), pictures(150, 32, gain=GAIN))
    words = ("monitor", "--model", str(adaptable), "--state", str(state), str(seen), "--json")
    result = run(*words, "--adapt")
    document = json.loads(result.stdout)
    assert document["alarm"]
    first = document["steps"][0]
    assert 120 <= first["at"] <= 180, "it waits until the window holds images of the shift"
    taken = [step for step in document["steps"] if step["taken"]]
    assert len(versions(adaptable, state)) == 1 + len(taken)
    assert result.exit_code == (0 if taken else 3)
    assert document["steps"][-1]["version"] == 1 + len(taken)


def test_the_next_command_can_be_pasted(adaptable: Path, tmp_path: Path) -> None:
    state = tmp_path / "my state"
    seen = folder_of(tmp_path / "seen", pictures(60, 31), pictures(60, 32, gain=0.6))
    words = ("monitor", "--model", str(adaptable), "--state", str(state))
    for paths, data in (
        ([seen], str(seen)),
        ([seen, seen / "00000.png"], "FOLDER"),
        ([], "FOLDER"),
    ):
        result = run(*words, *map(str, paths))
        assert result.exit_code == 3
        assert result.stdout.splitlines()[-1] == (
            f"next: hgedge adapt --model {adaptable} --data {data} --unlabelled --state '{state}'"
        )


def test_a_refusal_advises_nothing_that_the_monitor_cannot_do(
    adaptable: Path, tmp_path: Path
) -> None:
    one = pictures(150, 32, only=1, gain=0.6)
    seen = folder_of(tmp_path / "seen", pictures(60, 31), one)
    words = ("monitor", "--model", str(adaptable), "--state", str(tmp_path / "state"), "--adapt")
    result = run(*words, str(seen))
    assert re.search(r"the images show \d.\d of 4 classes in effect", result.stdout)
    assert "a change from images of a few classes; version 1 is in force" in result.stdout
    assert "expected" not in result.stdout
    assert "give" not in result.stdout


def test_clean_images_are_not_adapted_to(adaptable: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    seen = folder_of(tmp_path / "seen", pictures(150, 33))
    words = ("monitor", "--model", str(adaptable), "--state", str(state), str(seen), "--json")
    result = run(*words, "--adapt")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["steps"] == []
    assert versions(adaptable, state) == ["initial"]


def test_a_model_whose_weights_are_folded_cannot_adapt(model: Path, tmp_path: Path) -> None:
    seen = folder_of(tmp_path / "seen", pictures(2, 34))
    result = run("monitor", "--model", str(model), "--adapt", str(seen))
    assert result.exit_code == 2
    assert "its weights are folded into it" in result.stderr
    assert not (tmp_path / "pets.state").exists()


def test_what_was_learned_stays_while_it_fits(remedied: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    seen = folder_of(tmp_path / "seen", pictures(40, 35), pictures(280, 36, gain=GAIN))
    words = ("monitor", "--model", str(remedied), "--state", str(state), str(seen), "--adapt")
    result = run(*words)
    first, second, third, *_ = result.stdout.splitlines()
    assert "come nearer to those of clean images" in first, result.output
    assert first.endswith("version 2 is in force")
    assert second.endswith("version 3 is in force"), "learned anew from images of the shift alone"
    assert "the weights in force still fit what the images show" in third
    assert result.exit_code == 0
    assert versions(remedied, state) == ["initial", "unlabelled", "unlabelled"]


def test_a_shift_that_is_gone_is_forgotten_and_the_next_one_found(
    adaptable: Path, tmp_path: Path
) -> None:
    dark, clean = pictures(200, 38, gain=0.6), pictures(150, 39)
    seen = folder_of(tmp_path / "seen", pictures(80, 37), dark, clean)
    words = ("monitor", "--model", str(adaptable), "--state", str(tmp_path / "state"), "--json")
    document = json.loads(run(*words, str(seen), "--adapt").stdout)
    assert not any(step["taken"] for step in document["steps"]), "no prompt undoes this"
    assert document["steps"][-1]["reason"].startswith("images look clean again")
    assert 280 < document["steps"][-1]["at"] <= 430
    assert not document["alarm"]
    again = run(*words, str(folder_of(tmp_path / "again", dark)))
    assert again.exit_code == 3
    assert json.loads(again.stdout)["shift"]["at"] > 430


@pytest.mark.parametrize("first", [("--adapt",), ()])
def test_clean_images_withdraw_the_alarm_of_an_earlier_call(
    adaptable: Path, tmp_path: Path, first: tuple[str, ...]
) -> None:
    words = ("monitor", "--model", str(adaptable), "--state", str(tmp_path / "state"))
    seen = folder_of(tmp_path / "seen", pictures(80, 37), pictures(130, 38, gain=0.6))
    assert run(*words, *first, str(seen)).exit_code == 3
    result = run(*words, "--adapt", str(folder_of(tmp_path / "clean", pictures(150, 39))))
    assert result.exit_code == 0, result.output
    assert "images look clean again" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("no shift found")
    assert run(*words).exit_code == 0


def test_a_task_of_a_device_folder_closes_the_loop(tmp_path: Path) -> None:
    bundle, device = knowing(tmp_path, remedied=True), tmp_path / "device"
    bundles = [bundle, replace(make_mixable(make_backbone(), seed=3), task="cars")]
    export_device(sources(bundles), make_backbone(), device, adapt=True)
    pixels = pictures(2, 37)
    initial = Predictor(device).task("cars").logits(pixels)
    seen = folder_of(tmp_path / "seen", pictures(40, 35), pictures(200, 36, gain=GAIN))
    words = ("--model", str(device), "--task", "pets")
    result = run("monitor", *words, "--adapt", str(seen))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith("version 2 is in force")
    history = json.loads(run("state", "history", *words, "--json").stdout)
    assert [version["method"] for version in history] == ["initial", "unlabelled", "unlabelled"]
    assert Predictor(device).task("pets").version is not None
    assert not (device / "cars.state").exists()
    np.testing.assert_array_equal(Predictor(device).task("cars").logits(pixels), initial)


def test_the_state_of_another_task_is_refused_and_left_alone(
    adaptable: Path, bundle: Bundle, tmp_path: Path
) -> None:
    seen = str(folder_of(tmp_path / "seen", pictures(2, 24)))
    state = tmp_path / "cars.state"
    predictor = Predictor(adaptable)
    assert predictor.bank is not None
    cars = predictor.metadata.model_copy(update={"task": "cars"})
    open_history(state, predictor.bank, cars).close()
    for model in (adaptable, exported(tmp_path, bundle)):
        result = run("monitor", "--model", str(model), "--state", str(state), seen)
        assert result.exit_code == 2, result.output
        assert str(state) in result.stderr
        assert not list(state.glob("monitor*"))
