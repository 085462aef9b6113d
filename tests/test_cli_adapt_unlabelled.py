"""`hgedge adapt --unlabelled`, and heads that move."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image
from planted import Planted, known_statistics
from small_vits import token_features
from test_cli_adapt import adapt as adapt
from test_cli_adapt import planted as planted
from test_cli_adapt import seen as seen

from hgprompt_edge.adapt.images import read_unlabelled
from hgprompt_edge.artifacts.bank_entries import bank_tokens
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.maths.feature_statistics import measure_statistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.learned import open_history, state_folder
from hgprompt_edge.runtime.predictor import Predictor


def test_forwards_only_and_without_labels(planted: Planted, seen: Path, tmp_path: Path) -> None:
    code, found = adapt(
        planted, tmp_path / "a", "--data", str(seen), "--method", "cma", "--steps", "6"
    )
    assert (code, found["version"]["method"]) == (0, "labelled, cma")
    code, found = adapt(
        planted, tmp_path / "b", "--data", str(seen), "--unlabelled", "--steps", "3"
    )
    assert (code, found["taken"], found["steps"]) == (1, False, 0)
    assert "does not know the statistics of clean images" in str(found["reason"])


def test_the_initial_weights_come_back_with_the_light(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    """Images of the very statistics that the bank knows of clean ones, after something else."""
    images = read_unlabelled(seen, planted.predictor.preprocessing).pixels
    mixed = np.tensordot(planted.initial.mix, bank_tokens(planted.bundle)[1], 1)
    features = token_features(replace(planted.bundle, prompt=mixed), planted.backbone, images)
    known = replace(
        planted.bundle,
        clean=known_statistics(features.mean(0), features.var(0), len(planted.bundle.classes)),
    )
    model = tmp_path / "known.onnx"
    export_onnx(known, planted.backbone, model, runtime_weights=True, adapt=True)
    predictor = Predictor(model)
    assert predictor.bank is not None
    corner = np.eye(len(predictor.bank.names), dtype=np.float32)[-1]
    state = open_history(state_folder(model), predictor.bank, predictor.metadata)
    with state as history, history.exclusive():
        history.commit(corner, method="labelled", images=8, figures={})
    words = ("adapt", "--model", str(model), "--data", str(seen), "--unlabelled")
    first, second = run(*words), run(*words)
    assert first.exit_code == 0, first.output
    assert "back to the initial weights" in first.stdout
    assert "version 3 is in force" in first.stdout
    history = json.loads(run("state", "history", *words[1:3], "--json").stdout)
    assert history[-1]["weights"] == history[0]["weights"] != history[1]["weights"]
    assert [version["method"] for version in history] == ["initial", "labelled", "return"]
    assert second.exit_code == 1
    assert "look as clean ones do" in second.stdout
    assert "--head bias" not in second.stdout, "nothing was learned"


def test_a_refusal_without_labels_names_the_bias(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    features = token_features(planted.bundle, planted.backbone, planted.images)
    far = features.mean(0) + 5 * features.std(0)
    known = replace(
        planted.bundle, clean=known_statistics(far, features.var(0), len(planted.bundle.classes))
    )
    model = tmp_path / "known.onnx"
    export_onnx(known, planted.backbone, model, runtime_weights=True, adapt=True)
    words = ("adapt", "--model", str(model), "--data", str(seen), "--unlabelled", "--steps", "1")
    result = run(*words)
    assert result.exit_code == 1, result.output
    assert "little nearer" in result.stdout
    assert "try again with --head bias" in result.stdout
    assert "try again" not in run(*words, "--head", "bias").stdout


@pytest.fixture(scope="module")
def knowing(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Model that knows clean images of each class, and what it predicts for each of them."""
    folder = tmp_path_factory.mktemp("knowing")
    for index, image in enumerate(planted.images):  # as they are read: not cropped to the pixel
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    images = read_unlabelled(folder, planted.predictor.preprocessing).pixels
    mixed = np.tensordot(planted.initial.mix, bank_tokens(planted.bundle)[1], 1)
    at_initial = replace(planted.bundle, prompt=mixed)
    features = token_features(at_initial, planted.backbone, images)
    sure = Head(30 * planted.bundle.head.weight, 30 * planted.bundle.head.bias)
    found = sure.logits(features).argmax(1)
    known = replace(
        planted.bundle,
        head=sure,
        probe_logits=30 * planted.bundle.probe_logits,
        clean=measure_statistics(features, found, len(planted.bundle.classes)),
    )
    model = folder / "known.onnx"
    export_onnx(known, planted.backbone, model, runtime_weights=True, adapt=True)
    return model, found


def test_clean_images_of_one_class_move_nothing_without_labels(
    planted: Planted, knowing: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    model, found = knowing
    counts = np.bincount(found)
    rare = int(np.where(counts > 0, counts, len(found)).argmin())
    own, folder = planted.images[found == rare], tmp_path / "one"
    folder.mkdir()
    for index in range(max(60, len(own))):
        Image.fromarray(own[index % len(own)]).save(folder / f"{index}.png")
    name = planted.predictor.classes[rare]
    words = ("adapt", "--model", str(model), "--data", str(folder), "--unlabelled", "--steps", "2")
    words = (*words, "--state", str(tmp_path / "state"))
    result = run(*words)
    assert result.exit_code == 1, result.output
    said = " ".join(result.stdout.split())
    assert "of 4 classes in effect" in said
    assert "name the classes that they show with --expect-classes" in said
    assert "the weights stay as they were, version 1" in said
    expected = run(*words, "--expect-classes", name)
    assert expected.exit_code == 1
    said = " ".join(expected.stdout.split())
    # Few clean images of the one class are known here, and the sentence says so.
    assert "clean images of the classes that are expected, and it takes more than" in said


def test_expected_classes_are_those_that_there_are_labels_of(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    names = planted.predictor.classes
    for name in names[1:]:
        shutil.rmtree(seen / name, ignore_errors=True)
    shutil.copytree(seen / names[0], seen / names[1])
    _, found = adapt(planted, tmp_path / "s", "--data", str(seen), "--steps", "1")
    assert found["steps"] > 0, "images of half of the classes"


def test_the_bias_moves_on_request(planted: Planted, seen: Path, tmp_path: Path) -> None:
    state, initial = tmp_path / "state", planted.bank.head.bias
    assert adapt(planted, state, "--data", str(seen), "--head", "bias", "--steps", "2")[0] == 0
    with open_history(state, planted.bank, planted.predictor.metadata) as history:
        *_, latest = history.versions()
    assert latest.head_bias is not None
    assert latest.head_weight is None
    assert not np.array_equal(latest.head_bias, initial)


def test_a_head_that_moved_stays_when_the_mix_moves_on(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    """The guard judges new weights with the head in force, so that head is what is served."""
    state = tmp_path / "state"
    moved = planted.bank.head.bias + np.linspace(0, 0.1, len(planted.bank.head.bias), dtype="f")
    with open_history(state, planted.bank, planted.predictor.metadata) as history:
        history.commit(
            planted.bank.initial, method="labelled", images=8, figures={}, head_bias=moved
        )
    assert adapt(planted, state, "--data", str(seen), "--steps", "12")[0] == 0
    with open_history(state, planted.bank, planted.predictor.metadata) as history:
        *_, latest = history.versions()
    assert latest.weights[planted.bank.names.index("dark")] > 0.5
    np.testing.assert_array_equal(latest.head_bias, moved)
