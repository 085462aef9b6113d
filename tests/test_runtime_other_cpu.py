"""An int8 model says when this CPU computes other logits than where its accuracy was measured."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from small_vits import make_backbone, make_bundle
from toys import make_task
from typer.testing import CliRunner, Result

from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.cli.main import app
from hgprompt_edge.export.int8.quantize import export_int8
from hgprompt_edge.runtime import other_cpu
from hgprompt_edge.runtime.cpu import cpu_features, cpu_name
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.predictor import Predictor

OTHER = "Old CPU avx2"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module", params=["folded", "weights at run time"])
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    backbone = make_backbone()
    bundle = make_bundle(backbone, classes=3)
    task = make_task(backbone, bundle.prompt)
    tokens = np.stack([bundle.prompt, -bundle.prompt]).astype(np.float16)
    bundle = replace(
        bundle,
        classes=task.classes,
        split_digest=task.digest,
        choice="best_source",
        weights=np.array([1, 0], np.float32),
        source_tokens=tokens,
    )
    at_run_time = request.param != "folded"
    path = folder / "m.onnx"
    export_int8(bundle, backbone, path, task, max_drop=100, runtime_weights=at_run_time)
    return path


def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of onnxruntime has had, from now on."""
    honest, seen = OnnxEngine.run_all, []

    def counting(self: OnnxEngine, pixels: Any, given: Any = None) -> Any:
        seen.append(len(pixels))
        return honest(self, pixels, given)

    monkeypatch.setattr(OnnxEngine, "run_all", counting)
    return seen


def saturating(path: Path) -> None:
    """Make a file whose own logits are those of a CPU that computes otherwise."""
    model = onnx.load(path)
    (entry,) = (p for p in model.metadata_props if p.key == "hgprompt.quantization")
    content = json.loads(entry.value)
    logits = np.array(content["probe_logits"])
    noise = np.random.default_rng(0).normal(size=logits.shape)
    moved = logits + 0.15 * np.sqrt(np.square(logits).mean()) * noise
    entry.value = json.dumps({**content, "probe_logits": moved.tolist(), "cpu": OTHER})
    onnx.save(model, path)


@pytest.fixture
def other(exported: Path, tmp_path: Path) -> Path:
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / exported.name
    saturating(path)
    model = onnx.load(path)
    (entry,) = (each for each in model.metadata_props if each.key == FILE_SHA256)
    entry.value = BLANK
    onnx.save(model, path)
    seal(path)  # what is simulated is another CPU, not another file
    return path


def test_the_metadata_say_where_accuracy_was_measured(exported: Path) -> None:
    predictor = Predictor(exported)
    found = predictor.metadata.quantization
    assert found["cpu"] == cpu_name()
    assert set(cpu_features()) <= set(found["cpu"].split())
    images, _ = predictor.metadata.probe()
    alone = np.concatenate([predictor.logits(image[None]) for image in images])
    np.testing.assert_allclose(found["probe_logits"], alone, atol=1e-4)


def test_the_first_start_compares_and_later_ones_do_not(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor(exported)
        assert set(seen) == {1}, "one image at a time"
        assert len(seen) == 9, "each probe image once"
        Predictor(exported)
        assert len(seen) == 9, "remembered"
        monkeypatch.setattr(other_cpu, "cpu_name", lambda: OTHER)
        Predictor(exported)
        assert len(seen) == 18, "another CPU shares this home"


def test_a_changed_file_is_compared_anew(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Predictor(tmp_path / exported.name)
    saturating(tmp_path / exported.name)
    with pytest.warns(UserWarning, match="logits differ by"):
        Predictor(tmp_path / exported.name)
    assert len(seen) == 18


def test_other_logits_are_named_at_every_start(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    for _ in range(2):
        with pytest.warns(UserWarning, match="logits differ by") as caught:
            Predictor(other)
        (text,) = (str(warning.message) for warning in caught)
        for words in (str(other), OTHER, cpu_name(), "up to 7 %", "export it on a CPU like this"):
            assert words in text
    assert len(seen) == 9, "remembered"


@pytest.mark.parametrize("damage", ["a file in its place", "an entry that is no JSON"])
def test_a_cache_that_cannot_be_used_costs_time_alone(
    exported: Path, private_cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Predictor(exported)
    (entry,) = (private_cache / "int8").iterdir()
    if damage == "a file in its place":
        entry.unlink()
        entry.parent.rmdir()
        entry.parent.write_text("")
    else:
        entry.write_text("{")
    seen = runs(monkeypatch)
    predictor = Predictor(exported)
    assert len(seen) == 9
    assert len(predictor.logits(predictor.metadata.probe()[0])) == 9


def test_predict_says_it_once_and_goes_on(other: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "a.png")
    result = run("predict", "--model", str(other), str(tmp_path / "a.png"), "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 1
    assert result.stderr.count("logits differ by") == 1
    assert OTHER in result.stderr


def test_verify_fails_where_logits_differ(exported: Path, other: Path) -> None:
    good, bad = run("verify", str(exported), "--json"), run("verify", str(other), "--json")
    assert (good.exit_code, bad.exit_code) == (0, 1)
    for result, ok in ((good, True), (bad, False)):
        (check,) = (c for c in json.loads(result.stdout)["checks"] if c["name"] == "cpu")
        assert check["ok"] is ok
        assert cpu_name() in check["detail"]
    assert "does not pass (cpu)" in bad.stderr
    assert "warning" not in bad.stderr


@pytest.mark.parametrize("lost", ["cpu", "probe_logits"])
def test_missing_evidence_is_no_evidence(other: Path, lost: str) -> None:
    model = onnx.load(other)
    (entry,) = (p for p in model.metadata_props if p.key == "hgprompt.quantization")
    entry.value = json.dumps({k: v for k, v in json.loads(entry.value).items() if k != lost})
    onnx.save(model, other)
    with pytest.warns(UserWarning, match="own logits on its probe images are missing"):
        Predictor(other)
    result = run("verify", str(other))
    assert result.exit_code == 1
    assert "missing or damaged" in " ".join(result.stdout.split())
