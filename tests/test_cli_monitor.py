"""`hgedge monitor`, as on a device: a folder that turns dark, one class, frames, bad input."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command_line import run
from PIL import Image
from small_vits import make_backbone, make_bundle, make_mixable, token_features, token_logits
from test_device_folder import sources

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
from hgprompt_edge.runtime.watching.watch import watch_paths

Pixels = npt.NDArray[np.uint8]
CLASSES, OWN, GAIN = 4, 160, 0.85
ROOT = Path(__file__).resolve().parents[1]


def pictures(count: int, seed: int, *, only: int | None = None, gain: float = 1) -> Pixels:
    """Patches of one colour each, around those of four classes."""
    rng = np.random.default_rng(seed)
    palettes = np.random.default_rng(1).integers(40, 216, (CLASSES, 3, 3, 3))
    labels = labels_of(count, seed) if only is None else np.full(count, only)
    coarse = palettes[labels] + rng.normal(0, 22, (count, 3, 3, 3))
    pixels: Pixels = (gain * coarse.clip(0, 255)).astype(np.uint8)
    return pixels.repeat(8, axis=1).repeat(8, axis=2)


def labels_of(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 5]).integers(0, CLASSES, count)


def with_reference(bundle: Bundle, folder: Path, count: int = OWN) -> Bundle:
    """The bundle with what its own images look like."""
    path = folder / "plain.onnx"
    export_onnx(bundle, make_backbone(), path)
    predictor = Predictor(path)
    files = sorted(folder_of(folder / "own", pictures(count, 0)).iterdir())
    pixels = np.stack([read_image(file, predictor.preprocessing) for file in files])
    features = predictor.features(pixels)
    return replace(bundle, reference=fit_reference(features, labels_of(count, 0), CLASSES))


def exported(folder: Path, bundle: Bundle) -> Path:
    path = folder / "pets.onnx"
    export_onnx(bundle, make_backbone(), path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_reference(make_bundle(make_backbone()), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    return exported(tmp_path, bundle)


def folder_of(path: Path, *parts: Pixels) -> Path:
    path.mkdir(exist_ok=True)
    for number, pixels in enumerate(np.concatenate(parts)):
        Image.fromarray(pixels).save(path / f"{number:05}.png")
    return path


def test_a_folder_that_turns_dark_half_way_raises_the_alarm(model: Path, tmp_path: Path) -> None:
    seen = folder_of(tmp_path / "seen", pictures(100, 2), pictures(100, 3, gain=0.6))
    result = run("monitor", "--model", str(model), str(seen))
    assert result.exit_code == 3
    assert "200 images" in result.stdout
    assert "SHIFT, images look different since about image" in result.stdout
    assert "the weights are folded into this model" in result.stdout
    again = run("monitor", "--model", str(model), str(seen / "00000.png"), "--json")
    document = json.loads(again.stdout)
    assert again.exit_code == 3
    assert (document["alarm"], document["images"], document["unreadable"]) == (True, 201, [])
    assert 60 <= document["shift"]["since"] <= 130
    assert 100 < document["shift"]["at"] <= 180
    assert document["evidence"] > document["needed"] or document["shift"]["at"] < 200


def test_clean_images_of_one_class_raise_none(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    seen = folder_of(tmp_path / "seen", pictures(200, 4, only=2))
    result = run("monitor", "--model", str(model), str(seen))
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == "200 images: no shift found"
    assert second.startswith("mix of classes changed since about image 1: more ")
    assert f"more {bundle.classes[2]} (" in second


def test_parts_of_a_stream_are_one_stream_until_it_is_reset(model: Path, tmp_path: Path) -> None:
    words = ("monitor", "--model", str(model))
    for part in range(3):
        seen = folder_of(tmp_path / f"seen-{part}", pictures(20, part + 10))
        result = run(*words, str(seen), "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["images"] == 20 * (part + 1)
    assert (tmp_path / "pets.state" / "monitor.json").is_file()
    result = run(*words, str(seen), "--json", "--reset")
    assert json.loads(result.stdout)["images"] == 20
    assert run(*words, "--reset").exit_code == 0
    assert not (tmp_path / "pets.state" / "monitor.json").exists()


def test_watch_takes_in_each_image_until_ctrl_c(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_looks(_: float) -> None:
        if looks:
            raise KeyboardInterrupt
        looks.append(1)

    looks: list[int] = []
    served = functools.partial(watch_paths, sleep=two_looks)
    monkeypatch.setattr("hgprompt_edge.runtime.watching.watch.watch_paths", served)
    seen = folder_of(tmp_path / "seen", pictures(5, 20))
    result = run("monitor", "--model", str(model), "--watch", str(seen), "--json")
    assert result.exit_code == 130
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["images"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["image"] for row in rows] == sorted(map(str, seen.iterdir()))
    state = json.loads((tmp_path / "pets.state" / "monitor.json").read_text())
    assert state["images"] == 5


def test_a_watch_that_is_started_again_counts_no_image_twice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "pets.state" / "monitor.json"
    seen = folder_of(tmp_path / "seen", pictures(5, 20))
    assert watched_images(monkeypatch, model, seen) == [1, 2, 3, 4, 5]
    assert watched_images(monkeypatch, model, seen) == []
    first = seen / "00000.png"
    old = first.stat()
    Image.fromarray(pictures(1, 21)[0]).save(first)  # a new image under an old name
    Image.fromarray(pictures(1, 22)[0]).save(seen / "late.png")
    os.utime(seen / "late.png", ns=(old.st_atime_ns, old.st_mtime_ns))  # copied with its time
    (seen / "00001.png").unlink()
    assert watched_images(monkeypatch, model, seen) == [6, 7]
    assert sorted(json.loads(state.read_text())["served"]) == sorted(p.name for p in seen.iterdir())
    assert run("monitor", "--model", str(model), "--reset").exit_code == 0
    assert watched_images(monkeypatch, model, seen) == [1, 2, 3, 4, 5]


def watched_images(monkeypatch: pytest.MonkeyPatch, model: Path, seen: Path) -> list[int]:
    """Watch a folder until all that is there was served; the counts of the monitor."""

    def two_looks(_: float) -> None:
        if looks:
            raise KeyboardInterrupt
        looks.append(1)

    looks: list[int] = []
    served = functools.partial(watch_paths, sleep=two_looks)
    monkeypatch.setattr("hgprompt_edge.runtime.watching.watch.watch_paths", served)
    result = run("monitor", "--model", str(model), "--watch", str(seen), "--json")
    assert result.exit_code == 130, result.output
    return [json.loads(line)["images"] for line in result.stdout.splitlines()]


@pytest.mark.skipif(os.name == "nt", reason="there, SIGTERM ends a process at once")
@pytest.mark.parametrize("command", [("monitor",), ("predict", "--monitor")])
def test_sigterm_ends_a_watch_as_ctrl_c_does(
    command: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    state = tmp_path / "pets.state"
    seen = folder_of(tmp_path / "seen", pictures(5, 20))
    words = (*command, "--model", str(model), "--watch", str(seen), "--json")
    program = [sys.executable, "-m", "hgprompt_edge.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        served = [child.stdout.readline() for _ in range(5)]
        assert (state / "monitor.pid").is_file()
        child.send_signal(signal.SIGTERM)
    assert all(served)
    assert child.returncode == 130
    assert json.loads((state / "monitor.json").read_text())["images"] == 5
    assert not (state / "monitor.pid").exists()


def test_images_that_cannot_be_read_are_said_and_left_out(model: Path, tmp_path: Path) -> None:
    seen = folder_of(tmp_path / "seen", pictures(3, 21))
    (seen / "00001.png").write_bytes(b"no picture")
    result = run("monitor", "--model", str(model), str(seen), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["images"] == 2
    assert [Path(row["file"]).name for row in document["unreadable"]] == ["00001.png"]
    result = run("monitor", "--model", str(model), "nope.png", str(seen / "00000.png"), "--json")
    row = {"file": "nope.png", "reason": "no such file or folder"}
    assert json.loads(result.stdout)["unreadable"] == [row]
    (seen / "bad").mkdir()
    (seen / "00001.png").rename(seen / "bad" / "a.png")
    result = run("monitor", "--model", str(model), str(seen / "bad"))
    assert result.exit_code == 2
    assert "none of the images can be read" in result.stderr


def test_a_task_of_a_device_folder_is_watched_by_itself(bundle: Bundle, tmp_path: Path) -> None:
    device = tmp_path / "device"
    export_device(sources([bundle, replace(bundle, task="cars")]), make_backbone(), device)
    seen = folder_of(tmp_path / "seen", pictures(10, 22))
    result = run("monitor", "--model", str(device), str(seen))
    assert result.exit_code == 2
    assert "choose with --task" in result.stderr
    result = run("monitor", "--model", str(device), "--task", "cars", str(seen), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["task"] == "cars"
    assert (device / "cars.state" / "monitor.json").is_file()
    assert not (device / "pets.state").exists()


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "does not record what its own images look like"), (80, "records 80 of its own images")],
)
def test_a_model_that_cannot_be_watched_says_why_and_leaves_nothing(
    tmp_path: Path, count: int, said: str
) -> None:
    bundle = make_bundle(make_backbone())
    model = exported(tmp_path, with_reference(bundle, tmp_path, count) if count else bundle)
    seen = folder_of(tmp_path / "seen", pictures(2, 23))
    result = run("monitor", "--model", str(model), str(seen))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "pets.state").exists()


def test_a_state_of_another_model_is_refused(model: Path, bundle: Bundle, tmp_path: Path) -> None:
    seen = folder_of(tmp_path / "seen", pictures(2, 24))
    other = tmp_path / "other"
    other.mkdir()
    mixable = with_reference(make_mixable(make_backbone(), seed=3), other)
    words = ("monitor", "--model", str(exported(other, mixable)), str(seen))
    assert run(*words, "--state", str(tmp_path / "kept")).exit_code == 0
    result = run("monitor", "--model", str(model), str(seen), "--state", str(tmp_path / "kept"))
    assert result.exit_code == 2
    assert "is about another model" in result.stderr


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


def test_a_file_where_the_state_would_be_is_refused(model: Path, tmp_path: Path) -> None:
    seen = str(folder_of(tmp_path / "seen", pictures(2, 24)))
    (tmp_path / "pets.state").write_text("")
    for words in ((), (seen,), ("--watch", seen), ("--reset",)):
        result = run("monitor", "--model", str(model), *words)
        assert result.exit_code == 2
        assert "pets.state: a file, where the folder with what is learned for" in result.stderr


def test_what_cannot_be_removed_is_said(model: Path, tmp_path: Path) -> None:
    (tmp_path / "pets.state" / "monitor.json").mkdir(parents=True)
    result = run("monitor", "--model", str(model), "--reset")
    assert result.exit_code == 2
    assert "monitor.json: cannot be removed (" in result.stderr


def test_words_that_do_not_go_together_are_refused(model: Path, tmp_path: Path) -> None:
    words = ("monitor", "--model", str(model))
    assert run(*words, "--adapt").exit_code == 2
    assert run(*words, "nowhere").exit_code == 2
    assert run(*words, str(tmp_path), "--watch", str(tmp_path)).exit_code == 2
    result = run(*words, "--watch", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "nowhere: no such folder" in result.stderr


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
