"""A backbone without prompts: fit, export, predict and adapt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import PETS, class_folders, photo, run
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from test_cli_condition import one_epoch
from toys import shorten_start

from hgprompt_edge import read_bundle
from hgprompt_edge.adapt.guard.unlabelled import judge_bias
from hgprompt_edge.adapt.head_learner import HeadLearner
from hgprompt_edge.adapt.optimizer import Settings, start_at
from hgprompt_edge.artifacts.device_bank import read_bank
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.training.condition_trainer import ConditionRecipe

FOREIGN = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.onnx` for devices, on `tiny` without its prompts."""
    folder = tmp_path_factory.mktemp("adaptable")
    data = class_folders(folder / "mine", 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fitted = run("fit", "--backbone", "tiny", "--sources", "none", "--data", str(data))
        assert fitted.exit_code == 0, fitted.stderr
        exported = run("export", "--adapt")
        assert exported.exit_code == 0, exported.stderr
    return folder


def test_fit_export_and_predict_on_a_backbone_without_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(model.state_dict(), "vit.safetensors")
    data = class_folders(tmp_path / "mine", 8)
    options = f"--backbone {FOREIGN} --checkpoint vit.safetensors --image-size 32"
    fitted = run(*f"fit {options} --data {data} --json".split())
    assert fitted.exit_code == 0, fitted.stderr
    assert f"no prompts for {FOREIGN} at 32 px: fit learns the best head on frozen features" in (
        fitted.stderr
    )
    document = json.loads(fitted.stdout)
    assert document["choice"] == "none"
    assert document["figure"] is None
    assert [row["method"] for row in document["table"]] == ["none"]
    exported = run("export", "--json")
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["ok"]
    answer = run("predict", "--model", "mine.onnx", str(data / PETS[0] / "0.jpg"), "--json")
    assert json.loads(answer.stdout)[0]["classes"][0]["label"] in PETS


def test_a_model_without_prompts_comes_with_its_head_alone(adaptable: Path) -> None:
    bank = read_bank(adaptable / "mine.bank.safetensors")
    assert bank.mixer is None
    assert bank.inputs(bank.initial) == {}
    assert bank.clean is not None
    assert not (adaptable / "mine.adapt.onnx").exists()
    bundle = read_bundle(adaptable / "mine.hgbundle")
    predictor = Predictor(adaptable / "mine.onnx", state=None)
    np.testing.assert_allclose(
        predictor.logits(bundle.probe_images), bundle.probe_logits, atol=1e-3, rtol=1e-3
    )


def relabelled(folder: Path) -> Path:
    """Photos whose classes have moved on by one: the shipped head is wrong about all of them."""
    for hue in range(3):
        for index in range(12):
            photo(folder / PETS[(hue + 1) % 3] / f"{index}.jpg", hue, 100 + index)
    return folder


def test_labels_move_the_weights_of_the_head(
    adaptable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adaptable)
    data = relabelled(tmp_path / "seen")
    words = f"adapt --model mine.onnx --data {data} --head weights --state {tmp_path / 'state'}"
    result = run(*words.split(), "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["taken"]
    assert document["accuracy_before"] < 0.2
    assert document["accuracy_after"] > 0.9
    state = str(tmp_path / "state")
    asked = f"predict --model mine.onnx --state {state} {data / PETS[1] / '0.jpg'} --json"
    answer = json.loads(run(*asked.split()).stdout)
    assert answer[0]["classes"][0]["label"] == PETS[1]


def test_bias_is_what_moves_by_default_and_the_guard_may_refuse(
    adaptable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adaptable)
    data = class_folders(tmp_path / "same", 12)  # nothing has changed, so nothing is taken over
    result = run("adapt", "--model", "mine.onnx", "--data", str(data), "--state", "kept")
    assert result.exit_code == 1, result.stderr
    assert "the weights stay as they were, version 1" in result.stdout


def test_images_of_one_class_move_nothing_without_labels(
    adaptable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adaptable)
    for index in range(60):
        photo(tmp_path / "one" / f"{index}.jpg", 0, 200 + index)
    words = f"adapt --model mine.onnx --data {tmp_path / 'one'} --unlabelled --state one"
    result = run(*words.split())
    assert result.exit_code == 1, result.stderr
    assert "of 3 classes in effect" in " ".join(result.stdout.split())
    assert "version 1" in result.stdout


class Given:
    """Stands in for a predictor: an image is its feature."""

    def head_inputs(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float32) / 64


def test_the_prior_is_that_of_a_penalised_logistic_regression(adaptable: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 2, 2, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, 60)
    zeros = Head(np.zeros((3, 12), np.float32), np.zeros(3, np.float32))
    bank = read_bank(adaptable / "mine.bank.safetensors")
    learner = HeadLearner(Given(), bank, Settings(head="weights", head_decay=0.1, steps=3000))
    learner.head = zeros
    start = start_at(np.ones(1), zeros)
    one_hot = np.eye(3, dtype=np.float32)[labels]
    found = learner.learn(images, one_hot, start).point.head
    # scikit-learn leaves the intercept free of the penalty; a constant feature stands in for it.
    features = np.column_stack([Given().head_inputs(images), np.ones(60)])
    reference = LogisticRegression(C=1 / (0.1 * 60), fit_intercept=False, tol=1e-8, max_iter=9999)
    expected = reference.fit(features, labels).coef_
    loss = [
        -log_softmax((features @ w.T).astype(np.float32))[np.arange(60), labels].mean()
        + 0.05 * (w**2).sum()
        for w in (np.column_stack([found.weight, found.bias]), expected)
    ]
    assert loss[1] <= loss[0] < loss[1] * 1.01  # the descent settles near the minimum


def test_the_bias_follows_a_large_shift_of_images_of_all_classes_only() -> None:
    even = np.repeat(np.eye(4, dtype=np.float32) * 20, 5, axis=0)
    assert judge_bias(even, 0.5) is None
    refused = {
        "2.0 of 4 classes": (even[:10], 0.5),
        "0.20 away from those of clean images": (even, 0.2),
    }
    for words, (logits, distance) in refused.items():
        verdict = judge_bias(logits, distance)
        assert verdict is not None
        assert not verdict.taken
        assert words in verdict.reason


def test_condition_prompts_and_tune_start_from_scratch_without_prompts(
    adaptable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_start(monkeypatch)
    monkeypatch.setattr(ConditionRecipe, "__init__", one_epoch(ConditionRecipe.__init__))
    monkeypatch.chdir(tmp_path)
    shutil.copy(adaptable / "mine.hgbundle", tmp_path)
    data = adaptable / "mine"
    conditioned = run(*f"condition --data {data} --conditions dark --accept-unproven".split())
    assert conditioned.exit_code == 0, conditioned.stderr
    assert run("export", "--adapt").exit_code == 0
    bank = read_bank(tmp_path / "mine.conditions.bank.safetensors")
    assert bank.names == ("no prompt", "dark")
    assert bank.mixer is not None
    assert (tmp_path / "mine.conditions.adapt.onnx").exists()
    shutil.copy(adaptable / "mine.hgbundle", tmp_path)
    tuned = run(*f"tune mine.hgbundle --data {data} --steps 1 --batch-size 16 --json".split())
    assert tuned.exit_code == 0, tuned.stderr
    rows = json.loads(tuned.stdout)["table"]
    assert [row["method"] for row in rows] == ["none", "tuned"]
