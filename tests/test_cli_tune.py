"""`hgedge compare` and `hgedge tune`, and `fit --tune`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
from command_line import class_folders, run
from test_cli import commands as commands
from test_cli import workplace as workplace
from toys import shorten_start
from typer.main import get_command

from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.cli.main import app
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.compare.contest import Budget
from hgprompt_edge.training.tune import tuning_recipe

HOLDS = "hgprompt_edge.fit.choice.Proof.holds"


def test_compare_and_tune(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_start(monkeypatch)
    monkeypatch.setattr("hgprompt_edge.compare.contest.Budget", partial(Budget, steps=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGEDGE_CACHE", str(workplace / "cache"))
    data = class_folders(tmp_path / "mine", 10)
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
        doubt = "5 held-out images do not show that the tuned prompt is better"
        assert (doubt in again.stdout) != holds
        assert "next: hgedge export mine.tuned.hgbundle" in again.stdout
        left_out = "before: the condition prompts; run `hgedge condition mine.tuned.hg"
        assert (left_out in again.stderr) == holds
    monkeypatch.setattr(HOLDS, False)
    further = run("tune", "mine.tuned.hgbundle", *words[2:])
    assert "as before: 5 held-out images do not show that the one trained" in further.stderr
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


def test_the_help_of_compare_names_every_method() -> None:
    (methods,) = (p for p in get_command(app).commands["compare"].params if p.name == "methods")
    named = methods.help.partition(": ")[2].rstrip(".").split(", ")
    assert named == list(METHODS)
