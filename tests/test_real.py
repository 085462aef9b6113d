"""The main job on real images: what fit reports is what the exported file does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hgprompt_edge import Predictor, load_task, read_bundle
from hgprompt_edge.cli.main import app


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowers17", "dtd10", "weather4"])
def test_fit_export_predict_on_a_real_target(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shared / "assets" / "datasets" / name
    fitted = json.loads(run("fit", "--task", name, "--data", str(data), "--json"))
    assert fitted["images"]["train"] + fitted["images"]["validation"] <= 1000
    exported = json.loads(run("export", "--format", "onnx", "--json"))
    assert exported["ok"]

    bundle = read_bundle(Path(fitted["bundle"]))
    predictor = Predictor(Path(exported["model"]))
    task = load_task(name, bundle.preprocessing, data=data)
    accuracy = np.mean(predictor.logits(task.test.pixels).argmax(1) == task.test.labels)
    (chosen,) = (row for row in bundle.table if row.method == bundle.choice)
    assert accuracy == pytest.approx(chosen.test_accuracy, abs=1e-9)

    image = tmp_path / "photo.png"
    Image.fromarray(task.test.pixels[0]).save(image)
    (answer,) = json.loads(run("predict", "--model", exported["model"], str(image), "--json"))
    expected = bundle.classes[int(predictor.logits(task.test.pixels[:1]).argmax())]
    assert answer["classes"][0]["label"] == expected
