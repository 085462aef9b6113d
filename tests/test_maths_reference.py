"""How foreign an image looks: distances of features, held against their definition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command_line import class_folders, run, small_bank
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_vits import make_backbone
from test_export_folded import of

from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.maths.reference import (
    SHRINKAGE,
    Reference,
    fit_reference,
)
from hgprompt_edge.maths.reference_file import pack_reference, unpack_reference
from hgprompt_edge.runtime.predictor import Predictor

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def clusters(
    count: int, width: int, classes: int = 4, seed: int = 0, spread: float = 1.0
) -> tuple[Floats, Integers]:
    """Classes at a distance from each other, all with one covariance that is no sphere."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(classes, width)) * 1.5
    labels = rng.integers(0, classes, count)
    scales = np.linspace(0.2, 1.5, width)
    x = 3 + means[labels] + spread * scales * rng.normal(size=(count, width))
    return x.astype(np.float32), labels


def fitted(features: Floats, labels: Integers, classes: int = 4) -> Reference:
    found = fit_reference(features, labels, classes)
    assert found is not None
    return found


def by_definition(features: Floats, labels: Integers, seen: Floats) -> npt.NDArray[np.float64]:
    """The score with dense covariances, in features of full rank."""

    def scaled(x: Floats) -> npt.NDArray[np.float64]:
        return x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)

    x, z = scaled(features), scaled(seen)
    centre = x.mean(0)
    means = np.stack([x[labels == label].mean(0) for label in np.unique(labels)])
    residuals = x - means[labels]

    def distances(rows: npt.NDArray[np.float64], to: npt.NDArray[np.float64]) -> Floats:
        covariance = rows.T @ rows / len(rows)
        iso = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * iso)
        return np.stack([np.einsum("ij,jk,ik->i", z - m, inverse, z - m) for m in to], 1)

    each, total = distances(residuals, means), distances(x - centre, centre[None])[:, 0]
    return 2 * each.min(1) - total - each.mean(1)


def auroc(own: Floats, foreign: Floats) -> float:
    return float((foreign[:, None] > own[None]).mean())


def test_the_score_is_the_one_of_its_definition() -> None:
    features, labels = clusters(300, 20)
    seen, _ = clusters(50, 20, seed=1)
    found = fitted(features, labels).see(seen).scores
    # The components are kept in 16 bits.
    np.testing.assert_allclose(found, by_definition(features, labels, seen), rtol=0.02, atol=0.2)


@settings(max_examples=10)
@given(st.floats(1e-3, 1e3))
def test_the_scale_of_features_changes_nothing(factor: float) -> None:
    features, labels = clusters(120, 12)
    seen, _ = clusters(20, 12, seed=1)
    plain = fitted(features, labels).see(seen).values
    scaled = fitted(features * np.float32(factor), labels).see(seen * np.float32(factor)).values
    np.testing.assert_allclose(scaled, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", [16, 200])
def test_foreign_images_and_unseen_classes_score_higher(width: int) -> None:
    """Also with fewer images than features."""
    features, labels = clusters(150, width, classes=6)
    known = labels < 4
    reference = fitted(features[known], labels[known], 6)
    own, own_labels = clusters(200, width, classes=6, seed=1)
    foreign = np.random.default_rng(2).normal(size=(200, width)).astype(np.float32) * 3
    scores = reference.see(own).scores
    assert auroc(scores[own_labels < 4], reference.see(foreign).scores) > 0.95
    assert auroc(scores[own_labels < 4], scores[own_labels >= 4]) > 0.9


def test_own_images_are_called_foreign_as_often_as_was_said() -> None:
    shares = []
    for seed in range(20):
        features, labels = clusters(200, 30, seed=seed)
        own, _ = clusters(400, 30, seed=1000 + seed)
        reference = fitted(features, labels)
        shares.append((reference.share_beyond(reference.see(own).scores) <= 0.05).mean())
    assert 0.03 < np.mean(shares) < 0.065


def test_shares_are_conformal_counts() -> None:
    features, labels = clusters(100, 10)
    reference = fitted(features, labels)
    held_out = reference.held_out.scores
    assert reference.share_beyond(np.array([held_out.max() + 1], np.float32))[0] == 1 / 101
    assert reference.share_beyond(np.array([held_out.min()], np.float32))[0] == 1


def test_a_class_without_images_is_nobodys_nearest() -> None:
    features, labels = clusters(120, 12, classes=3)
    reference = fitted(features, labels, 5)
    assert set(reference.see(features).nearest) <= {0, 1, 2}
    assert (reference.see(features).nearest == labels).mean() > 0.9


def test_too_few_images_give_no_reference() -> None:
    features, labels = clusters(29, 12)
    assert fit_reference(features, labels, 4) is None
    many, _ = clusters(40, 12)
    assert fit_reference(many, np.arange(40), 40) is None  # no class has two


def test_a_reference_comes_back_from_text() -> None:
    features, labels = clusters(80, 12)
    reference = fitted(features, labels, 5)
    text = pack_reference(reference)
    found = unpack_reference(text, 5, 12)
    assert found is not None
    np.testing.assert_array_equal(found.see(features).values, reference.see(features).values)
    np.testing.assert_array_equal(found.held_out.values, reference.held_out.values)
    for classes, width, damaged in ((4, 12, text), (5, 13, text), (5, 12, text[: len(text) // 2])):
        with pytest.raises(ValueError, match="reference"):
            unpack_reference(damaged, classes, width)


def test_copies_are_held_out_together() -> None:
    """Else a held-out copy looks as near as no new image does."""
    features, labels = clusters(60, 32)
    rng = np.random.default_rng(0)
    copies = np.concatenate([features, features + 0.01 * rng.normal(size=features.shape)])
    both, groups = np.tile(labels, 2), np.tile(np.arange(len(labels)), 2)
    new = clusters(60, 32, seed=1)[0]
    classes = int(labels.max()) + 1
    marked = [
        (found.share_beyond(found.see(new).scores) <= 0.05).mean()
        for given in (None, groups)
        if (found := fit_reference(copies.astype(np.float32), both, classes, groups=given))
    ]
    assert marked[0] > 2 * marked[1]
    assert marked[1] < 0.12
    alone = fit_reference(features, labels, classes)
    assert alone is not None
    for single in (np.arange(len(labels)), np.zeros(len(labels), np.int64)):
        same = fit_reference(features, labels, classes, groups=single)
        assert same is not None
        np.testing.assert_array_equal(same.held_out.values, alone.held_out.values)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of dots and lines, on which its own images are told from others."""
    folder = tmp_path_factory.mktemp("unknown")
    class_folders(folder / "data", per_class=40)
    data, bundle = str(folder / "data"), str(folder / "shapes.hgbundle")
    bank = str(small_bank(folder / "bank", 1))
    options = ("--data", data, "--sources", bank, "--steps", "0", "--task", "shapes", "-o", bundle)
    fit = run("fit", *options)
    assert fit.exit_code == 0, fit.stderr
    export = run("export", bundle, "-o", str(folder / "shapes.onnx"))
    assert export.exit_code == 0, export.stderr
    rng = np.random.default_rng(0)
    for index in range(5):
        noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"noise{index}.png")
    return folder


def predicted(folder: Path, *words: str, model: Path | None = None) -> list[dict[str, object]]:
    model = model or folder / "shapes.onnx"
    result = run("predict", "--model", str(model), "--json", *words)
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


def test_predict_calls_foreign_images_unknown(shapes: Path) -> None:
    noise = [str(path) for path in sorted(shapes.glob("noise*.png"))]
    assert all(row["unknown"] for row in predicted(shapes, *noise))
    own = predicted(shapes, str(shapes / "data"))
    assert np.mean([bool(row["unknown"]) for row in own]) < 0.1
    table = run("predict", "--model", str(shapes / "shapes.onnx"), noise[0])
    assert "unknown (" in table.stdout


def test_models_that_cannot_tell_say_nothing(tmp_path: Path) -> None:
    """Whose features are no features: those of several folded prompts that are to be adapted."""
    backbone = make_backbone()
    features, labels = clusters(60, 32)
    bundle = replace(of(backbone, ("deep", "none")), reference=fitted(features, labels))
    for adapt, tells in ((False, True), (True, False)):
        path = tmp_path / f"{adapt}.onnx"
        export_onnx(bundle, backbone, path, runtime_weights=adapt, adapt=adapt)
        predictor = Predictor(path)
        assert (predictor.reference is not None) == tells
        assert (predictor.judge(bundle.probe_images)[1] is not None) == tells


@pytest.mark.parametrize("more", [(), ("--weights", "runtime"), ("--format", "openvino")])
def test_int8_models_tell_by_their_own_features(shapes: Path, more: tuple[str, ...]) -> None:
    if "openvino" in more:
        pytest.importorskip("nncf")
    model = shapes / f"shapes8{len(more)}{'.xml' if 'openvino' in more else '.onnx'}"
    words = ("--precision", "int8", "--data", str(shapes / "data"), "--accept-unproven")
    bundle = str(shapes / "shapes.hgbundle")
    result = run("export", bundle, *words, "--max-drop", "20", *more, "-o", str(model))
    assert result.exit_code == 0, result.stderr
    in_float, in_int8 = Predictor(shapes / "shapes.onnx").reference, Predictor(model).reference
    assert in_float is not None
    assert in_int8 is not None
    assert not np.array_equal(in_float.held_out.values, in_int8.held_out.values)
    own, noise = [
        [bool(row["unknown"]) for row in predicted(shapes, *paths, model=model)]
        for paths in ([str(shapes / "data")], sorted(map(str, shapes.glob("noise*.png"))))
    ]
    assert np.mean(own) < 0.1
    assert np.all(noise)


def test_a_rate_that_no_image_can_be_held_against_is_said(shapes: Path, tmp_path: Path) -> None:
    model, noise = tmp_path / "plain.onnx", str(shapes / "noise0.png")
    backbone = make_backbone()
    export_onnx(of(backbone, ("deep",)), backbone, model)  # a bundle of before: no reference
    asked = run("predict", "--model", str(model), noise, "--false-alarms", "1")
    assert asked.exit_code == 0
    assert "does not know what its own images look like at the weights in force" in asked.stderr
    assert "does not know" not in run("predict", "--model", str(model), noise).stderr


def test_the_rate_of_false_alarms_and_the_confidence_are_options(shapes: Path) -> None:
    noise = str(shapes / "noise0.png")
    assert not predicted(shapes, "--false-alarms", "0", noise)[0]["unknown"]
    own = str(next((shapes / "data").rglob("*.jpg")))
    (row,) = predicted(shapes, "--min-confidence", "100", own)
    assert row["unknown"] is True
