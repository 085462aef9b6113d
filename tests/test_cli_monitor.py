"""`hgedge monitor`, as on a device: a folder that turns dark, one class, frames, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run
from PIL import Image
from small_vits import make_backbone, make_bundle, make_mixable
from test_device_folder import sources
from watched_folders import end_watch_when_served, exported, folder_of, pictures, with_reference

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.export.device_folder import export_device

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_reference(make_bundle(make_backbone()), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    return exported(tmp_path, bundle)


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
    end_watch_when_served(monkeypatch)
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

    end_watch_when_served(monkeypatch)
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
