"""The predictor: what it gives for good files, and one sentence for each kind of bad one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from small_vits import make_backbone, make_bundle, token_logits

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.images.listing import list_images
from hgprompt_edge.images.preprocess import read_image
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.runtime.engines.onnx_engine import explain
from hgprompt_edge.runtime.prediction import Prediction
from hgprompt_edge.runtime.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(make_backbone())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    path = tmp_path_factory.mktemp("model") / "pets.onnx"
    export_onnx(bundle, make_backbone(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """Five images of the model's size, one of another size, one that is none, one hidden."""
    root = tmp_path_factory.mktemp("images")
    (root / "b").mkdir()
    for index, pixels in enumerate(bundle.probe_images[:5]):
        Image.fromarray(pixels).save(root / "b" / f"{index}.png")
    Image.new("L", (90, 40)).save(root / "a.JPG", format="jpeg")
    (root / "c.png").write_bytes(b"not an image")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return root


def test_logits_are_those_of_pytorch(model: Path, bundle: Bundle) -> None:
    predictor = Predictor(model, threads=1)
    assert predictor.classes == bundle.classes
    assert predictor.preprocessing == bundle.preprocessing
    logits = predictor.logits(bundle.probe_images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, bundle.probe_logits, atol=1e-4)
    probabilities = predictor.probabilities(bundle.probe_images)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(1), logits.argmax(1))
    assert predictor.logits(bundle.probe_images[:0]).shape == (0, 4)


def test_softmax_is_safe_for_logits_of_any_size() -> None:
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [0, np.log(2), np.log(5)]], np.float32)
    expected = [[1, 0, 0], [1 / 3] * 3, [1 / 8, 2 / 8, 5 / 8]]
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(softmax(logits), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 24, 24, 3), np.float32),
        np.zeros((1, 3, 24, 24), np.uint8),
        np.zeros((24, 24, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_dtype_are_refused(model: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \[n, 24, 24, 3\]"):
        Predictor(model).logits(pixels)


def test_files_and_folders_become_a_sorted_list(folder: Path) -> None:
    inside = [folder / "a.JPG", *(folder / "b" / f"{i}.png" for i in range(5)), folder / "c.png"]
    assert list_images([folder]).images == tuple(inside)
    named = [folder / "notes.txt", folder / "b" / "3.png"]
    assert list_images([*named, folder / "b"]).images == (*named, *inside[1:6])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_keep_the_order_and_name_unreadable_files(
    model: Path, folder: Path, bundle: Bundle, batch_size: int
) -> None:
    predictor = Predictor(model)
    paths = list(list_images([folder]).images)
    predictions = list(predictor.predict_paths(paths, top=2, batch_size=batch_size))
    assert [p.path for p in predictions] == paths
    assert predictions[-1] == Prediction(folder / "c.png", (), predictions[-1].error)
    assert "not a readable image" in (predictions[-1].error or "")
    pixels = np.stack([read_image(path, bundle.preprocessing) for path in paths[1:6]])
    expected = softmax(token_logits(bundle, make_backbone(), pixels))
    for prediction, row in zip(predictions[1:6], expected, strict=True):
        order = np.argsort(-row)[:2]
        assert [label for label, _ in prediction.labels] == [bundle.classes[i] for i in order]
        got = [probability for _, probability in prediction.labels]
        np.testing.assert_allclose(got, row[order], atol=1e-4)
        assert prediction.error is None


def test_more_classes_than_there_are_means_all(model: Path, folder: Path) -> None:
    (prediction,) = Predictor(model).predict_paths([folder / "a.JPG"], top=99)
    assert len(prediction.labels) == 4
    probabilities = [probability for _, probability in prediction.labels]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)


def test_paths_are_read_batch_by_batch(model: Path, folder: Path) -> None:
    asked: list[Path] = []

    def paths() -> Iterator[Path]:
        for _ in range(100):
            asked.append(folder / "a.JPG")
            yield asked[-1]

    predictions = Predictor(model).predict_paths(paths(), batch_size=4)
    next(predictions)
    assert len(asked) == 4


def foreign(ir_version: int = 10, opset: int = 20) -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(
        graph, ir_version=ir_version, opset_imports=imports
    ).SerializeToString()


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "truncated or not an ONNX file"),
    "text": (lambda _: b"hello, this is no model\n" * 9, "truncated or not an ONNX file"),
    "zeros": (lambda _: bytes(4096), "truncated or not an ONNX file"),
    "cut to half": (lambda good: good[: len(good) // 2], "truncated or not an ONNX file"),
    "last byte missing": (lambda good: good[:-1], "truncated or not an ONNX file"),
    "cut before the verification": (
        lambda good: good[: good.rindex(b"hgprompt.verification") - 5],
        "its last part is missing",
    ),
    "foreign model": (lambda _: foreign(), "not a model of `hgedge export`"),
    "newer IR": (
        lambda _: foreign(ir_version=99),
        r"ONNX IR version 99, which onnxruntime .* `opset=20`",
    ),
    "newer opset": (
        lambda _: foreign(opset=99),
        r"ONNX opset 99, which onnxruntime .* `opset=20`",
    ),
}


def test_an_operator_that_the_runtime_lacks_names_the_fallback() -> None:
    text = "NOT_IMPLEMENTED : Could not find an implementation for Attention(23) node with name 'a'"
    words = explain(RuntimeError(text))
    assert words.startswith("uses Attention of opset 23, which onnxruntime ")
    assert words.endswith("upgrade onnxruntime or export the model again with `opset=20`")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_sentence(tmp_path: Path, model: Path, name: str) -> None:
    damage, message = HOSTILE[name]
    path = tmp_path / "hostile.onnx"
    path.write_bytes(damage(model.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        Predictor(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))


def test_a_missing_model_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "nothing.onnx", "no such model"), (tmp_path, "a folder, not a")):
        with pytest.raises(UserError, match=f"{why}.* file.*; make (it|one) with `hgedge export`"):
            Predictor(path)


def edited(model: Path, path: Path, **changes: str | None) -> Path:
    """A copy of the model with some of its metadata changed (None: taken away)."""
    proto = onnx.load(model)
    entries = {p.key: p.value for p in proto.metadata_props}
    for key, value in changes.items():
        entries.pop(f"hgprompt.{key}", None)
        if value is not None:
            entries[f"hgprompt.{key}"] = value
    del proto.metadata_props[:]
    helper.set_model_props(proto, entries)
    path.write_bytes(proto.SerializeToString())
    return path


def rule(**changes: object) -> str:
    fields = {"image_size": 24, "resize": 24, "mean": [0.5] * 3, "std": [0.5] * 3}
    return json.dumps({**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "hgprompt.model/2"}, "hgprompt.model/2 is newer than .* upgrade"),
        ({"format": None}, "not a model of `hgedge export`"),
        ({"classes": None}, "'hgprompt.classes' is missing"),
        ({"classes": "[]"}, "'hgprompt.classes'"),
        ({"classes": "no json"}, "'hgprompt.classes'"),
        ({"classes": '["a", 3]'}, "'hgprompt.classes"),
        ({"classes": "[" * 10_000}, "'hgprompt.classes"),
        ({"classes": '["only one"]'}, "does not fit its metadata"),
        ({"preprocessing": "{}"}, "'hgprompt.preprocessing"),
        ({"preprocessing": rule(resize=10**9)}, "'hgprompt.preprocessing"),
        ({"preprocessing": rule(image_size=-1)}, "'hgprompt.preprocessing"),
        ({"preprocessing": rule(interpolation="magic")}, "'hgprompt.preprocessing"),
        ({"preprocessing": rule(crop_mode="border")}, "unknown resize rule 'border'"),
        ({"preprocessing": rule(crop_mode="letterbox")}, "'letterbox' needs a fill colour"),
        ({"preprocessing": rule(crop_mode="letterbox", fill=[0, 0, 256])}, "fill colour"),
        ({"preprocessing": rule(image_size=32)}, "does not fit its metadata"),
        ({"weights": '["a"]'}, "'hgprompt.weights"),
        ({"seed": "x"}, "'hgprompt.seed'"),
        ({"precision": "int4"}, r"'hgprompt.precision' .*unknown precision 'int4'\); export"),
        ({"sources": '[{"name": "a"}]'}, "'hgprompt.sources' .*lacks its name or sha256"),
        ({"sources": '[{"sha256": "00"}]'}, "'hgprompt.sources' .*lacks its name or sha256"),
    ],
)
def test_damaged_metadata_gets_one_sentence(
    tmp_path: Path, model: Path, changes: dict[str, str | None], message: str
) -> None:
    path = edited(model, tmp_path / "edited.onnx", **changes)
    with pytest.raises(UserError, match=message) as caught:
        Predictor(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", ["", "AAAA", "!!!", "eJxjYGAYBaNgFAAAAwEAAQ=="])
def test_damaged_probe_images_are_refused_when_asked_for(
    tmp_path: Path, model: Path, images: str
) -> None:
    predictor = Predictor(edited(model, tmp_path / "edited.onnx", probe_images=images))
    with pytest.raises(ValueError, match="probe images"):
        predictor.metadata.probe()


def test_a_model_without_a_probe_still_predicts(tmp_path: Path, model: Path) -> None:
    path = edited(model, tmp_path / "edited.onnx", probe_images="", probe_logits="[]")
    images, logits = Predictor(path).metadata.probe()
    assert (len(images), logits.shape) == (0, (0, 4))


WITHOUT_SERVER = """
import sys

BLOCKED = {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "scipy", "sklearn",
           "matplotlib"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on a device")

sys.meta_path.insert(0, Blocker())
from pathlib import Path
from hgprompt_edge.maths import mixing
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.images.listing import list_images

predictor = Predictor(Path(sys.argv[1]), threads=1)
images, logits = predictor.metadata.probe()
assert abs(predictor.logits(images) - logits).max() < 1e-4
for prediction in predictor.predict_paths(list_images([Path(sys.argv[2])]).images):
    print(prediction.path.name, prediction.labels[0][0] if prediction.labels else prediction.error)
assert not BLOCKED & set(sys.modules)
"""


def test_it_works_where_importing_torch_raises(model: Path, folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_SERVER, str(model), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    expected = list(Predictor(model).predict_paths(list_images([folder]).images))
    assert lines == [f"{p.path.name} {p.labels[0][0] if p.labels else p.error}" for p in expected]
    assert len(lines) == 7
    assert result.stderr == ""
