"""`hgedge predict --monitor`: predictions as ever, and the same images go to the monitor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from small_vits import make_backbone, make_bundle, make_mixable
from test_device_folder import sources
from watched_folders import (
    GAIN,
    OWN,
    end_watch_when_served,
    exported,
    folder_of,
    pictures,
    with_reference,
)

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitored import watched


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_reference(make_bundle(make_backbone()), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    return exported(tmp_path, bundle)


@pytest.fixture
def turning(tmp_path: Path) -> Path:
    """Images that turn dark half-way."""
    return folder_of(tmp_path / "seen", pictures(100, 2), pictures(100, 3, gain=0.6))


def test_the_predictions_and_the_monitors_state_are_those_of_either_command(
    model: Path, turning: Path, tmp_path: Path
) -> None:
    words, kept = ("--model", str(model), str(turning)), tmp_path / "kept"
    plain = run("predict", *words, "--json")
    both = run("predict", *words, "--json", "--monitor")
    watched = run("monitor", *words, "--json", "--state", str(kept))
    assert (plain.exit_code, both.exit_code, watched.exit_code) == (0, 0, 3)
    found = json.loads(both.stdout)
    assert found["predictions"] == json.loads(plain.stdout)
    (report,) = found["monitors"]
    expected = json.loads(watched.stdout)
    assert expected.pop("unreadable") == []
    assert report == expected
    state = (tmp_path / "pets.state" / "monitor.json").read_bytes()
    assert state == (kept / "monitor.json").read_bytes()
    said = [line for line in both.stderr.splitlines() if "SHIFT" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{model}: SHIFT, images look different since about image ")


@pytest.mark.parametrize("form", [(), ("--csv",)])
def test_text_and_csv_are_as_without(
    model: Path, turning: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    words = ("predict", "--model", str(model), str(turning), *form)
    plain, both = run(*words), run(*words, "--monitor")
    assert both.stdout == plain.stdout
    assert "SHIFT" in both.stderr
    assert "SHIFT" not in plain.stderr


def test_no_image_runs_twice(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(engine: OnnxEngine, pixels: Any, given: Any) -> Any:
        batches.append(len(pixels))
        return run_all(engine, pixels, given)

    def never(*_: Any) -> Any:
        raise AssertionError("a second run")

    batches: list[int] = []
    run_all = OnnxEngine.run_all
    monkeypatch.setattr(OnnxEngine, "run_all", counted)
    monkeypatch.setattr(OnnxEngine, "run", never)
    seen = folder_of(tmp_path / "seen", pictures(20, 4))
    result = run("predict", "--model", str(model), str(seen), "--monitor")
    assert result.exit_code == 0, result.output
    assert batches == [16, 4]


def test_each_task_of_a_device_folder_has_its_monitor(bundle: Bundle, tmp_path: Path) -> None:
    device = tmp_path / "device"
    export_device(sources([bundle, replace(bundle, task="cars")]), make_backbone(), device)
    seen = folder_of(tmp_path / "seen", pictures(5, 5))
    (seen / "00002.png").write_bytes(b"no picture")
    words = ("predict", "--model", str(device), "--task", "pets", "--task", "cars", str(seen))
    result = run(*words, "--monitor", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert [(each["task"], each["images"]) for each in found["monitors"]] == [
        ("pets", 4),
        ("cars", 4),
    ]
    assert (device / "pets.state" / "monitor.json").is_file()
    assert (device / "cars.state" / "monitor.json").is_file()
    broken = [row for row in found["predictions"] if row["error"]]
    assert [Path(row["image"]).name for row in broken] == ["00002.png"], "once, not once a task"
    assert "task" not in broken[0]
    assert len(found["predictions"]) == 2 * 4 + 1
    kept = run(*words, "--monitor", "--state", str(tmp_path / "kept"))
    assert kept.exit_code == 2
    assert "holds what one task has learned; give one --task" in kept.stderr
    assert not (tmp_path / "kept").exists()


def test_a_model_of_too_few_images_is_not_watched(tmp_path: Path) -> None:
    model = exported(tmp_path, with_reference(make_bundle(make_backbone()), tmp_path, 80))
    seen = folder_of(tmp_path / "seen", pictures(2, 6))
    result = run("predict", "--model", str(model), str(seen), "--monitor")
    assert result.exit_code == 2
    assert "records 80 of its own images, and an alarm needs 100" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "pets.state").exists()


def test_the_monitor_sees_the_initial_mix_whatever_was_learned(tmp_path: Path) -> None:
    backbone, model = make_backbone(), tmp_path / "pets.onnx"
    export_onnx(
        with_reference(make_mixable(backbone), tmp_path), backbone, model, runtime_weights=True
    )
    predictor = Predictor(model)
    assert predictor.bank is not None
    corner = np.eye(len(predictor.bank.names), dtype=np.float32)[-1]
    opened = open_history(
        tmp_path / "pets.state",
        predictor.bank,
        predictor.metadata,
    )
    with opened as history, history.exclusive():
        history.commit(corner, method="unlabelled", images=64, figures={})
    seen = folder_of(tmp_path / "seen", pictures(30, 7, gain=GAIN))
    words, kept = ("--model", str(model), str(seen)), tmp_path / "kept"
    plain, both = run("predict", *words, "--json"), run("predict", *words, "--json", "--monitor")
    assert json.loads(both.stdout)["predictions"] == json.loads(plain.stdout)
    assert run("monitor", *words, "--state", str(kept)).exit_code == 3
    state = (tmp_path / "pets.state" / "monitor.json").read_bytes()
    assert state == (kept / "monitor.json").read_bytes()


def test_a_served_folder_is_watched_until_ctrl_c(
    model: Path, turning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_watch_when_served(monkeypatch)
    kept = tmp_path / "kept"
    words = ("predict", "--model", str(model), "--watch", str(turning), "--monitor", "--json")
    result = run(*words, "--state", str(kept))
    assert result.exit_code == 130
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["monitor"]["images"] for row in rows] == list(range(1, 201))
    assert [row["image"] for row in rows] == sorted(map(str, turning.iterdir()))
    assert result.stderr.count("SHIFT") == 1
    first = next(row for row in rows if row["monitor"]["alarm"])
    assert first["monitor"]["shift"]["at"] == first["monitor"]["images"]
    assert json.loads((kept / "monitor.json").read_text())["images"] == 200
    again = run(*words, "--state", str(kept))
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert len(rows) == 200, "each is classified again"
    assert {row["monitor"]["images"] for row in rows} == {200}, "and none is counted again"


def test_what_was_found_can_be_asked_for_without_images(
    model: Path, turning: Path, tmp_path: Path
) -> None:
    words = ("monitor", "--model", str(model))
    result = run(*words)
    assert (result.exit_code, result.stdout) == (0, "0 images: no shift found\n")
    assert not (tmp_path / "pets.state").exists()
    run("predict", "--model", str(model), str(turning), "--monitor")
    result = run(*words)
    assert result.exit_code == 3
    assert result.stdout.startswith("200 images (")
    assert "SHIFT, images look different since about image " in result.stdout
    result = run(*words, "--reset", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["images"], document["alarm"]) == (0, False)


def test_a_task_that_was_replaced_meanwhile_is_not_watched_on(
    bundle: Bundle, tmp_path: Path
) -> None:
    device, backbone = tmp_path / "device", make_backbone()
    export_device(sources([bundle, replace(bundle, task="cars")]), backbone, device)
    predictor = Predictor(device).task("cars")
    with watched(predictor) as found:
        again = predictor.task("cars")
        assert len(found.way(again).judge(bundle.probe_images)[0]) == len(bundle.probe_images)
        other = replace(bundle, reference=with_reference(bundle, tmp_path, OWN - 1).reference)
        export_device(sources([other, replace(other, task="cars")]), backbone, tmp_path / "other")
        (tmp_path / "other" / "cars.hgtask").replace(device / "cars.hgtask")
        with pytest.raises(UserError, match=r"was replaced, and .* is about the one before"):
            found.way(predictor.task("cars"))
