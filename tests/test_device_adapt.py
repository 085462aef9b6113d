"""Tasks of a device folder that adapt: as a model does, each by itself, one bank for all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from PIL import Image
from planted import Planted, known_statistics
from small_vits import make_backbone, make_mixable, token_features
from test_device_folder import named, sources
from test_export_folded import of, with_probe

import hgprompt_edge
from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.tasks_gradient import TasksAdaptGraph
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.artifacts.tasks.folder_bank import count_prompts
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.device_folder import add_task, export_device
from hgprompt_edge.export.device_graphs import OpenVinoGraphs
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor

TASKS = ("pets", "cars", "birds")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


def wide(backbone: Backbone) -> Bundle:
    """A task whose head also sees the mean of the patch tokens, and that started from no prompt."""
    bundle = replace(make_mixable(backbone.with_pooling("both"), "none", seed=7), task="cars")
    return with_probe(bundle, as_fitted(bundle, backbone))


def others(backbone: Backbone) -> list[Bundle]:
    """Tasks beside the planted one: wide features, and several folded prompts."""
    return [wide(backbone), named(of(backbone, ("none", "deep", "short"), classes=5), "birds")]


@pytest.fixture(scope="module")
def folder(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "device"
    bundles = [planted.bundle, *others(planted.backbone)]
    export_device(sources(bundles), planted.backbone, folder, adapt=True)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "device"))


@pytest.fixture
def seen(planted: Planted, tmp_path: Path) -> Path:
    """What the device has seen, sorted into class folders."""
    return planted.write_seen(tmp_path / "seen")


def adapt(*words: str) -> dict[str, Any]:
    result = run("adapt", "--json", "--steps", "8", *words)
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("how", [(), ("--head", "weights"), ("--method", "cma")])
def test_a_task_learns_what_the_model_alone_learns(
    planted: Planted, copy: Path, seen: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    device = Predictor(copy)
    before = {name: device.task(name).logits(planted.images) for name in device.tasks}
    alone = adapt(
        "--model", str(planted.path), "--state", str(tmp_path / "s"), "--data", str(seen), *how
    )
    found = adapt("--model", str(copy), "--task", "pets", "--data", str(seen), *how)
    assert found["taken"] == alone["taken"] is True
    mixes = [list(one["version"]["weights"].values()) for one in (found, alone)]
    np.testing.assert_allclose(*mixes, atol=1e-5)
    assert found["version"]["weights"].keys() == alone["version"]["weights"].keys()
    assert abs(found["log_loss_after"] - alone["log_loss_after"]) < 2e-3
    after = {name: Predictor(copy).task(name).logits(planted.images) for name in device.tasks}
    assert not np.allclose(after["pets"], before["pets"], atol=1e-2)
    for name in ("cars", "birds"):
        np.testing.assert_array_equal(after[name], before[name])
        assert not (copy / f"{name}.state").exists()
    learned = Predictor(planted.path, state=tmp_path / "s").probabilities(planted.images)
    served = device.task("pets").probabilities(planted.images)  # one that was open all the time
    np.testing.assert_allclose(served, learned, atol=1e-4)


def test_gradients_are_those_of_the_model_alone(planted: Planted, copy: Path) -> None:
    """Also where the features of the folder are wider, and the model alone is an entry."""
    for bundle in (planted.bundle, wide(planted.backbone)):
        path = copy / f"{bundle.task}.onnx"
        export_onnx(bundle, planted.backbone, path, runtime_weights=True, adapt=True)
        bank, task = Predictor(path).bank, Predictor(copy / f"{bundle.task}.hgtask")
        assert bank is not None
        assert task.bank is not None
        graph = TasksAdaptGraph(adapt_path(task.path), task.bank, bundle.backbone_sha256, threads=1)
        labels = np.eye(len(bundle.classes), dtype=np.float32)[[0, 1, 2]]
        mix = np.random.default_rng(1).dirichlet(np.ones(len(bank.names)))
        steps = [
            each(planted.images[:3], labels, mix)
            for each in (graph, AdaptGraph(adapt_path(path), bank, threads=1))
        ]
        for name in ("loss", "features", "d_weight", "d_bias"):
            np.testing.assert_allclose(*(getattr(step, name) for step in steps), atol=1e-4)
        # On the simplex: what all entries get alike moves nothing.
        np.testing.assert_allclose(*(s.d_mix - mix @ s.d_mix for s in steps), atol=1e-4)


def test_the_graph_of_the_gradient_shares_weights(folder: Path) -> None:
    graph = onnx.load(folder / "adapt.onnx", load_external_data=False).graph
    outside = {tensor.name for tensor in graph.initializer if tensor.external_data}
    for name in ("mlp.fc1.weight", "mlp.fc2.weight"):
        assert {f"blocks.0.{name}", f"blocks.1.{name}"} <= outside


@pytest.mark.parametrize("task", ["birds", "none"])
def test_where_no_mix_can_move_the_head_does(
    planted: Planted, copy: Path, tmp_path: Path, task: str
) -> None:
    bundle = others(planted.backbone)[1]
    if task == "none":
        bundle = replace(
            make_mixable(planted.backbone, "none"), task=task, conditions=(), condition_tokens=None,
            sources=(), source_tokens=None, weights=np.zeros(0, np.float32),
            learned_weights=np.zeros(0, np.float32),
        )  # fmt: skip
        add_task(sources([bundle])[0], planted.backbone, copy, DeviceFolder(copy).facts)
    model = tmp_path / f"{task}.onnx"
    export_onnx(bundle, planted.backbone, model, runtime_weights=True, adapt=True)
    data = tmp_path / "data"
    wanted = np.roll(Predictor(model).logits(planted.images).argmax(1), 1)
    for index, (image, label) in enumerate(zip(planted.images, wanted, strict=True)):
        (data / bundle.classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(data / bundle.classes[label] / f"{index}.png")
    alone = adapt("--model", str(model), "--data", str(data), "--state", str(tmp_path / "s"))
    found = adapt("--model", str(copy), "--task", task, "--data", str(data))
    assert found["taken"] == alone["taken"]
    assert abs(found["log_loss_after"] - alone["log_loss_after"]) < 1e-4
    learned = Predictor(model, state=tmp_path / "s").probabilities(planted.images)
    np.testing.assert_allclose(
        Predictor(copy).task(task).probabilities(planted.images), learned, atol=1e-4
    )


def test_learn_look_back_and_undo(planted: Planted, copy: Path, seen: Path) -> None:
    photo = str(next(seen.rglob("*.png")))
    words = ("predict", "--model", str(copy), "--json", photo, "--task", "cars", "--task", "pets")
    initial = json.loads(run(*words).stdout)
    adapt("--model", str(copy), "--task", "pets", "--data", str(seen))
    model = ("--model", str(copy), "--task", "pets")
    assert [v["method"] for v in json.loads(run("state", "history", *model, "--json").stdout)] == [
        "initial", "labelled",
    ]  # fmt: skip
    learned = json.loads(run(*words).stdout)
    assert learned[0] == initial[0]
    assert learned[1] != initial[1]
    found = hgprompt_edge.load(copy, task="pets")(photo)
    assert found.probability == pytest.approx(learned[1]["classes"][0]["probability"], abs=1e-6)
    live = Predictor(copy)
    assert live.task("pets").version is not None
    assert live.task("pets").version.id == 2  # type: ignore[union-attr]
    assert run("state", "rollback", *model).exit_code == 0
    assert live.task("pets").version.id == 3  # type: ignore[union-attr]
    assert json.loads(run(*words).stdout) == initial
    sent = copy.parent / "v.json"
    assert run("state", "send", str(sent), *model).exit_code == 0
    assert run("state", "reset", *model).exit_code == 0
    for refused in (
        ("state", "history", "--model", str(copy)),
        ("adapt", "--model", str(copy), "--data", str(seen)),
    ):
        result = run(*refused)
        assert result.exit_code == 2
        assert "choose with --task" in result.stderr


def test_a_file_in_place_of_a_state_folder_is_named(copy: Path, seen: Path) -> None:
    """No option was given, so none is named as wrong."""
    (copy / "pets.state").write_bytes(b"mine")
    photo, model = str(next(seen.rglob("*.png"))), ("--model", str(copy), "--task", "pets")
    for words in (
        ("predict", *model, photo),
        ("predict", *model, "--task", "cars", photo),
        ("state", "history", *model),
        ("adapt", *model, "--data", str(seen)),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert f"hgedge: {copy / 'pets.state'}: a file, where the folder" in result.stderr
        assert "move it away or name another folder with --state" in result.stderr
    with pytest.raises(UserError, match=r"pets\.state: a file, where"):
        hgprompt_edge.load(copy, task="pets")
    assert (copy / "pets.state").read_bytes() == b"mine"
    assert run("predict", "--model", str(copy), "--task", "cars", photo).exit_code == 0


def test_what_another_task_has_learned_is_refused(planted: Planted, tmp_path: Path) -> None:
    """Tasks of the same classes on the same sources, such as good and bad of two products."""
    bundles = [planted.bundle, named(planted.bundle, "dogs")]
    device = tmp_path / "device"
    export_device(sources(bundles), planted.backbone, device, adapt=True)
    pets = Predictor(device / "pets.hgtask")
    state = device / "pets.state"
    with open_history(state, pets.require_bank(), pets.metadata) as history:
        with history.exclusive():  # another task is no other's business
            words = ("state", "history", "--model", str(device), "--task")
            assert run(*words, "dogs").exit_code == 0
        result = run(*words, "dogs", "--state", str(state))
        assert result.exit_code == 2
        assert "another task than 'dogs'" in result.stderr
    both = (
        "predict",
        "--model",
        str(device),
        "--task",
        "pets",
        "--task",
        "dogs",
        "--state",
        str(state),
    )
    Image.fromarray(planted.images[0]).save(tmp_path / "a.png")
    result = run(*both, str(tmp_path / "a.png"))
    assert result.exit_code == 2
    assert "give one --task" in result.stderr
    assert count_prompts(device / "bank.safetensors") == 3  # not six
    dogs, other = (Predictor(device).task(name).require_bank() for name in ("dogs", "pets"))
    assert dogs.sha256 == other.sha256


def test_a_bank_is_in_memory_once(planted: Planted, copy: Path) -> None:
    device = Predictor(copy)
    folder = device.device_folder
    assert folder is not None
    held = folder.bank_of(folder.task("pets"))
    device.task("cars")
    assert folder.bank_of(folder.task("cars")) is held
    assert held is not None
    mixer = device.task("pets").require_bank().mixer
    assert mixer is not None
    own = [array for pair in held.prompts.values() for array in pair]
    for rows in (mixer.keys, mixer.values):
        for array in rows._arrays:  # type: ignore[union-attr]
            assert any(array is each for each in own)


def test_tasks_come_and_go_with_their_prompts(
    planted: Planted, copy: Path, tmp_path: Path, fill_disk: Any
) -> None:
    bank = copy / "bank.safetensors"
    count, before = count_prompts(bank), Predictor(copy).task("pets").logits(planted.images[:2])
    bundle = named(make_mixable(planted.backbone, seed=20), "fruit")
    facts = DeviceFolder(copy).facts
    fill_disk(2)  # after the bank, before the task
    with pytest.raises(UserError, match="the disk is full"):
        add_task(Source(Path("fruit.hgbundle"), bundle), planted.backbone, copy, facts)
    assert set(Predictor(copy).tasks) == {"pets", "cars", "birds"}
    np.testing.assert_array_equal(Predictor(copy).task("pets").logits(planted.images[:2]), before)
    add_task(Source(Path("fruit.hgbundle"), bundle), planted.backbone, copy, facts)
    assert count_prompts(bank) == count + 3
    assert Predictor(copy).task("fruit").compare_probe().ok
    # The file of another folder brings its prompts along, if its bank lies beside it.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(copy / "fruit.hgtask", alone)
    assert run("device", "remove", str(copy), "fruit").stdout.splitlines() == [
        f"{copy / 'fruit.hgtask'}: removed",
        f"{bank}: 3 prompts dropped that no task mixes",
    ]
    assert count_prompts(bank) == count
    add = ("device", "add", str(copy), str(alone / "fruit.hgtask"))
    result = run(*add)
    assert result.exit_code == 2
    assert "mixes prompts that" in result.stderr
    add_task(Source(Path("fruit.hgbundle"), bundle), planted.backbone, copy, facts)
    shutil.copy(bank, alone)
    (copy / "fruit.state").mkdir()
    assert "fruit.state: kept" in run("device", "remove", str(copy), "fruit").stderr
    assert run(*add).exit_code == 0
    assert count_prompts(bank) == count + 3
    rows = json.loads(run("device", "list", str(copy), "--json").stdout)["tasks"]
    assert all(row["adapts"] for row in rows)


def test_a_bundle_without_its_sources_is_refused(planted: Planted, copy: Path) -> None:
    bundle = named(replace(planted.bundle, source_tokens=None), "fruit")
    facts = DeviceFolder(copy).facts
    with pytest.raises(UserError, match=r"fruit\.hgbundle: cannot be adapted"):
        add_task(Source(Path("fruit.hgbundle"), bundle), planted.backbone, copy, facts)
    with pytest.raises(UserError, match=r"fruit\.hgbundle: cannot be adapted"):
        export_device(sources([bundle]), planted.backbone, copy.parent / "new", adapt=True)
    assert not (copy.parent / "new").exists()


def test_a_folder_that_was_not_exported_for_it_names_the_command(
    planted: Planted, seen: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    export_device(sources([planted.bundle]), planted.backbone, plain)
    result = run("adapt", "--model", str(plain), "--task", "pets", "--data", str(seen))
    assert result.exit_code == 2
    assert f"export the tasks of {plain} again with --adapt" in " ".join(result.stderr.split())
    # A task that can be adapted takes its prompts along to a folder that had none.
    (plain / "default.onnx").unlink()
    export_device(sources([planted.bundle]), planted.backbone, tmp_path / "new", adapt=True)
    added = run("device", "add", str(plain), str(tmp_path / "new" / "pets.hgtask"))
    assert added.exit_code == 0, added.stderr
    found = adapt("--model", str(plain), "--task", "pets", "--data", str(seen), "--method", "cma")
    assert found["taken"]
    result = run("adapt", "--model", str(plain), "--task", "pets", "--data", str(seen))
    assert result.exit_code == 2
    assert "adapt.onnx: no such file" in result.stderr


def test_damaged_or_foreign_files_get_one_sentence(
    planted: Planted, copy: Path, seen: Path
) -> None:
    other = make_backbone(seed=9)
    bundle = named(make_mixable(other), "pets")
    foreign = copy.parent / "foreign"
    export_device(sources([bundle]), other, foreign, adapt=True)
    bank, graph = copy / "bank.safetensors", copy / "adapt.onnx"
    whole = {path: path.read_bytes() for path in (bank, graph)}
    changed = bytearray(whole[bank])
    changed[-5] ^= 1
    cases = (
        (bank, None, "no such file"),
        (bank, whole[bank][:-100], "truncated"),
        (bank, bytes(changed), "damaged bank"),
        (bank, (foreign / bank.name).read_bytes(), "it was made for the backbone"),
        (graph, (foreign / graph.name).read_bytes(), "it was made for the backbone"),
        (graph, whole[graph][:500], "adapt.onnx"),
    )
    for path, content, words in cases:
        path.unlink() if content is None else path.write_bytes(content)
        result = run("adapt", "--model", str(copy), "--task", "pets", "--data", str(seen))
        assert result.exit_code == 2, words
        assert words in " ".join(result.stderr.split())
        assert not (copy / "pets.state").exists()
        path.write_bytes(whole[path])


def test_without_labels_as_the_model_alone(planted: Planted, tmp_path: Path) -> None:
    """The statistics are those that the condition prompt would bring back."""
    target = replace(planted.bundle, prompt=planted.bundle.condition_tokens[0].astype(np.float32))  # type: ignore[index]
    features = token_features(target, planted.backbone, planted.images)
    clean = known_statistics(features.mean(0), features.var(0), len(planted.bundle.classes))
    bundle = replace(planted.bundle, clean=clean)
    model, device = tmp_path / "pets.onnx", tmp_path / "device"
    export_onnx(bundle, planted.backbone, model, runtime_weights=True, adapt=True)
    export_device(sources([bundle, wide(planted.backbone)]), planted.backbone, device, adapt=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, image in enumerate(planted.images):
        Image.fromarray(image).save(photos / f"{index}.png")
    words = ("--data", str(photos), "--unlabelled")
    alone = adapt("--model", str(model), *words)
    found = adapt("--model", str(device), "--task", "pets", *words)
    assert found["taken"] == alone["taken"]
    assert found["distance_before"] == pytest.approx(alone["distance_before"], rel=1e-3)
    assert found["distance_after"] == pytest.approx(alone["distance_after"], rel=1e-2)


def test_a_folder_for_openvino_adapts_alike(
    planted: Planted, copy: Path, seen: Path, tmp_path: Path
) -> None:
    device = tmp_path / "ov"
    graphs = OpenVinoGraphs()
    export_device(sources([planted.bundle]), planted.backbone, device, graphs, adapt=True)
    alone = adapt("--model", str(copy), "--task", "pets", "--data", str(seen))
    found = adapt("--model", str(device), "--data", str(seen))
    assert found["taken"] is True
    mixes = [list(one["version"]["weights"].values()) for one in (found, alone)]
    np.testing.assert_allclose(*mixes, atol=1e-4)
    served = [
        Predictor(each).task("pets").probabilities(planted.images[:9]) for each in (device, copy)
    ]
    np.testing.assert_allclose(*served, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.4, 1.2, 2.0])
def test_killed_while_it_adapts_all_tasks_stay_valid(
    planted: Planted, copy: Path, seen: Path, seconds: float
) -> None:
    before = {name: Predictor(copy).task(name).logits(planted.images[:2]) for name in TASKS}
    words = ("adapt", "--model", str(copy), "--task", "pets", "--data", str(seen), "--threads", "1")
    command = [sys.executable, "-m", "hgprompt_edge.cli.main", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
    for name in TASKS:
        task = Predictor(copy).task(name)
        if name != "pets" or (task.version is not None and task.version.id == 1):
            np.testing.assert_array_equal(task.logits(planted.images[:2]), before[name])
    found = adapt("--model", str(copy), "--task", "pets", "--data", str(seen))
    assert found["version"]["id"] in (2, 3)  # nothing is locked, nothing is damaged
