"""The command line as a user meets it: the main job letter for letter."""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from command_line import class_folders, hgedge, pets_archive, photo, run, small_bank

from hgprompt_edge.data.known_tasks import BUILT_IN

Command = CompletedProcess[str]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ./prompts and ./data, as in the README."""
    folder = tmp_path_factory.mktemp("workplace")
    small_bank(folder / "prompts")
    pets_archive(folder / "data")
    photo(folder / "photo.jpg", 0, 999)
    return folder


@pytest.fixture(scope="module")
def commands(workplace: Path) -> tuple[Command, Command]:
    """What the first two of the three commands came to; they leave `pets.onnx` in the folder."""
    fit = hgedge(workplace, *"fit --sources ./prompts --task pets".split())
    assert fit.returncode == 0, fit.stderr
    export = hgedge(workplace, *"export --format onnx".split())
    assert export.returncode == 0, export.stderr
    return fit, export


def test_the_three_commands_letter_for_letter(
    workplace: Path, commands: tuple[Command, Command]
) -> None:
    fit, export = commands
    assert "kept: " in fit.stdout
    assert "next: hgedge export" in fit.stdout
    assert (workplace / "pets.hgbundle").exists()
    assert (workplace / "pets.png").read_bytes().startswith(b"\x89PNG")
    assert "equal to PyTorch" in export.stdout
    assert "pets.hgbundle, the newest bundle here" in export.stderr

    blocked = "raise ImportError('not on a device')"
    for name in ("torch", "timm", "onnx", "scipy", "sklearn", "matplotlib", "torchvision"):
        (workplace / "nothing" / name).mkdir(parents=True, exist_ok=True)
        (workplace / "nothing" / name / "__init__.py").write_text(blocked)
    predict = hgedge(
        workplace,
        *"predict --model pets.onnx photo.jpg --json".split(),
        PYTHONPATH=str(workplace / "nothing"),
    )
    assert predict.returncode == 0, predict.stderr
    (answer,) = json.loads(predict.stdout)
    assert answer["image"] == "photo.jpg"
    assert answer["classes"][0]["label"] == "Abyssinian"
    assert 0 < answer["classes"][0]["probability"] <= 1


def test_fit_prints_one_json_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bank, data = small_bank(tmp_path / "bank"), class_folders(tmp_path / "mine")
    words = f"fit --sources {bank} --data {data} --steps 3 --json"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["task"] == "mine"
    assert [row["method"] for row in document["table"]] == [
        "none",
        "best_source",
        "uniform",
        "learned",
    ]
    assert sum(document["learned_weights"].values()) == pytest.approx(1)
    assert {row["folded"] for row in document["more_prompts"]} <= {2, 3}
    by_layer = document["learned_weights_by_layer"]
    np.testing.assert_allclose(np.sum(list(by_layer.values()), axis=0), 1, rtol=1e-6)
    shares = {name: np.mean(layers) for name, layers in by_layer.items()}
    assert shares == pytest.approx(document["learned_weights"])
    shown = run(*words.replace("--json", "--verbose").split())
    assert shown.exit_code == 0, shown.stderr
    assert "by layer" in shown.stdout
    assert f"from near {document['objective']['best_source']}, 3 steps" in shown.stdout
    first = (tmp_path / "mine.hgbundle").read_bytes()
    assert run(*words.split()).exit_code == 0
    assert (tmp_path / "mine.hgbundle").read_bytes() == first


@pytest.mark.usefixtures("commands")
def test_predict_as_table_and_csv(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    table = run(*"predict --model pets.onnx photo.jpg --top 2".split())
    assert table.exit_code == 0
    assert "photo.jpg" in table.stdout
    result = run(*"predict --model pets.onnx data/oxford-iiit-pet/images --csv --top 2".split())
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 2 * 36
    assert {row["rank"] for row in rows} == {"1", "2"}
    (workplace / "broken.jpg").write_bytes(b"no image")
    broken = run(*"predict --model pets.onnx photo.jpg broken.jpg".split())
    assert broken.exit_code == 2
    assert "photo.jpg" in broken.stdout
    assert broken.stderr.splitlines() == [
        "broken.jpg: not a readable image (unknown format)",
        "hgedge: 1 of 2 images cannot be read; the others were classified",
    ]


def test_prompt_show_and_cache(tmp_path: Path) -> None:
    shown = run("prompt", "show", "tiny")
    assert shown.exit_code == 0
    assert "gtsrb" in shown.stdout
    facts = json.loads(run("prompt", "show", "tiny", "--json").stdout)
    assert all(fact["init_seed"] == 0 for fact in facts)
    assert json.loads(run("cache", "show", "--json").stdout)["files"] == 0
    assert json.loads(run("cache", "clear", "--json").stdout)["files"] == 0
    assert json.loads(run("doctor", "--json").stdout)["packages"]["numpy"]


def test_doctor_says_what_is_missing_for_what_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        if name in ("cmaes", "huggingface_hub", "timm", "h5py", "nncf"):
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr("hgprompt_edge.cli.doctor.version", missing)
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-4:] == [
        "cmaes: pip install 'hgprompt-edge'",
        "timm, huggingface_hub: pip install 'hgprompt-edge[server]'",
        "h5py: pip install 'h5py'",
        "nncf: pip install 'hgprompt-edge[int8]'",
    ]
    assert "--task camelyon" in result.stdout
    assert json.loads(run("doctor", "--json").stdout)["packages"]["h5py"] is None


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgprompt_edge.fit.estimator.HGPrompt.fit", interrupt)
    data = str(class_folders(tmp_path / "mine"))
    result = run("fit", "--backbone", "tiny", "--data", data)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert not list(tmp_path.glob("*.hgbundle"))


def test_a_bug_shows_its_traceback_and_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hgprompt_edge.prompts.bank.read_bank", broken)
    monkeypatch.chdir(tmp_path)
    result = run("fit", "--sources", "tiny", "--task", "digits")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "this is a bug" in result.stderr


def test_all_known_tasks_are_listed() -> None:
    listed = json.loads(run("tasks", "--json").stdout)
    assert {row["task"] for row in listed} == BUILT_IN
    shown = run("tasks").stdout
    assert all(f"{row['task']} " in shown for row in listed)
