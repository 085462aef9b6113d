"""A device folder: one backbone, tasks that are handed in, one model with the first folded in."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import onnxruntime as ort
import pytest
from command_line import run
from small_vits import make_backbone, make_bundle
from test_export_folded import of
from test_runtime_verify import keys as keys

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.tasks.task_file import read_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.device_folder import add_task, export_device
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.verify import reference_logits
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.verify import verify_model


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def named(bundle: Bundle, task: str) -> Bundle:
    return replace(bundle, task=task)


def tasks_of(backbone: Backbone) -> list[Bundle]:
    """Tasks with one prompt, with none and more classes, and with three of which one is none."""
    return [
        named(make_bundle(backbone, seed=1), "pets"),
        named(make_bundle(backbone, "none", seed=2, classes=7), "cars"),
        named(of(backbone, ("none", "deep", "short"), classes=5), "birds"),
    ]


def sources(bundles: Sequence[Bundle]) -> list[Source]:
    return [Source(Path(f"{bundle.task}.hgbundle"), bundle) for bundle in bundles]


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "device"
    export_device(sources(tasks_of(backbone)), backbone, folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "device"))


def test_each_task_gives_what_pytorch_gives(backbone: Backbone, folder: Path) -> None:
    predictor = Predictor(folder)
    assert predictor.tasks == ("birds", "cars", "pets")
    for bundle in tasks_of(backbone):
        task = predictor.task(bundle.task)
        images = np.random.default_rng(3).integers(
            0, 256, (5, *bundle.probe_images.shape[1:]), np.uint8
        )
        expected = log_softmax(reference_logits(bundle, backbone, images))
        np.testing.assert_allclose(task.logits(images), expected, atol=2e-4)
        assert task.classes == bundle.classes
        assert task.compare_probe().ok


def test_tasks_in_turns_and_in_threads_do_not_mix(backbone: Backbone, folder: Path) -> None:
    predictor = Predictor(folder)
    images = tasks_of(backbone)[0].probe_images[:2]
    alone = {name: predictor.task(name).logits(images) for name in predictor.tasks}
    wrong: list[str] = []

    def serve(name: str) -> None:
        for _ in range(20):
            if not np.array_equal(predictor.task(name).logits(images), alone[name]):
                wrong.append(name)

    threads = [Thread(target=serve, args=(name,)) for name in predictor.tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not np.allclose(alone["pets"][:, :4], alone["cars"][:, :4])


def test_a_plain_runtime_runs_the_default_task(backbone: Backbone, copy: Path) -> None:
    """Nothing of ours: the ten lines that others write."""
    session = ort.InferenceSession(copy / "default.onnx", providers=["CPUExecutionProvider"])
    bundle = tasks_of(backbone)[0]
    logits = session.run(["logits"], {"image": bundle.probe_images})[0]
    assert [given.name for given in session.get_inputs()] == ["image"]
    np.testing.assert_allclose(logits, log_softmax(bundle.probe_logits), atol=2e-4)
    assert Predictor(copy / "default.onnx").compare_probe().ok
    del session
    (copy / "backbone.weights").unlink()  # shared, so nothing runs without them
    with pytest.raises(Exception, match=r"backbone\.weights"):
        ort.InferenceSession(copy / "default.onnx", providers=["CPUExecutionProvider"])
    for path in (copy, copy / "default.onnx"):
        with pytest.raises(UserError, match=r"needs backbone\.weights beside it"):
            Predictor(path)


def test_the_head_on_the_features_gives_the_logits(backbone: Backbone, folder: Path) -> None:
    bundle = tasks_of(backbone)[0]
    features = Predictor(folder).task("pets").features(bundle.probe_images)
    tensors = read_task(folder / "pets.hgtask").tensors
    logits = log_softmax(features @ tensors.head_weight[0] + tensors.head_bias[0])
    np.testing.assert_allclose(logits, log_softmax(bundle.probe_logits), atol=2e-4)


@pytest.mark.parametrize("missing", ["prefix_k", "prefix_bias", "head_bias"])
def test_a_task_is_fed_completely_or_not_at_all(folder: Path, missing: str) -> None:
    device = DeviceFolder(folder)
    given = device.task("pets").tensors.inputs()
    images = device.task("pets").metadata.probe()[0]
    device.engine.run(images, given)
    with pytest.raises(ValueError, match="The model takes prefix_k"):
        device.engine.run(images, {name: x for name, x in given.items() if name != missing})
    other = {**given, missing: given[missing].astype(np.float64)}
    with pytest.raises(ValueError, match=missing):
        device.engine.run(images, other)


def test_numbers_of_tokens_and_prompts_may_change_between_runs(folder: Path) -> None:
    device = DeviceFolder(folder)
    tasks = [device.task(name) for name in device.tasks]
    shapes = {task.tensors.keys.shape[1:3] for task in tasks}
    assert len(shapes) == 3  # each has its own numbers of prompts and tokens
    assert all(device.check(task).ok for task in (*tasks, *reversed(tasks)))


def test_a_task_can_be_added_and_removed(backbone: Backbone, copy: Path) -> None:
    device = DeviceFolder(copy)
    bundle = named(make_bundle(backbone, seed=9, classes=3), "fruit")
    add_task(Source(Path("fruit.hgbundle"), bundle), backbone, copy, device.facts)
    assert device.task("fruit").name == "fruit"
    assert Predictor(copy).task("fruit").compare_probe().ok
    assert run("device", "remove", str(copy), "fruit").exit_code == 0
    assert "fruit" not in device.tasks


def test_a_changed_task_file_is_read_anew(backbone: Backbone, copy: Path) -> None:
    predictor = Predictor(copy)
    before = predictor.task("pets").classes
    facts = DeviceFolder(copy).facts
    other = named(make_bundle(backbone, seed=5, classes=6), "pets")
    add_task(Source(Path("pets.hgbundle"), other), backbone, copy, facts)
    assert predictor.task("pets").classes == other.classes != before


def test_verify_checks_a_task(copy: Path) -> None:
    checks = verify_model(copy / "pets.hgtask")
    assert all(check.ok is not False for check in checks)
    assert {"digest", "probe"} <= {check.name for check in checks if check.ok}
