"""`hgedge export --adapt`, `adapt` and `predict --watch`, as on a device."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import hgedge, run
from PIL import Image
from planted import Planted
from watched_folders import end_watch_when_served

from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.state.update_file import read_update


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def seen(planted: Planted, tmp_path: Path) -> Path:
    """What the device has seen, sorted into class folders."""
    return planted.write_seen(tmp_path / "seen")


def adapt(planted: Planted, state: Path, *words: str) -> tuple[int, dict[str, object]]:
    result = run("adapt", "--model", str(planted.path), "--state", str(state), "--json", *words)
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def test_learn_look_back_undo_and_send(planted: Planted, seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    code, found = adapt(planted, state, "--data", str(seen), "--steps", "12")
    assert (code, found["taken"]) == (0, True)
    assert found["version"]["weights"]["dark"] > 0.5
    model = ("--model", str(planted.path), "--state", str(state))
    text = run("state", "history", *model).stdout
    assert "initial" in text
    assert "2*" in text
    sent = tmp_path / "v.json"
    document = json.loads(run("state", "send", str(sent), *model, "--json").stdout)
    assert (document["file"], document["bytes"]) == (str(sent), sent.stat().st_size)
    assert document["version"]["id"] == 2
    assert sent.stat().st_size <= 1000
    assert read_update(sent).images == len(planted.images)
    assert run("state", "rollback", *model).exit_code == 0
    assert run("state", "rollback", *model, "--to", "2").exit_code == 0
    assert run("state", "reset", *model).exit_code == 0
    assert "learned from no images" in run("state", "send", str(sent), *model).stderr
    history = json.loads(run("state", "history", *model, "--json").stdout)
    assert [v["method"] for v in history] == [
        "initial", "labelled", "rollback", "rollback", "reset",
    ]  # fmt: skip
    assert [v["in_force"] for v in history] == [False] * 4 + [True]


def test_guard_keeps_the_old_weights_and_says_so(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    assert adapt(planted, state, "--data", str(seen), "--steps", "12")[0] == 0
    code, found = adapt(planted, state, "--data", str(seen), "--steps", "1")  # nothing to gain
    assert (code, found["taken"]) == (1, False)
    assert "held-out" in str(found["reason"])
    assert found["version"]["id"] == 2


def test_classes_without_images_are_named(planted: Planted, seen: Path, tmp_path: Path) -> None:
    words = ("adapt", "--model", str(planted.path), "--state", str(tmp_path / "state"))
    asked = (*words, "--data", str(seen), "--steps", "1")
    assert "no images of some classes" not in run(*asked).stderr
    first, second, *others = planted.predictor.classes
    for name in others:
        shutil.rmtree(seen / name, ignore_errors=True)
    text = " ".join(run(*asked).stderr.split())
    assert text.endswith("not judged: " + ", ".join(others))
    assert first not in text
    assert second not in text


def test_a_picture_in_two_classes_is_said(planted: Planted, seen: Path, tmp_path: Path) -> None:
    first, second = sorted(path for path in seen.iterdir())[:2]
    original = min(first.iterdir())
    shutil.copy(original, second / "again.png")
    words = ("adapt", "--model", str(planted.path), "--state", str(tmp_path / "state"))
    asked = run(*words, "--data", str(seen), "--steps", "1", "--json")
    assert "1 image(s) are copies, pixel for pixel, of images of another class" in " ".join(
        asked.stderr.split()
    )
    assert [sorted(pair) for pair in json.loads(asked.stdout)["two_classes"]] == [
        sorted([str(original), str(second / "again.png")])
    ]


def test_predict_takes_the_newest_weights(planted: Planted, seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    images = [str(p) for p in sorted(seen.rglob("*.png"))[:4]]
    words = ("predict", "--model", str(planted.path), "--json", *images)
    initial = json.loads(run(*words).stdout)
    adapt(planted, state, "--data", str(seen), "--steps", "12")
    adapted = json.loads(run(*words, "--state", str(state)).stdout)
    assert adapted != initial
    run("state", "reset", "--model", str(planted.path), "--state", str(state))
    assert json.loads(run(*words, "--state", str(state)).stdout) == initial


def test_ctrl_c_says_what_is_in_force(
    planted: Planted, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    assert adapt(planted, state, "--data", str(seen), "--steps", "12")[0] == 0

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hgprompt_edge.adapt.model.adapt_model", interrupted)
    words = ("adapt", "--model", str(planted.path), "--state", str(state), "--data", str(seen))
    result = run(*words)
    assert result.exit_code == 130
    assert "interrupted; version 2 is in force" in result.stderr


def test_watch_prints_csv(
    planted: Planted, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_watch_when_served(monkeypatch)
    folder = next(seen.iterdir())
    result = run("predict", "--model", str(planted.path), "--watch", str(folder), "--csv")
    assert result.exit_code == 130
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["image"] for row in rows] == sorted(map(str, folder.iterdir()))
    assert {row["label"] for row in rows} <= set(planted.predictor.classes)


def test_a_state_that_is_not_there_is_said(planted: Planted, seen: Path, tmp_path: Path) -> None:
    words = ("predict", "--model", str(planted.path), "--state", str(tmp_path / "tpyo"))
    result = run(*words, str(next(seen.rglob("*.png"))))
    assert result.exit_code == 0
    assert "tpyo: not there (yet), so the initial weights are in force" in result.stderr


def test_state_beside_the_model_is_followed_where_the_model_can(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    image = str(next(seen.rglob("*.png")))
    model = tmp_path / "pets.onnx"
    for suffix in (".onnx", ".bank.safetensors", ".adapt.onnx"):
        shutil.copy(planted.path.with_suffix(suffix), tmp_path)
    words = ("predict", "--model", str(model), "--json", image)
    initial = json.loads(run(*words).stdout)
    assert not (tmp_path / "pets.state").exists(), "predicting writes nothing"
    assert run("adapt", "--model", str(model), "--data", str(seen), "--steps", "8").exit_code == 0
    assert json.loads(run(*words).stdout) != initial
    export_onnx(planted.bundle, planted.backbone, model)  # folded, under the same name
    assert run(*words).exit_code == 0, "the state of the model that was here is none of its own"


def test_needs_no_torch(planted: Planted, seen: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from hgprompt_edge.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as e: code = e.code\n"
        "bad = {'torch', 'timm', 'onnx', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "sys.exit(code)"
    )
    words = ("adapt", "--model", str(planted.path), "--data", str(seen), "--steps", "2")
    command = [sys.executable, "-c", script, *words, "--state", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert "AssertionError" not in done.stderr


def test_two_at_once_one_wins(planted: Planted, seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with planted_lock(planted, state):
        result = run(
            "adapt", "--model", str(planted.path), "--state", str(state), "--data", str(seen)
        )
    assert result.exit_code == 2
    assert result.stderr == (
        f"hgedge: {state}: another `hgedge adapt` is using it (pid {os.getpid()}); "
        "wait for it or stop it\n"
    )


def planted_lock(planted: Planted, state: Path) -> object:
    from contextlib import contextmanager

    @contextmanager
    def held():  # type: ignore[no-untyped-def]
        with (
            open_history(state, planted.bank, planted.predictor.metadata) as history,
            history.exclusive(),
        ):
            yield

    return held()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_watch_serves_a_folder_until_ctrl_c(planted: Planted, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(planted.images[0]).save(folder / "a.png")
    words = ("predict", "--model", str(planted.path), "--watch", str(folder), "--json")
    command = [sys.executable, "-m", "hgprompt_edge.cli.main", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, children would ignore Ctrl-C from birth.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["image"] == str(folder / "a.png")
    Image.fromarray(planted.images[1]).save(folder / "b.png")
    assert json.loads(process.stdout.readline())["image"] == str(folder / "b.png")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_watch_ends_quietly_when_nobody_reads(planted: Planted, tmp_path: Path) -> None:
    """As under `| head -1`."""
    folder = tmp_path / "in"
    folder.mkdir()
    words = ("predict", "--model", str(planted.path), "--watch", str(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "hgprompt_edge.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    Image.fromarray(planted.images[0]).save(folder / "a.png")
    said = process.stderr.read()
    process.wait(timeout=30)
    assert process.returncode == 1
    assert said == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone")
def test_runs_on_one_core_with_half_a_gigabyte(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    script = (
        "import os, resource, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from hgprompt_edge.cli.main import app\n"
        "resource.setrlimit(resource.RLIMIT_AS, (512 * 2**20, 512 * 2**20))\n"
        "app(sys.argv[1:])"
    )
    model = ("--model", str(planted.path), "--threads", "1")
    image = str(next(seen.rglob("*.png")))
    for words in (
        ("adapt", *model, "--data", str(seen), "--steps", "2", "--state", str(tmp_path / "s")),
        ("predict", *model, image),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr


def test_help_names_what_it_moves() -> None:
    assert "mixing weights" in hgedge(Path(), "adapt", "--help").stdout
