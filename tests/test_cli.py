"""The command line as a user meets it: the main job letter for letter."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from inspect import signature
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from command_line import class_folders, hgedge, pets_archive, photo, run, small_bank
from typer.main import get_command

from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.cli.main import app
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.data.known_tasks import BUILT_IN
from hgprompt_edge.training.tune import tuning_recipe

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
    assert len(rows) == 2 * 42
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


HOLDS = "hgprompt_edge.fit.choice.Proof.holds"


def test_compare_and_tune(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgprompt_edge.training.neutral_prompt.NEUTRAL_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGEDGE_CACHE", str(workplace / "cache"))
    data = class_folders(tmp_path / "mine", 20)
    images = f"--sources {workplace / 'prompts'} --data {data}".split()
    methods = "none,uniform,soup,hgprompt,tune"
    compared = run("compare", *images, "--methods", methods, "--tune-steps", "1")
    assert compared.exit_code == 0, compared.stderr
    assert "kept by fit, then tuned" in compared.stdout
    document = json.loads((tmp_path / "mine.compare.json").read_text())
    assert [row["method"] for row in document["rows"]] == methods.split(",")
    assert (tmp_path / "mine.compare.png").read_bytes().startswith(b"\x89PNG")
    assert run("fit", *images, "--steps", "0").exit_code == 0
    tuned = run("tune", "--data", str(data), "--steps", "1", "--batch-size", "16", "--json")
    assert tuned.exit_code == 0, tuned.stderr
    result = json.loads(tuned.stdout)
    assert [row["method"] for row in result["table"]][-1] == "tuned"
    assert sorted(path.name for path in tmp_path.glob("*.hgbundle")) == [
        "mine.hgbundle",
        "mine.tuned.hgbundle",
    ]
    assert not list(tmp_path.glob(".*.tuning"))
    exported = run("export", "mine.tuned.hgbundle", "--output", "mine.onnx")
    assert exported.exit_code == 0, exported.stderr
    prepare(tmp_path / "mine.hgbundle")
    words = ("tune", "mine.hgbundle", "--data", str(data), "--steps", "1", "--batch-size", "16")
    for holds in (False, True):
        monkeypatch.setattr(HOLDS, holds)
        again = run(*words)
        assert again.exit_code == 0, again.stderr
        table, *_ = again.stdout.partition("kept: ")
        titles = [line[:12].strip() for line in table.splitlines()]
        assert titles == ["", *list(ROW_TITLES.values())[:4], "tuned"]
        assert "held-out images" in table
        assert ("kept: tuned, " in again.stdout) == holds
        doubt = "10 held-out images do not show that the tuned prompt is better"
        assert (doubt in again.stdout) != holds
        assert "next: hgedge export mine.tuned.hgbundle" in again.stdout
        left_out = "before: the condition prompts; run `hgedge condition mine.tuned.hg"
        assert (left_out in again.stderr) == holds
    monkeypatch.setattr(HOLDS, False)
    further = run("tune", "mine.tuned.hgbundle", *words[2:])
    assert "as before: 10 held-out images do not show that the one trained" in further.stderr
    assert "kept: tuned, " in further.stdout


def prepare(path: Path) -> None:
    """Give a bundle a condition prompt."""
    fitted = read_bundle(path)
    assert fitted.source_tokens is not None
    tokens = fitted.source_tokens[:1]
    write_bundle(path, replace(fitted, conditions=({"name": "dark"},), condition_tokens=tokens))


def test_fit_and_tune_in_one_command_goes_on_after_an_interruption(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted() -> Iterator[Callable[[str, int, int], None]]:
        def report(stage: str, done: int, _: int) -> None:
            if (stage, done) == ("epochs", 6):
                raise KeyboardInterrupt

        yield report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGEDGE_CACHE", str(workplace / "cache"))
    short = partial(tuning_recipe, steps=7)
    monkeypatch.setattr("hgprompt_edge.training.tune.tuning_recipe", short)
    data = class_folders(tmp_path / "mine", 12)
    words = f"fit --tune --sources {workplace / 'prompts'} --data {data} --steps 0 --json".split()
    words.append("--no-keep-sources")
    # Nothing is in use yet, so no proof is asked for.
    monkeypatch.setattr("hgprompt_edge.fit.choice.Proof.pays", True)
    monkeypatch.setattr(HOLDS, False)
    with monkeypatch.context() as patch:
        patch.setattr("hgprompt_edge.cli.fit.command.progress_bar", interrupted)
        assert run(*words).exit_code == 130
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".mine.tuning"]
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "resuming from .mine.tuning" in result.stderr
    document = json.loads(result.stdout)
    assert document["table"][-1]["method"] == "tuned"
    assert document["tuning"]["epochs"] == 7
    assert document["tuning"]["kept"]
    assert document["choice"] == "tuned"
    bundle = read_bundle(tmp_path / "mine.hgbundle")
    assert bundle.source_tokens is None
    assert [vars(row) for row in bundle.table] == document["table"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.hgbundle", "mine.png"}


def test_defaults_are_those_of_the_estimator() -> None:
    from hgprompt_edge import HGPrompt
    from hgprompt_edge.cli.fit.command import fit
    from hgprompt_edge.cli.tune import tune

    recipe = signature(tuning_recipe).parameters
    for name in ("steps", "batch_size", "learning_rate"):
        assert signature(tune).parameters[name].default == recipe[name].default
    estimator, command = signature(HGPrompt).parameters, signature(fit).parameters
    for name in ("lam", "steps", "folded", "head", "seed", "keep_sources"):
        assert getattr(command[name].default, "value", command[name].default) == (
            estimator[name].default
        )


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


def test_the_help_of_compare_names_every_method() -> None:
    (methods,) = (p for p in get_command(app).commands["compare"].params if p.name == "methods")
    named = methods.help.partition(": ")[2].rstrip(".").split(", ")
    assert named == list(METHODS)
