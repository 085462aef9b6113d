"""Device folders for OpenVINO: the same tasks on another graph, and one file of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image
from small_vits import make_bundle, token_logits
from test_device_folder import backbone as backbone
from test_device_folder import folder as onnx_folder
from test_device_folder import named, sources, tasks_of
from test_runtime_verify import keys as keys

from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.signature import sign, signature_path
from hgprompt_edge.artifacts.tasks.task_file import read_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.device_folder import add_task, export_device
from hgprompt_edge.export.device_graphs import OpenVinoGraphs
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.verify import reference_logits
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.bench import file_bytes
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.verify import verify_model

ov = pytest.importorskip("openvino")
onnx_folder = onnx_folder
TASK_INPUTS = {"prefix_k", "prefix_v", "prefix_bias", "head_weight", "head_bias"}


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "device"
    export_device(sources(tasks_of(backbone)), backbone, folder, OpenVinoGraphs())
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "device"))


def test_each_task_gives_what_pytorch_gives(backbone: Backbone, folder: Path) -> None:
    predictor = Predictor(folder)
    assert predictor.runtime.startswith("openvino")
    assert {path.name for path in folder.iterdir()} == {
        *("backbone.xml", "backbone.bin", "default.xml"),
        *("birds.hgtask", "cars.hgtask", "pets.hgtask"),
    }
    images = np.random.default_rng(3).integers(0, 256, (5, 24, 24, 3), np.uint8)
    for bundle in tasks_of(backbone)[:2]:
        task = predictor.task(bundle.task)
        expected = log_softmax(token_logits(bundle, backbone, images))
        np.testing.assert_allclose(task.logits(images), expected, atol=5e-4)
    assert all(predictor.task(name).compare_probe().ok for name in predictor.tasks)


def test_all_of_a_task_is_an_input_and_two_tasks_differ(folder: Path) -> None:
    """OpenVINO makes constants of inputs with defaults: then all tasks would give the same."""
    core = ov.Core()
    model = core.read_model(folder / "backbone.xml")
    assert {port.any_name for port in model.inputs} == {"image", *TASK_INPUTS}
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = np.full((1, 24, 24, 3), 90, np.uint8)
    given = read_task(folder / "pets.hgtask").tensors.inputs()
    first = compiled({"image": image, **given})["logits"]
    for name in TASK_INPUTS - {"prefix_bias"}:
        other = compiled({"image": image, **given, name: given[name] * 1.5})["logits"]
        assert np.abs(other - first).max() > 1e-3, name
    wider = {name: np.concatenate([given[name]] * 2, axis=2) for name in ("prefix_k", "prefix_v")}
    shut = np.concatenate([given["prefix_bias"], np.full_like(given["prefix_bias"], -1e4)], 1)
    same = compiled({"image": image, **given, **wider, "prefix_bias": shut})["logits"]
    np.testing.assert_allclose(same, first, atol=1e-4)


def test_task_files_are_those_of_an_onnx_folder(
    backbone: Backbone, onnx_folder: Path, copy: Path
) -> None:
    for name in ("birds", "cars", "pets"):
        ours, theirs = (read_task(path / f"{name}.hgtask") for path in (copy, onnx_folder))
        for key, array in ours.tensors.inputs().items():
            np.testing.assert_array_equal(array, theirs.tensors.inputs()[key])
        (copy / f"{name}.hgtask").unlink()
        shutil.copy(onnx_folder / f"{name}.hgtask", copy)
        assert Predictor(copy).task(name).compare_probe().ok
    bundle = named(make_bundle(backbone, seed=9, classes=3), "fruit")
    facts = DeviceFolder(onnx_folder).facts
    other = copy.parent / "onnx"
    shutil.copytree(onnx_folder, other)
    add_task(Source(Path("fruit.hgbundle"), bundle), backbone, other, facts)
    added = run("device", "add", str(copy), str(other / "fruit.hgtask"))
    assert added.exit_code == 0, added.stderr
    assert "fruit" in run("device", "list", str(copy)).stdout
    assert run("device", "remove", str(copy), "fruit").exit_code == 0
    assert "pets (in default.xml)" in run("device", "list", str(copy)).stdout
    refused = run("device", "remove", str(copy), "pets")
    assert refused.exit_code == 2
    assert "folded into default.xml" in refused.stderr


def test_a_plain_runtime_runs_the_default_task(backbone: Backbone, copy: Path) -> None:
    """Nothing of ours: what others write."""
    bundle = tasks_of(backbone)[0]
    core = ov.Core()
    model = core.read_model(copy / "default.xml", copy / "backbone.bin")
    assert [port.any_name for port in model.inputs] == ["image"]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled(bundle.probe_images)["logits"]
    np.testing.assert_allclose(logits, log_softmax(bundle.probe_logits), atol=5e-4)
    predictor = Predictor(copy / "default.xml")
    assert predictor.compare_probe().ok
    assert all(check.ok is not False for check in verify_model(copy / "default.xml"))
    assert Predictor(copy / "default.xml").logits(bundle.probe_images).shape == logits.shape
    weights = (copy / "backbone.bin").stat().st_size
    assert file_bytes(copy / "default.xml") > weights
    (copy / "backbone.bin").unlink()
    for path in (copy, copy / "default.xml"):
        with pytest.raises(UserError, match=r"needs backbone\.bin .*beside it"):
            Predictor(path)


def test_damaged_weights_are_refused(copy: Path) -> None:
    weights = copy / "backbone.bin"
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(changed)
    for path in (copy, copy / "default.xml"):
        with pytest.raises(UserError, match=r"backbone\.bin is damaged or of another model"):
            Predictor(path)


def test_float16_halves_the_weights_and_is_near(
    backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    found = export_device(sources(tasks_of(backbone)), backbone, half, OpenVinoGraphs("fp16"))
    sizes = [(path / "backbone.bin").stat().st_size for path in (half, folder)]
    assert sizes[0] < 0.65 * sizes[1]  # the folded task stays in float32
    assert all(checked.max_abs_diff > 1e-4 for checked in found.values())
    for name in found:
        task = Predictor(half).task(name)
        assert task.metadata.precision == "fp16"
        assert task.compare_probe().ok
    assert Predictor(half / "default.xml").metadata.precision == "fp16"
    shutil.copy(folder / "pets.hgtask", half)  # made beside float32 weights
    assert Predictor(half).task("pets").metadata.precision == "fp16"
    assert Predictor(half).task("pets").compare_probe().ok


def test_a_task_that_is_not_equal_to_pytorch_leaves_nothing(
    backbone: Backbone, tmp_path: Path
) -> None:
    pets = tasks_of(backbone)[0]
    broken = named(make_bundle(backbone, seed=3), "cars")
    broken.probe_logits[:] = pets.probe_logits + 3 * np.arange(4)
    with pytest.raises(CheckError, match="not equal to PyTorch"):
        export_device(sources([pets, broken]), backbone, tmp_path / "device", OpenVinoGraphs())
    assert not (tmp_path / "device").exists()


def test_signatures_cover_graph_and_weights(copy: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    for name in ("pets.hgtask", "backbone.xml", "default.xml"):
        sign(copy / name, private)
    for name in ("pets.hgtask", "default.xml"):
        assert all(check.ok is not False for check in verify_model(copy / name, key=public))
    shutil.copy(signature_path(copy / "pets.hgtask"), signature_path(copy / "backbone.xml"))
    checks = verify_model(copy / "pets.hgtask", key=public)
    assert [check.ok for check in checks] == [True, False]


def test_two_graphs_in_one_folder_are_refused(copy: Path, onnx_folder: Path) -> None:
    shutil.copy(onnx_folder / "backbone.onnx", copy)
    with pytest.raises(UserError, match=r"holds backbone\.onnx, backbone\.xml; remove"):
        Predictor(copy)


def test_the_command_writes_predicts_and_refuses(
    backbone: Backbone, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgprompt_edge.backbones.fitted.backbone_of", lambda *_: backbone)
    for bundle in tasks_of(backbone)[:2]:
        write_bundle(Path(f"{bundle.task}.hgbundle"), bundle)
    words = ("export", "pets.hgbundle", "cars.hgbundle", "--format", "openvino")
    made = run(*words, "-o", "device")
    assert made.exit_code == 0, made.stderr
    assert "default.xml has pets folded in" in made.stdout
    assert "cars.hgtask" in made.stdout
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save("photo.png")
    shown = run("predict", "--model", "device", "--task", "cars", "photo.png", "--json")
    assert json.loads(shown.stdout)[0]["task"] == "cars"
    shutil.copytree(onnx_folder, "onnx")
    for more, text in (
        (("-o", "onnx"), "holds backbone.onnx, which is of another --format"),
        (("-o", "new", "--opset", "20"), "OpenVINO models have no opset"),
        (("-o", "new", "--accept-unproven"), "only for int8 models"),
        (("-o", "new", "--precision", "int8", "--data", "."), "of several bundles are looked for"),
    ):
        refused = run(*words, *more)
        assert refused.exit_code == 2
        assert text in refused.stderr
        assert not Path("new").exists()
    shutil.copy("onnx/backbone.onnx", "device")
    for form in ("onnx", "openvino"):
        refused = run("export", "pets.hgbundle", "cars.hgbundle", "--format", form, "-o", "device/")
        assert refused.exit_code == 2
        assert "device: holds backbone.onnx, backbone.xml; remove the one" in refused.stderr


def test_tasks_that_need_the_mask_and_tasks_that_do_not_take_turns(
    backbone: Backbone, folder: Path
) -> None:
    """Where nothing is shut out, OpenVINO runs the graph without its mask, which is faster."""
    predictor = Predictor(folder)
    shut = {
        name: read_task(folder / f"{name}.hgtask").tensors.mask.any() for name in predictor.tasks
    }
    assert set(shut.values()) == {True, False}
    images = np.random.default_rng(3).integers(0, 256, (2, 24, 24, 3), np.uint8)
    for bundle in [*tasks_of(backbone), *reversed(tasks_of(backbone))]:
        expected = log_softmax(reference_logits(bundle, backbone, images))
        found = predictor.task(bundle.task).logits(images)
        np.testing.assert_allclose(found, expected, atol=5e-4)
