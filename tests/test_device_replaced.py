"""What a device has learned, where its task or its folder is written anew under the same name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from command_line import run
from small_vits import make_backbone, make_mixable
from test_device_folder import named, sources

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor

NAMES = {4: "pets", 5: "cars"}
"""Tasks by the seeds of their bundles."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def exported(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "device"
    bundles = [named(make_mixable(backbone, seed=seed), name) for seed, name in NAMES.items()]
    export_device(sources(bundles), backbone, folder, adapt=True)
    return folder


@pytest.fixture
def here(
    backbone: Backbone, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of a device folder, in which cars has learned, and the bundles that it is of."""
    shutil.copytree(exported, tmp_path / "device")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgprompt_edge.backbones.fitted.backbone_of", lambda *_: backbone)
    for seed, name in NAMES.items():
        write_bundle(Path(f"{name}.hgbundle"), named(make_mixable(backbone, seed=seed), name))
    learn(Path("device/cars.hgtask"))
    return tmp_path


def learn(path: Path) -> None:
    task = Predictor(path)
    bank = task.require_bank()
    with open_history(path.with_suffix(".state"), bank, task.metadata) as history:
        history.commit(np.roll(bank.initial, 1), method="labelled", images=9, figures={})


def other_cars(backbone: Backbone, change: Callable[[Bundle], Bundle]) -> None:
    """Write another bundle, and the file of another task, under the name of the old one."""
    bundle = change(named(make_mixable(backbone, seed=5), "cars"))
    write_bundle(Path("cars.hgbundle"), bundle)
    export_device(sources([bundle]), backbone, Path("other"), adapt=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "history" not in path.name and path.suffix != ".lock"
    }


def words_of(result: Result) -> str:
    return " ".join(result.stderr.split())


WRITES = {
    "a task file": ("device", "add", "device", "other/cars.hgtask"),
    "a bundle": ("device", "add", "device", "cars.hgbundle"),
    "a folder": ("export", "pets.hgbundle", "cars.hgbundle", "--adapt", "-o", "device"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_task_that_what_was_learned_does_not_fit_is_refused_before_anything_is_written(
    here: Path, backbone: Backbone, write: tuple[str, ...]
) -> None:
    other_cars(backbone, lambda bundle: replace(bundle, conditions=({"name": "fog"},)))
    before = contents(here / "device")
    result = run(*write)
    assert result.exit_code == 2, result.output
    state = Path("device/cars.state")
    assert f"hgedge: {state}: does not fit the new cars.hgtask: it was" in words_of(result)
    assert words_of(result).endswith("move or remove it first")
    assert contents(here / "device") == before
    assert Predictor("device").task("cars").version is not None
    state.rename("old.state")
    result = run(*write)
    assert result.exit_code == 0, result.stderr
    assert "cars.state" not in result.stderr
    assert Predictor("device").task("cars").metadata.task == "cars"


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_merged_mix_under_a_learned_version_is_said(
    here: Path, backbone: Backbone, write: tuple[str, ...]
) -> None:
    merged = np.array([0.1, 0.2, 0.7], np.float32)
    other_cars(backbone, lambda bundle: replace(bundle, initial=merged))
    result = run(*write)
    assert result.exit_code == 0, result.stderr
    assert "device/cars.state: version 2 stays in force" in words_of(result)
    back = words_of(result).partition("`hgedge state ")[2].partition("`")[0]
    assert run("state", *back.split()).exit_code == 0
    task = Predictor("device").task("cars")
    assert task.version is not None
    np.testing.assert_allclose(task.version.weights, merged)
    assert "stays in force" not in run(*write).stderr


def test_a_model_file_has_the_same_rule(here: Path, backbone: Backbone) -> None:
    words = ("export", "cars.hgbundle", "-o", "cars.onnx")
    assert run(*words, "--adapt").exit_code == 0
    learn(Path("cars.onnx"))
    assert "version 2 stays in force" in words_of(run(*words, "--adapt"))
    assert "cars.state: kept, but not used" in words_of(run(*words))
    other_cars(backbone, lambda bundle: replace(bundle, conditions=({"name": "fog"},)))
    before = Path("cars.onnx").read_bytes()
    result = run(*words, "--weights", "runtime")
    assert result.exit_code == 2
    assert "cars.state: does not fit the new cars.onnx" in words_of(result)
    assert Path("cars.onnx").read_bytes() == before


def test_what_is_not_used_any_more_is_said(here: Path) -> None:
    words = ("export", "pets.hgbundle", "cars.hgbundle", "-o", "device")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "device/cars.state: kept, but not used" in words_of(result)
    assert "pets.state" not in result.stderr
    assert Path("device/cars.state/history.sqlite").is_file()
    result = run("device", "add", "device", "cars.hgbundle")
    assert "device/cars.state: kept, but not used" in words_of(result)


def test_the_history_shows_the_mix_that_is_at_work(here: Path, backbone: Backbone) -> None:
    path = Path("device/pets.hgtask")
    task = Predictor(path)
    open_history(path.with_suffix(".state"), task.require_bank(), task.metadata).close()
    merged = np.array([0.1, 0.2, 0.7], np.float32)
    pets = replace(named(make_mixable(backbone, seed=4), "pets"), initial=merged)
    write_bundle(Path("pets.hgbundle"), pets)
    made = run("export", "pets.hgbundle", "cars.hgbundle", "--adapt", "-o", "device")
    assert made.exit_code == 0, made.stderr
    assert "pets.state" not in made.stderr  # nothing was learned there
    shown = json.loads(run("state", "history", "--model", str(path), "--json").stdout)
    assert [version["in_force"] for version in shown] == [True]
    np.testing.assert_allclose(list(shown[0]["weights"].values()), merged, atol=1e-6)


def test_a_removed_task_leaves_its_state_and_says_what_is_in_it(here: Path) -> None:
    removed = run("device", "remove", "device", "cars")
    assert "device/cars.state: kept, it holds what was learned for cars; delete it" in words_of(
        removed
    )
    watched = Path("device/cars.state")
    (watched / "history.sqlite").unlink()
    (watched / "monitor.json").write_text("{}")
    assert run("device", "add", "device", "cars.hgbundle").exit_code == 0
    removed = run("device", "remove", "device", "cars")
    assert "device/cars.state: kept, it holds what a monitor has seen" in words_of(removed)
