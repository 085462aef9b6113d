"""A model whose logits are NaN or infinite: an image without probabilities gets no class."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import helper, numpy_helper
from PIL import Image
from small_vits import make_backbone, make_bundle

import hgprompt_edge
from hgprompt_edge import UserError
from hgprompt_edge.export.onnx_file import export_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives NaN for a black image (0 / 0) and proper logits for all others."""
    path = tmp_path_factory.mktemp("model") / "pets.onnx"
    export_onnx(make_bundle(make_backbone()), make_backbone(), path)
    graph = onnx.load(path)
    (last,) = (node for node in graph.graph.node if "logits" in node.output)
    last.output[0] = "proper"
    graph.graph.initializer.append(numpy_helper.from_array(np.float32([0.0]), "zero"))
    graph.graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("ReduceSumSquare", ["flat", "along"], ["light"], keepdims=1),
            helper.make_node("Div", ["zero", "light"], ["spoilt"]),
            helper.make_node("Add", ["proper", "spoilt"], ["logits"]),
        ]
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.int64([1]), "along"))
    onnx.save(graph, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, grey in (("black", 0), ("grey", 99), ("white", 255)):
        Image.new("RGB", (24, 24), (grey,) * 3).save(folder / f"{name}.png")
    return folder


def test_predict_has_no_number_for_such_an_image(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)  # a long path would fold in the table
    words = ("predict", "--model", str(model), pictures.name)
    reason = "the model gives no probabilities for it; export the model again"
    table = run(*words)
    assert table.exit_code == 2
    assert table.stderr.splitlines() == [
        f"{pictures.name}/black.png: {reason}",
        "hgedge: 1 of 3 images got no probabilities; the others were classified",
    ]
    assert "nan" not in table.stdout
    assert len(table.stdout.splitlines()) == 3
    document = json.loads(run(*words, "--json").stdout, parse_constant=pytest.fail)
    assert [row["error"] for row in document] == [reason, None, None]
    assert [len(row["classes"]) for row in document] == [0, 1, 1]
    rows = list(csv.reader(run(*words, "--csv").stdout.splitlines()))
    assert [Path(row[0]).name for row in rows[1:]] == ["grey.png", "white.png"]


def test_unreadable_images_are_counted_apart(model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = run("predict", "--model", str(model), str(pictures), str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "hgedge: 1 of 4 images cannot be read and 1 of 4 images got no probabilities; the others "
        "were classified"
    )


def test_load_names_the_image(model: Path, pictures: Path) -> None:
    classify = hgprompt_edge.load(model, threads=1)
    black, grey = pictures / "black.png", pictures / "grey.png"
    assert sum(classify(grey).probabilities) == pytest.approx(1)
    with pytest.raises(UserError, match=r"pets\.onnx: gives no probabilities for .*black\.png;"):
        classify(black)
    with pytest.raises(UserError, match="gives no probabilities for image 1;"):
        classify([grey.read_bytes(), black.read_bytes()])


def test_no_speed_is_measured_of_such_a_model(model: Path, tmp_path: Path) -> None:
    graph = onnx.load(model)
    weights = next(item for item in graph.graph.initializer if item.name == "head.weight")
    weights.CopyFrom(
        numpy_helper.from_array(np.full_like(numpy_helper.to_array(weights), np.nan), "head.weight")
    )
    broken = tmp_path / "broken.onnx"
    onnx.save(graph, broken)
    result = run("bench", str(model), str(broken))
    assert result.exit_code == 2
    message = f"hgedge: {broken}: its logits are NaN or infinite; export the model again\n"
    assert "".join(result.stderr.splitlines()) == message.strip()
    assert not result.stdout
