"""Device folders in int8: scales from all tasks, and no task that loses too much."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from command_line import run
from small_vits import make_backbone, make_bundle
from test_export_int8 import spoiled
from toys import make_task

from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.tasks.task_file import read_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Task
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export import device_int8
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.device_graphs import Graphs, OnnxGraphs, OpenVinoGraphs
from hgprompt_edge.export.device_int8 import add_task_int8, export_device_int8
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.int8.quantize import Int8
from hgprompt_edge.export.int8.schemes import Scheme, onnx_schemes
from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.maths.reference import fit_reference
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.verify import verify_model

INT8 = OnnxGraphs(precision="int8")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def fitted(backbone: Backbone, name: str, seed: int, mode: str = "deep") -> tuple[Source, Task]:
    """A bundle whose head names the class of most images of a task."""
    bundle = replace(make_bundle(backbone, mode, seed=seed, classes=3), task=name)
    task = make_task(backbone, bundle.prompt)
    head = fit_head(
        extract_features(backbone, task.train.pixels, bundle.prompt),
        torch.tensor(task.train.labels),
        3,
        0,
    ).as_float32()
    probe = extract_features(backbone, bundle.probe_images, bundle.prompt).numpy()
    seen = extract_features(backbone, task.train.pixels, bundle.prompt).numpy()
    made = replace(
        bundle,
        classes=task.classes,
        split_digest=task.digest,
        head=head,
        reference=fit_reference(seen, task.train.labels, 3),
        probe_logits=probe @ head.weight.T + head.bias,
    )
    return Source(Path(f"{name}.hgbundle"), made), task


@pytest.fixture(scope="module")
def tasks(backbone: Backbone) -> list[tuple[Source, Task]]:
    return [fitted(backbone, "pets", 1), fitted(backbone, "cars", 2, "none")]


def write(
    backbone: Backbone,
    tasks: list[tuple[Source, Task]],
    folder: Path,
    graphs: Graphs = INT8,
    **options: Any,
) -> dict[str, Int8]:
    sources, images = zip(*tasks, strict=True)
    return export_device_int8(sources, images, backbone, folder, graphs, **options)


@pytest.fixture(scope="module")
def folder(
    backbone: Backbone, tasks: list[tuple[Source, Task]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "device"
    write(backbone, tasks, folder, max_drop=9)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "device"))


FORMATS = ["onnx", pytest.param("openvino", marks=pytest.mark.slow)]  # NNCF takes half a minute


@pytest.mark.parametrize("form", FORMATS)
def test_each_task_is_near_float32_and_says_what_it_loses(
    backbone: Backbone, tasks: list[tuple[Source, Task]], tmp_path: Path, form: str
) -> None:
    if form == "openvino":
        pytest.importorskip("nncf")
    graphs = INT8 if form == "onnx" else OpenVinoGraphs("int8")
    device, exact = tmp_path / "device", tmp_path / "float"
    results = write(backbone, tasks, device, graphs, max_drop=9)
    export_device([source for source, _ in tasks], backbone, exact)
    for source, task in tasks:
        name = source.bundle.task
        predictor, floating = Predictor(device).task(name), Predictor(exact).task(name)
        assert predictor.metadata.precision == "int8"
        pixels = task.test.pixels
        logits, wanted = predictor.logits(pixels), floating.logits(pixels)
        difference = np.abs(logits - wanted).max()
        assert 1e-3 < difference < 0.5 * np.abs(wanted).max()
        result = results[name]
        assert result.proven
        assert result.images == len(task.train) + len(task.validation)
        assert result.test is not None
        right = (logits.argmax(1) == task.test.labels).mean()
        assert result.test.accuracy == pytest.approx(right, abs=1.1 / len(pixels))
        recorded = predictor.metadata.quantization
        assert recorded["accuracy_fp32"] == result.float_accuracy
        seen = np.concatenate([task.train.pixels, task.validation.pixels])
        centres = []
        for one in (predictor, floating):
            features = one.features(seen)
            centres.append((features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0))
        assert predictor.reference is not None
        np.testing.assert_allclose(predictor.reference.centre, centres[0], atol=1e-4)
        assert np.abs(centres[0] - centres[1]).max() > 1e-3, "int8 gives other features"
        assert all(check.ok is not False for check in verify_model(device / f"{name}.hgtask"))
    default = device / ("default.onnx" if form == "onnx" else "default.xml")
    assert Predictor(default).metadata.precision == "int8"
    assert all(check.ok is not False for check in verify_model(default))
    names = [port.name for port in DeviceFolder(device).engine.inputs]
    assert names == [port.name for port in DeviceFolder(exact).engine.inputs]
    one, other = (Predictor(device).task(source.bundle.task) for source, _ in tasks)
    assert np.abs(one.logits(pixels) - other.logits(pixels)).max() > 0.1, "switching does nothing"


@pytest.mark.parametrize("scheme", onnx_schemes(2)[:2], ids=lambda scheme: scheme.name)
def test_no_scheme_takes_a_task_for_a_constant(
    backbone: Backbone, tasks: list[tuple[Source, Task]], tmp_path: Path, scheme: Scheme
) -> None:
    """The quantizer once renamed and dropped inputs that it took for weights."""

    def only(depth: int, given: Any) -> list[Scheme]:
        return [s for s in onnx_schemes(depth, given) if s.name == scheme.name]

    patch = pytest.MonkeyPatch()
    patch.setattr(device_int8, "onnx_schemes", only)
    with patch.context():
        write(backbone, tasks, tmp_path / "device", max_drop=30, accept_unproven=True)
    patch.undo()
    path = tmp_path / "device" / "backbone.onnx"
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds & {"MatMulInteger", "DequantizeLinear"}, "nothing is quantized"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = read_task(tmp_path / "device" / "pets.hgtask").tensors.inputs()
    assert {port.name for port in session.get_inputs()} == {"image", *given}
    image = tasks[0][1].test.pixels[:1]
    first = session.run(["logits"], {"image": image, **given})[0]
    for name in ("prefix_k", "prefix_v", "head_weight", "head_bias"):
        changed = {**given, name: given[name] * 1.5}
        other = session.run(["logits"], {"image": image, **changed})[0]
        assert np.abs(other - first).max() > 1e-4, name


def test_static_scales_come_from_the_images_of_all_tasks(
    backbone: Backbone, tasks: list[tuple[Source, Task]], tmp_path: Path
) -> None:
    seen: list[tuple[bytes, float]] = []

    def watching(_: int, given: Any) -> list[Scheme]:
        def keep(graph: Path, images: Any, path: Path) -> None:
            for image, one in zip(images, given, strict=True):
                seen.append((image.tobytes(), float(one["head_bias"].sum())))
            shutil.copy(graph, path)

        return [Scheme("float", keep)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_int8, "onnx_schemes", watching)
        write(backbone, tasks, tmp_path / "device", max_drop=9)
    for source, task in tasks:
        bias = read_task(tmp_path / "device" / f"{source.bundle.task}.hgtask").tensors.head_bias
        own = {image for image, total in seen if total == pytest.approx(float(bias.sum()))}
        train = {image.tobytes() for image in task.train.pixels}
        assert len(own) >= 32
        assert own <= train


def test_a_task_that_loses_too_much_is_named_and_nothing_is_written(
    backbone: Backbone,
    tasks: list[tuple[Source, Task]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_int8, "onnx_schemes", spoiled(1000, 900))
    with pytest.raises(CheckError, match=r"(pets|cars)\.hgtask: no int8 model keeps within"):
        write(backbone, tasks, tmp_path / "device", max_drop=2)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(device_int8, "onnx_schemes", spoiled(0))
    with pytest.raises(CheckError, match=r"pets\.hgtask: 195 held-out images are too few"):
        write(backbone, tasks, tmp_path / "device", max_drop=0.1)
    assert not list(tmp_path.iterdir())
    results = write(backbone, tasks, tmp_path / "device", max_drop=0.1, accept_unproven=True)
    assert not any(result.proven for result in results.values())


def test_a_task_is_added_only_if_it_holds_on_that_backbone(
    backbone: Backbone, copy: Path, tmp_path: Path
) -> None:
    facts = DeviceFolder(copy).facts
    source, images = fitted(backbone, "fruit", 3)
    result = add_task_int8(source, images, backbone, copy, facts, max_drop=9)
    assert result.proven
    task = Predictor(copy).task("fruit")
    assert task.compare_probe().ok
    assert task.metadata.quantization["tried"][-1]["drop"] == result.tried[-1].drop
    (copy / "fruit.hgtask").unlink()
    with pytest.raises(CheckError, match=r"fruit\.hgtask: 195 held-out images are too few"):
        add_task_int8(source, images, backbone, copy, facts, max_drop=0.1)
    # As if the backbone got none of its images right.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgprompt_edge.export.int8.tasks.TaskJudge._right", always_wrong)
        with pytest.raises(CheckError, match=r"fruit\.hgtask: no int8 model keeps within"):
            add_task_int8(source, images, backbone, copy, facts, max_drop=9)
    assert not (copy / "fruit.hgtask").exists()


def always_wrong(_: Any, __: Any, images: Any, ___: Any) -> Any:
    return np.zeros(len(images), bool)


def test_task_files_that_were_not_measured_on_it_are_refused(
    backbone: Backbone, tasks: list[tuple[Source, Task]], copy: Path, tmp_path: Path
) -> None:
    exact = tmp_path / "float"
    export_device([source for source, _ in tasks], backbone, exact)
    result = run("device", "add", str(copy), str(exact / "cars.hgtask"))
    assert result.exit_code == 2
    assert "its accuracy on this int8 backbone was never measured" in result.stderr
    shutil.copy(exact / "cars.hgtask", copy)
    with pytest.raises(UserError, match="was never measured"):
        Predictor(copy).task("cars")


def test_whoever_wants_to_adapt_is_sent_to_a_folder_in_float32(copy: Path) -> None:
    """An export with --adapt over this folder is refused, in int8 and in float."""
    result = run("state", "history", "--model", str(copy), "--task", "pets")
    assert result.exit_code == 2
    assert f"export the tasks of {copy} to another folder in float32 with --adapt" in result.stderr


def test_an_int8_task_runs_on_the_backbone_in_float32(
    backbone: Backbone, tasks: list[tuple[Source, Task]], copy: Path, tmp_path: Path
) -> None:
    exact = tmp_path / "float"
    export_device([tasks[0][0]], backbone, exact)
    assert run("device", "add", str(exact), str(copy / "cars.hgtask")).exit_code == 0
    task = Predictor(exact).task("cars")
    assert task.metadata.precision == "fp32"
    assert task.reference is None  # that is of int8
    result = run("monitor", "--model", str(exact), "--task", "cars")
    assert result.exit_code == 2
    assert "another backbone, such as one in int8; add its bundle to this folder" in result.stderr
    assert task.compare_probe().ok


def test_another_cpu_is_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hgprompt_edge.runtime.other_cpu.probe_logits",
        lambda engine, images, given=None: 5 * np.eye(len(images), 3, dtype=np.float32),
    )
    with pytest.warns(UserWarning, match="its accuracy here is unknown"):
        Predictor(copy).task("pets")
    checks = {check.name: check.ok for check in verify_model(copy / "pets.hgtask")}
    assert checks["cpu"] is False


def test_an_export_in_another_precision_does_not_replace_it(
    copy: Path, tasks: list[tuple[Source, Task]], tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    bundles = []
    for source, _ in tasks:
        bundles.append(tmp_path / f"{source.bundle.task}.hgbundle")
        write_bundle(bundles[-1], source.bundle)
    result = run("export", *map(str, bundles), "-o", str(copy))
    assert result.exit_code == 2
    expected = f"{copy}: holds a backbone in int8; add --precision int8, or name another folder"
    assert expected in " ".join(result.stderr.split())
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--data", "."), "--data: for a bundle and an int8 folder"),
        (("--max-drop", "3"), "--max-drop: for a bundle and an int8 folder"),
        (("--accept-unproven",), "--accept-unproven: for a bundle and an int8 folder"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    copy: Path, words: tuple[str, ...], text: str
) -> None:
    result = run("device", "add", str(copy), str(copy / "cars.hgtask"), *words)
    assert result.exit_code == 2
    assert text in result.stderr
