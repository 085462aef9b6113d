"""`hgedge evaluate` on a model and images of which it is known what it says of each."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import hgedge, run
from onnx import TensorProto, helper
from PIL import Image
from planted import Planted
from small_vits import make_backbone, make_bundle
from test_layers import BLOCK, SERVER_ONLY

import hgprompt_edge
from hgprompt_edge.data.labelled import Labelled, find_labelled
from hgprompt_edge.data.parts import Entry
from hgprompt_edge.errors import UserError
from hgprompt_edge.evaluate.classes import match_classes, parse_map
from hgprompt_edge.evaluate.run import evaluate
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.images.listing import list_images
from hgprompt_edge.runtime.predictor import Predictor


@dataclass(frozen=True)
class Case:
    """Models and labelled images.

    Attributes
    ----------
    said
        Class and probability by `predict` for each image, by its name below the data folder.
    """

    model: Path
    other: Path
    data: Path
    classes: tuple[str, ...]
    said: dict[str, tuple[str, float]]


def folder_of(data: Path, images: np.ndarray, labels: list[str]) -> Path:
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (data / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(data / label / f"{index:03d}.png")
    return data


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("evaluate")
    planted = Planted(folder)
    other = folder / "other.onnx"
    larger = make_backbone("image larger than its patches")
    export_onnx(make_bundle(larger, seed=3), larger, other)
    labels = [planted.bundle.classes[place] for place in planted.labels]
    data = folder_of(folder / "mine", planted.images, labels)
    paths = list_images([data]).images
    said = {
        str(prediction.path.relative_to(data)): prediction.labels[0]
        for prediction in Predictor(planted.path).predict_paths(paths)
    }
    return Case(planted.path, other, data, planted.bundle.classes, said)


def as_json(*words: str | Path) -> dict[str, Any]:
    result = run("evaluate", *map(str, words), "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def truth(name: str) -> str:
    return name.split("/")[0]


def test_the_figures_are_those_of_what_predict_says(case: Case) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    document = as_json(case.model, "--data", case.data, "--worst", 5)
    labels = [truth(name) for name in case.said]
    predicted = [label for label, _ in case.said.values()]
    (found,) = document["models"]
    assert (document["part"], document["images"]) == ("all", 90)
    accuracy = metrics.accuracy_score(labels, predicted)
    assert 0.3 < accuracy < 0.95  # else the rest says little
    assert found["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)
    assert found["accuracy"]["low"] < accuracy < found["accuracy"]["high"]
    balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced, abs=1e-6)
    matrix = metrics.confusion_matrix(labels, predicted, labels=case.classes)
    for name, row in zip(case.classes, matrix, strict=True):
        expected = {c: n for c, n in zip(case.classes, row.tolist(), strict=True) if n}
        assert found["confusion"][name] == expected
    wrong = {name: p for name, (label, p) in case.said.items() if label != truth(name)}
    worst = sorted(wrong, key=lambda name: -wrong[name])[:5]
    assert [mistake["image"] for mistake in found["mistakes"]] == worst
    for mistake in found["mistakes"]:
        assert mistake["class"] == truth(mistake["image"])
        assert mistake["predicted"] == case.said[mistake["image"]][0]
        assert mistake["probability"] == pytest.approx(wrong[mistake["image"]], abs=1e-5)
    assert (found["change"], document["unreadable"]) == (None, [])


@pytest.mark.parametrize("batch_size", ["1", "7"])
def test_the_table_of_images_has_a_row_for_each(
    case: Case, tmp_path: Path, batch_size: str
) -> None:
    table = tmp_path / "rows.csv"
    words = ("--data", str(case.data), "--csv", str(table), "--batch-size", batch_size)
    assert run("evaluate", str(case.model), *words).exit_code == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(case.said)
    for row in rows:
        label, probability = case.said[row["image"]]
        assert (row["model"], row["class"]) == (str(case.model), truth(row["image"]))
        assert row["predicted"] == label
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-5)
        assert row["right"] == str(int(label == truth(row["image"])))


def test_what_is_printed(case: Case) -> None:
    result = run("evaluate", str(case.model), "--data", str(case.data), "--worst", "1")
    assert result.exit_code == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    assert first.startswith(f"{case.data}: all 90 images of 4 classes; if the model was fitted on")
    titles = [re.split(r"  +", line.strip())[0] for line in lines if line.strip()]
    assert titles[1:5] == ["accuracy", "balanced accuracy", "calibration error", "mean confidence"]
    assert titles[5:10] == ["class", *case.classes]
    assert titles[10:15] == ["class \\ taken for", *case.classes]
    assert titles[15] == "worst mistakes"
    assert len(titles) == 17
    right = sum(label == truth(name) for name, (label, _) in case.said.items())
    assert f"{100 * right / 90:.1f} % (" in lines[1]


def test_models_side_by_side(case: Case) -> None:
    both = as_json(case.model, case.other, "--data", case.data)
    alone = [as_json(model, "--data", case.data) for model in (case.model, case.other)]
    for found, one in zip(both["models"], alone, strict=True):
        # Models of different image sizes share a decoded image, and nothing else.
        assert {**found, "change": None} == one["models"][0]
    first, second = both["models"]
    assert first["change"] is None
    difference = second["accuracy"]["value"] - first["accuracy"]["value"]
    assert second["change"]["value"] == pytest.approx(difference, abs=1e-5)
    assert second["change"]["low"] < difference < second["change"]["high"]
    words = ("--data", str(case.data))
    same = as_json(case.model, case.model, *words)["models"][1]["change"]
    assert same["value"] == 0
    assert same["low"] < 0 < same["high"]
    printed = run("evaluate", str(case.model), str(case.other), *words).stdout
    assert re.search(rf"change in points +{100 * difference:+.1f} \(", printed)
    assert "worst mistakes" not in printed


def test_bench_puts_accuracy_beside_latency(case: Case, tmp_path: Path) -> None:
    words = ("bench", str(case.model), str(case.other), "--runs", "1", "--data", str(case.data))
    found = as_json(case.model, case.other, "--data", case.data)
    document = json.loads(run(*words, "--json").stdout)
    for row, expected in zip(document["models"], found["models"], strict=True):
        assert row["accuracy"] == expected["accuracy"]
        assert row["p50_ms"] > 0
    assert (document["part"], document["images"]) == ("all", 90)
    printed = hgedge(tmp_path, *words).stdout  # no terminal, so nothing is folded
    assert "all 90 images" in printed
    for row in document["models"]:
        figures = (100 * row["accuracy"][key] for key in ("value", "low", "high"))
        assert "{:.1f} % ({:.1f} to {:.1f})".format(*figures) in printed


def test_the_weights_of_a_device_are_in_force(case: Case, tmp_path: Path) -> None:
    predictor = Predictor(case.model)
    found = evaluate([predictor], find_labelled(case.data))
    assert predictor.bank is not None
    predictor.set_weights(np.eye(len(predictor.bank.names))[-1])  # the prompt of the labels
    better = evaluate([predictor], find_labelled(case.data))
    assert better.figures[0].accuracy.value > found.figures[0].accuracy.value
    note = run(
        "evaluate", str(case.model), "--data", str(case.data), "--state", str(tmp_path / "x")
    )
    assert "not there (yet), so the initial weights are in force" in note.stderr


def test_classes_that_are_not_the_models(case: Case, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "d", np.zeros((4, 24, 24, 3), np.uint8), ["CLASS 1, ä", "x"] * 2)
    table = tmp_path / "rows.csv"
    result = run("evaluate", str(case.model), "--data", str(data), "--csv", str(table))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"hgedge: {data}: {case.model} has no class 'CLASS 1, ä', 'x'; of the model's classes the "
        "data has no 'class 0, ä', 'class 1, ä', 'class 2, ä', 'class 3, ä'; rename the classes "
        "of the data, or map each with --map CLASS 1, ä=class 1, ä\n"
    )
    assert not table.exists()
    words = ("--map", "CLASS 1, ä=class 1, ä", "--map", "x=class 1, ä", "--csv", str(table))
    mapped = as_json(case.model, "--data", data, *words)
    images = {each["class"]: each["images"] for each in mapped["models"][0]["classes"]}
    assert images == {"class 0, ä": 0, "class 1, ä": 4, "class 2, ä": 0, "class 3, ä": 0}
    absent = "no images of 3 of the 4 classes of"
    assert [note for note in mapped["notes"] if absent in note]
    with table.open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"class 1, ä"}


def test_an_equals_sign_in_a_name_is_no_obstacle() -> None:
    names = ("x", "a=b")
    mapping = parse_map(["a=b=dog=s", "x=cat"], names)
    places = match_classes(names, ("cat", "dog=s"), mapping, data="d", model="m")
    assert places == {"x": 0, "a=b": 1}


def colours(path: Path) -> Path:
    """Write a model of others: the logits are the mean red, green and blue of an image."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 24, 24, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, path)
    return path


def test_a_model_without_names_of_classes(tmp_path: Path) -> None:
    model = colours(tmp_path / "c.onnx")
    red, green = np.zeros((2, 24, 24, 3), np.uint8)
    red[..., 0], green[..., 1] = 200, 100
    # A folder that is called 0 may be anything.
    data = folder_of(tmp_path / "d", np.stack([green, green, red, red]), ["0", "0", "1", "1"])
    note = run("evaluate", str(model), "--data", str(data), "--map", "0=1", "--map", "1=0")
    assert "it lacks class names and the resize rule" in note.stderr
    with pytest.warns(UserWarning, match="c.onnx: .* the shorter side is resized to the model's"):
        hgprompt_edge.load(model)
    mapped = as_json(model, "--data", data, "--map", "0=1", "--map", "1=0")
    assert mapped["models"][0]["accuracy"]["value"] == 1


def test_a_map_for_one_of_several_models(case: Case, tmp_path: Path) -> None:
    """A model of others beside ours, which knows the classes by the data's names."""
    others, one, two = colours(tmp_path / "c.onnx"), *case.classes[:2]
    images = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3), np.uint8)
    data = folder_of(tmp_path / "d", images, [one, two] * 6)
    maps = ("--map", f"{one}=0", "--map", f"{two}=1")
    together = as_json(case.model, others, "--data", data, *maps)["models"]
    alone = [as_json(case.model, "--data", data), as_json(others, "--data", data, *maps)]
    for both, document in zip(together, alone, strict=True):
        assert both["confusion"] == document["models"][0]["confusion"]
    for words, message in (
        (
            ("--map", f"{one}=7", "--map", f"{two}=1"),
            f"--map {one}=7: {case.model} has no class '7'",
        ),
        (("--map", f"{two}=1"), "c.onnx: its classes have no names, only the numbers 0 to 2"),
    ):
        refused = run("evaluate", *map(str, (case.model, others, "--data", data, *words)))
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_images_that_cannot_be_read_are_counted_and_listed(case: Case, tmp_path: Path) -> None:
    label = case.classes[0]
    data = folder_of(tmp_path / "d", np.zeros((3, 24, 24, 3), np.uint8), [label] * 3)
    (data / label / "a[b].png").write_bytes(b"no image")
    (data / label / "notes.txt").write_text("no image")
    document = as_json(case.model, "--data", data)
    assert document["images"] == 3
    assert document["unreadable"] == [
        {"file": f"{label}/a[b].png", "reason": "not a readable image (unknown format)"}
    ]
    assert [each["file"] for each in document["files_left_out"]] == [f"{label}/notes.txt"]
    printed = run("evaluate", str(case.model), "--data", str(data))
    assert f"skipped {label}/a[b].png: not a readable image" in printed.stderr
    assert "left out: 1 of a type that is not read (.txt)" in printed.stderr


def test_names_drive_neither_the_terminal_nor_the_table(case: Case, tmp_path: Path) -> None:
    data = tmp_path / "set [/2024]"
    odd = ["[bold]x.png", "a\x1b[2J.png", os.fsdecode(b"stra\xdfe.png")]
    for label in case.classes[:2]:  # black images are of one class, so all of the other are wrong
        (data / label).mkdir(parents=True)
        for name in odd:
            Image.new("RGB", (24, 24)).save(data / label / name, "PNG")
    table = tmp_path / "rows.csv"
    words = ("--data", str(data), "--csv", str(table), "--worst", "99")
    result = subprocess.run(
        [sys.executable, "-m", "hgprompt_edge.cli.main", "evaluate", str(case.model), *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert result.returncode == 0, result.stderr
    assert b"set [/2024]: all 6 images" in result.stdout
    assert b"\x1b" not in result.stdout
    text = table.read_bytes().decode("utf-8", "surrogateescape")
    rows = {row["image"] for row in csv.DictReader(text.splitlines(keepends=True))}
    assert {f"{label}/{name}" for label in case.classes[:2] for name in odd} == rows
    mistakes = [row for row in csv.DictReader(text.splitlines(True)) if row["right"] == "0"]
    assert len(mistakes) >= len(odd)
    for row in mistakes:
        shown = row["image"].encode("utf-8", "surrogateescape").replace(b"\x1b", b"\\x1b")
        assert shown in result.stdout


def test_probabilities_that_are_not_finite_are_no_answers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(case.model)
    monkeypatch.setattr(
        predictor, "probabilities", lambda pixels: np.full((len(pixels), 4), np.nan, np.float32)
    )
    with pytest.raises(UserError, match="gives no probabilities for 90 of 90 images, such as"):
        evaluate([predictor], find_labelled(case.data))


def test_memory_does_not_grow_with_the_number_of_images(case: Case) -> None:
    predictor, label = Predictor(case.model), case.classes[0]

    def peak(count: int) -> int:
        entries = [
            Entry(str(index), label, lambda: Image.new("RGB", (24, 24))) for index in range(count)
        ]
        done: list[int] = []
        tracemalloc.start()
        evaluate(
            [predictor],
            Labelled("many", "all", entries, {"all": entries}),
            batch_size=8,
            report=lambda images, _: done.append(images),
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert done == [*range(8, count, 8), count]
        return most

    peak(100)  # what is loaded only once
    few, many = peak(100), peak(1100)
    assert (many - few) / 1000 < 300  # bytes of an image; its pixels have 1,728


def test_the_base_install_evaluates(case: Case) -> None:
    names = SERVER_ONLY | {"scipy", "matplotlib", "huggingface_hub", "pandas"}
    words = ["evaluate", str(case.model), "--data", str(case.data)]
    code = f"from hgprompt_edge.cli.main import app; app({words!r})"
    subprocess.run([sys.executable, "-c", BLOCK.format(names=names) + code], check=True)


def test_parquet_without_the_server_install(case: Case, tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    words = ["evaluate", str(case.model), "--data", str(tmp_path)]
    code = f"from hgprompt_edge.cli.main import app; app({words!r})"
    result = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=SERVER_ONLY) + code],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"hgedge: {tmp_path / 'test.parquet'} needs pyarrow, which is not installed; run `pip "
        "install 'hgprompt-edge[server]'`\n"
    )


def test_of_many_classes_the_worst_are_printed(tmp_path: Path) -> None:
    backbone = make_backbone()
    export_onnx(make_bundle(backbone, classes=30), backbone, tmp_path / "many.onnx")
    images = np.random.default_rng(0).integers(0, 256, (60, 24, 24, 3), np.uint8)
    data = folder_of(tmp_path / "d", images, [f"class {index % 30}, ä" for index in range(60)])
    words = ("evaluate", str(tmp_path / "many.onnx"), "--data", str(data))
    document = json.loads(run(*words, "--json").stdout)["models"][0]
    result = hgedge(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    blocks = [block.splitlines() for block in result.stdout.split("\n\n")]
    recall = {each["class"]: each["recall"]["value"] for each in document["classes"]}
    shown = [re.split(r"  +", line)[0] for line in blocks[1][1:21]]
    assert [recall[name] for name in shown] == sorted(recall.values())[:20]
    assert blocks[1][21] == "10 classes with no lower recall are left out here; --json has them"
    pairs = [re.split(r"  +", line.strip()) for line in blocks[2][1:11]]
    for name, predicted, images_ in pairs:
        assert document["confusion"][name][predicted] == int(images_)
    counts = [
        count
        for name, row in document["confusion"].items()
        for predicted, count in row.items()
        if predicted != name
    ]
    assert [int(pair[2]) for pair in pairs] == sorted(counts, reverse=True)[:10]
    rest, total = re.split(r"  +", blocks[2][11].strip())
    assert (rest, int(total)) == (f"({len(counts) - 10} other pairs)", sum(sorted(counts)[:-10]))
