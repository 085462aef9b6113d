"""Nothing is silent for long, nothing says that it resumes and does not."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import class_folders, photo, run, small_bank
from rich.console import Console
from rich.progress import Progress
from small_vits import make_backbone
from toys import make_bank, make_task, noise_tokens

from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.fastest import Choice, Passes
from hgprompt_edge.backbones.image_count import watch_images
from hgprompt_edge.cli.shared import console, progress
from hgprompt_edge.cli.shared.progress import Stages
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.compare.contest import Budget
from hgprompt_edge.compare.estimate import compare_passes, fit_passes, tune_passes
from hgprompt_edge.compare.run import compare
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.prompts.prompt import DEEP
from hgprompt_edge.training import neutral_prompt as start
from hgprompt_edge.training.prompt_tuning import PromptTrainer, Recipe
from hgprompt_edge.training.tune import train_from


@pytest.fixture
def stages() -> Stages:
    return Stages(Progress(console=Console(file=io.StringIO()), disable=True))


def shown(stages: Stages) -> list[tuple[str, float, float | None]]:
    return [(task.description, task.completed, task.total) for task in stages.bars.tasks]


def test_a_bar_moves_with_the_images_between_two_steps(stages: Stages) -> None:
    stages.report("weights", 0, 4)
    stages.passed(50)
    assert shown(stages) == [("weights", 0, 4)]  # nobody knows yet how many a step takes
    assert stages.bars.tasks[0].fields["images"] == "50 images"
    stages.passed(50)
    stages.report("weights", 1, 4)
    stages.passed(25)
    assert shown(stages) == [("weights", 1.25, 4)]
    stages.passed(500)
    assert shown(stages) == [("weights", 1.99, 4)]
    stages.report("weights", 4, 4)
    stages.passed(10)
    assert shown(stages) == [("weights", 4, 4), ("images", 0, None)]
    stages.report("test images", 0, 2)
    assert shown(stages)[-1] == ("test images", 0, 2)


def test_images_that_pass_before_any_stage_are_shown(stages: Stages) -> None:
    stages.passed(3)
    assert shown(stages) == [("images", 0, None)]


def test_a_terminal_sees_stages_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "err", terminal)
    monkeypatch.setattr(start, "NEUTRAL_STEPS", 2)
    backbone = make_backbone()
    with progress.working("loading [x]"):
        start.neutral_tokens(backbone, 2, DEEP, 0, report=None)
    assert "loading [x]" in stream.getvalue()
    assert re.search(r"\d+ images", stream.getvalue())


@contextmanager
def counted() -> Iterator[list[int]]:
    passed: list[int] = []
    with watch_images(passed.append):
        yield passed


def total(passes: Passes) -> int:
    return passes.chosen + passes.exact


def test_passes_in_float32_take_their_own_time() -> None:
    choice = Choice(Compute(precision="bfloat16"), images_per_second=100, exact_per_second=25)
    assert choice.seconds(Passes(chosen=600, exact=300)) == pytest.approx(2 + 4)


def test_the_estimates_are_what_passes() -> None:
    backbone = make_backbone()
    bank = make_bank(backbone, noise_tokens(4))
    task = make_task(backbone, bank.tokens[2])
    train, steps = len(task.train), 3
    with counted() as passed:
        HGPrompt(steps=steps, cache=False).fit(bank, backbone, task)
    # What passes back is one pass here and two in the estimate.
    estimate = total(fit_passes(task, bank, steps)) - steps * train
    assert sum(passed) == pytest.approx(estimate, rel=0.25)

    recipe = Recipe(epochs=4, batch_size=75, keep_last=True)
    with counted() as passed:
        train_from(bank.tokens[0], backbone, task, recipe)
    row = 2 * (train + len(task.validation)) + len(task.test)
    assert sum(passed) == pytest.approx(total(tune_passes(task, 4)) - row - 4 * train, rel=0.25)

    with pytest.MonkeyPatch.context() as patch, counted() as passed:
        patch.setattr("hgprompt_edge.training.neutral_prompt.NEUTRAL_STEPS", 8)
        start.neutral_tokens(backbone, 3, DEEP, 1)
        estimate = total(tune_passes(task, 4, from_scratch=True)) - total(tune_passes(task, 4))
    assert 0.5 * estimate < sum(passed) < 1.2 * estimate

    budget = Budget(steps=2, evaluations=9, spot_steps=2, tune_steps=3, batch_size=75)
    with pytest.MonkeyPatch.context() as patch, counted() as passed:
        patch.setattr("hgprompt_edge.training.neutral_prompt.NEUTRAL_STEPS", 2)
        compare(bank, backbone, task, budget=budget, cache=False)
        estimate = total(compare_passes(task, bank, tuple(METHODS), budget))
    assert 0.5 * estimate < sum(passed) < 1.2 * estimate


def test_an_interrupted_neutral_start_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(start, "NEUTRAL_STEPS", 9)
    monkeypatch.setattr(start, "STATE_STEPS", 4)
    backbone = make_backbone()
    steps: list[int] = []

    def interrupt(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    monkeypatch.setenv("HGEDGE_CACHE", str(tmp_path / "a"))
    expected = start.neutral_tokens(backbone, 2, DEEP, 0)
    monkeypatch.setenv("HGEDGE_CACHE", str(tmp_path / "b"))
    with pytest.raises(KeyboardInterrupt):
        start.neutral_tokens(backbone, 2, DEEP, 0, report=interrupt)
    found = start.neutral_tokens(backbone, 2, DEEP, 0, report=lambda done, _: steps.append(done))
    assert steps == [5, 6, 7, 8, 9]
    assert torch.equal(found, expected)
    assert [path.suffix for path in (tmp_path / "b" / "starts").iterdir()] == [".safetensors"]


def test_an_interrupted_comparison_goes_on_inside_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = make_backbone()
    bank = make_bank(backbone, noise_tokens(2))
    task = make_task(backbone, bank.tokens[1])
    budget = Budget(steps=1, tune_steps=6, batch_size=75)
    epoch = PromptTrainer._train_epoch
    trained: list[int] = []

    def interrupt(trainer: PromptTrainer) -> float:
        trained.append(trainer.epoch)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return epoch(trainer)

    monkeypatch.setattr(PromptTrainer, "_train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare(bank, backbone, task, methods=("tune",), budget=budget)
    _, (resumed,) = compare(bank, backbone, task, methods=("tune",), budget=budget)
    assert trained[:4] == [0, 1, 2, 2]
    _, (whole,) = compare(bank, backbone, task, methods=("tune",), budget=budget, cache=False)
    assert resumed.val_accuracy == whole.val_accuracy
    np.testing.assert_array_equal(resumed.correct, whole.correct)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "broken", "resumes"),
    [
        ("fit --data mine --backbone tiny", "fit.estimator.HGPrompt.fit", True),
        ("compare --data mine --backbone tiny", "compare.run.compare", True),
        ("predict --model m.onnx mine", "runtime.predictor.Predictor.__init__", False),
        ("bench m.onnx", "runtime.bench.bench", False),
        ("verify m.onnx", "runtime.verify.verify_model", False),
    ],
)
def test_only_what_resumes_says_so(
    words: str,
    broken: str,
    resumes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "mine", 5)
    monkeypatch.setattr(f"hgprompt_edge.{broken}", interrupted)
    monkeypatch.setattr("hgprompt_edge.compare.estimate.compare_passes", lambda *_: Passes(1))
    result = run(*words.split())
    assert result.exit_code == 130
    further = "; the same command goes on from here" if resumes else ""
    assert result.stderr.splitlines()[-1] == f"hgedge: interrupted{further}"


STUCK = """
import sys, time
from hgprompt_edge.cli.main import main
from hgprompt_edge.fit.estimator import HGPrompt

def fit(*_, **__):
    print("fitting", flush=True)
    time.sleep(60)

HGPrompt.fit = fit
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="there, SIGTERM ends a process at once")
def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    """As systemd, docker and batch systems send it."""
    data, bank = class_folders(tmp_path / "mine"), small_bank(tmp_path / "bank")
    words = ["fit", "--data", str(data), "--sources", str(bank)]
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HGEDGE_CACHE": str(tmp_path / "cache")},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "fitting\n"
        child.terminate()
        _, messages = child.communicate()
    assert child.returncode == 130
    end = "hgedge: interrupted; the same command goes on from here"
    assert messages.splitlines()[-1] == end


def test_fit_says_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"fit --data {class_folders(tmp_path / 'mine')} --sources {small_bank(tmp_path / 'b')}"
    photo(tmp_path / "a.jpg", 0, 0)
    result = run(*words.split(), "--steps", "0")
    assert result.exit_code == 0, result.stderr
    assert "training images/s; this takes less than a minute" in result.stderr
    assert console.duration(300) == "this takes about 5 min, less what an earlier run has computed"
    assert console.duration(3 * 3600 + 61).startswith("this takes about 3 h 1 min")
