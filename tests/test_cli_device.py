"""Device folders on the command line, and what is refused of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from command_line import run
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_vits import make_backbone, make_bundle
from test_device_folder import backbone as backbone
from test_device_folder import copy as copy
from test_device_folder import folder as folder
from test_device_folder import named, sources, tasks_of
from test_export_folded import with_probe
from test_runtime_verify import keys as keys

from hgprompt_edge.artifacts.tasks.task_file import CONTENT, read_task, write_task
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.device_folder import add_task, export_device
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.runtime.classifier import load
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.prediction import Limits
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.watch import watch


def test_bundles_that_do_not_belong_together_are_refused_by_name(
    backbone: Backbone, tmp_path: Path
) -> None:
    pets, cars, _ = tasks_of(backbone)
    wide = replace(cars.preprocessing, resize=cars.preprocessing.resize + 8)
    cases = {
        "as that of": named(cars, "pets"),
        "one backbone": replace(cars, backbone_sha256="0" * 64),
        "resize": replace(cars, preprocessing=wide),
        "shallow": replace(make_bundle(backbone, "shallow"), task="cars"),
    }
    for words, other in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            export_device(
                [Source(Path("a.hgbundle"), pets), Source(Path("b.hgbundle"), other)],
                backbone,
                tmp_path / "device",
            )
        assert "b.hgbundle" in str(caught.value)
        assert not (tmp_path / "device").exists()


def test_a_task_of_another_backbone_is_refused_and_says_both(copy: Path, tmp_path: Path) -> None:
    other = make_backbone(seed=7)
    bundle = named(make_bundle(other), "ships")
    export_device([Source(Path("ships.hgbundle"), bundle)], other, tmp_path / "other")
    result = run("device", "add", str(copy), str(tmp_path / "other" / "ships.hgtask"))
    assert result.exit_code == 2
    assert bundle.backbone_sha256[:12] in result.stderr
    assert DeviceFolder(copy).facts.backbone_sha256[:12] in result.stderr
    assert not (copy / "ships.hgtask").exists()


def test_a_task_of_other_features_is_refused_where_the_width_is_the_same(
    backbone: Backbone, tmp_path: Path
) -> None:
    bundles = []
    for seed, pooling in enumerate(("token", "avg")):
        bundle = replace(make_bundle(backbone, seed=seed), task=pooling, pooling=pooling)
        bundles.append(with_probe(bundle, as_fitted(bundle, backbone)))
        export_device(sources(bundles[-1:]), backbone, tmp_path / pooling)
    with pytest.raises(UserError, match=r"avg\.hgbundle does not fit token\.hgbundle"):
        export_device(sources(bundles), backbone, tmp_path / "both")
    shutil.copy(tmp_path / "avg" / "avg.hgtask", tmp_path / "token")
    with pytest.raises(UserError, match="its head takes the features 'avg', not 'token'"):
        Predictor(tmp_path / "token").task("avg")


def test_damaged_tasks_and_folders_are_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "pets.hgtask"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "pets.hgtask" in run_predict(copy, "pets").stderr
    path.write_bytes(whole)
    arrays = load_file(path)
    arrays["head_bias"] = arrays["head_bias"] + 1
    save_file(arrays, path, metadata=dict(read_task(copy / "cars.hgtask").entries))
    assert "changed or damaged" in run_predict(copy, "pets").stderr
    path.write_bytes(whole)
    for name, text in (("hgprompt.task/2", "is newer than this hgedge reads"), ("x", "not a task")):
        save_file(arrays, path, metadata={"hgprompt.format": name})
        assert text in run_predict(copy, "pets").stderr
    path.write_bytes(whole)
    path.rename(copy / "dogs.hgtask")
    assert "holds the task pets" in run_predict(copy, "dogs").stderr
    weights = copy / "backbone.weights"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert "damaged" in run_predict(copy, "cars").stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no device folder" in run_predict(empty, "cars").stderr


def run_predict(folder: Path, task: str) -> Result:
    photo = folder.parent / "photo.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(photo)
    result = run("predict", "--model", str(folder), "--task", task, str(photo))
    assert result.exit_code == 2
    return result


def test_predict_reads_an_image_once_for_several_tasks(copy: Path) -> None:
    photo = copy.parent / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(photo)
    result = run(
        *("predict", "--model", str(copy), "--task", "cars", "--task", "pets", "--json"),
        str(photo),
    )
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["task"] for row in rows] == ["cars", "pets"]
    for row in rows:
        found = load(copy, task=row["task"])(photo)
        assert row["classes"][0]["label"] == found.label
    refused = run("predict", "--model", str(copy), str(photo))
    assert refused.exit_code == 2
    assert "choose with --task" in refused.stderr


def test_a_folder_is_written_whole_or_not_at_all(backbone: Backbone, tmp_path: Path) -> None:
    pets, cars, _ = tasks_of(backbone)
    broken = replace(cars, probe_logits=cars.probe_logits[:, ::-1] + 3)
    with pytest.raises(Exception, match="not equal to PyTorch"):
        export_device(sources([pets, broken]), backbone, tmp_path / "device")
    assert not (tmp_path / "device").exists()


def test_a_task_cannot_be_named_out_of_its_folder(backbone: Backbone, copy: Path) -> None:
    for name in ("../evil", "a/b", ".hidden", "default", "backbone"):
        bundle = named(make_bundle(backbone, seed=9), name)
        with pytest.raises(UserError, match="its task is called"):
            export_device([Source(Path("x.hgbundle"), bundle)], backbone, copy.parent / "new")
        with pytest.raises(UserError, match="has no task"):
            Predictor(copy).task(name)
    shutil.copy(copy / "cars.hgtask", copy.parent / "cars.hgtask")
    with pytest.raises(UserError, match="has no task"):
        Predictor(copy).task("../cars")


@pytest.mark.parametrize("task", ["", "../other/cars", "./cars", "default"])
def test_a_task_is_named_and_is_no_path_in_any_command(copy: Path, task: str) -> None:
    shutil.copytree(copy, copy.parent / "other")
    photo = copy.parent / "photo.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(photo)
    model = ("--model", str(copy), "--task", task)
    for words in (
        ("predict", *model, str(photo)),
        ("monitor", *model, str(photo)),
        ("state", "history", *model),
        ("adapt", *model, "--data", str(copy.parent)),
    ):
        result = run(*words)
        assert result.exit_code == 2, words
        assert f"not a task of {copy} (birds, cars, pets); name one" in result.stderr
    assert not list(copy.parent.rglob("*.state"))


def test_the_weights_of_default_onnx_are_checked(copy: Path) -> None:
    weights = copy / "backbone.weights"
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(UserError, match=r"damaged, or of another export than default\.onnx"):
        Predictor(copy / "default.onnx")


def test_the_task_of_default_onnx_is_neither_replaced_nor_removed(copy: Path) -> None:
    other = copy.parent / "other"
    other.mkdir()
    shutil.copy(copy / "pets.hgtask", other)
    for words in (("remove", str(copy), "pets"), ("add", str(copy), str(other / "pets.hgtask"))):
        result = run("device", *words)
        assert result.exit_code == 2
        assert "folded into default.onnx" in result.stderr


def test_a_broken_task_is_no_fault_of_the_others(copy: Path) -> None:
    photo = copy.parent / "photo.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(photo)
    (copy / "pets.hgtask").write_bytes(b"broken")
    result = run("predict", "--model", str(copy), "--task", "cars", str(photo))
    assert result.exit_code == 0, result.stderr


def test_a_model_of_one_task_takes_no_name_of_one(copy: Path) -> None:
    with pytest.raises(UserError, match=r"default\.onnx is a model of one task; leave it out"):
        load(copy / "default.onnx", task="pets")


def test_a_list_shows_a_broken_task_and_how_to_remove_it(copy: Path) -> None:
    (copy / "cars.hgtask").write_bytes(b"broken")
    result = run("device", "list", str(copy))
    assert result.exit_code == 2
    assert "pets (in default.onnx)" in result.stdout
    assert "birds" in result.stdout
    assert "(broken)" in next(line for line in result.stdout.splitlines() if "cars" in line)
    assert "cars cannot be used" in result.stderr
    rows = json.loads(run("device", "list", str(copy), "--json").stdout)["tasks"]
    assert {row["task"]: bool(row["error"]) for row in rows} == {
        "birds": False, "cars": True, "pets": False,
    }  # fmt: skip
    command = result.stderr.partition("`hgedge ")[2].partition("`")[0]
    assert run(*command.split()).exit_code == 0
    (copy / "default.onnx").unlink()
    result = run("device", "list", str(copy))
    assert result.exit_code == 0
    assert "default.onnx" not in result.stdout
    rows = json.loads(run("device", "list", str(copy), "--json").stdout)["tasks"]
    assert not any(row["default"] for row in rows)


def test_a_task_without_probabilities_is_named(copy: Path) -> None:
    photo = copy.parent / "photo.png"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(photo)
    task = read_task(copy / "birds.hgtask")
    huge = replace(task.tensors, head_weight=np.full_like(task.tensors.head_weight, 3e38))
    entries = {name: text for name, text in task.entries.items() if name != CONTENT}
    write_task(copy / "birds.hgtask", huge, entries, task.reference)
    words = ("--task", "cars", "--task", "birds", str(photo))
    result = run("predict", "--model", str(copy), *words)
    assert result.exit_code == 2
    assert "task birds" in result.stderr
    assert "cars" in result.stdout


def test_a_folder_is_no_model_where_it_serves_several(copy: Path) -> None:
    for words in (("verify", str(copy)), ("bench", str(copy))):
        result = run(*words)
        assert result.exit_code == 2
        assert "name one, such as" in result.stderr


def test_watching_takes_the_limits_and_a_replaced_task(backbone: Backbone, copy: Path) -> None:
    folder = copy.parent / "seen"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name)
    predictor, facts = Predictor(copy).task("pets"), DeviceFolder(copy).facts
    seen = watch(predictor, folder, limits=Limits(min_confidence=1.0), sleep=lambda _: None)
    first, _ = next(seen)
    assert first.unknown
    other = named(make_bundle(backbone, seed=5, classes=6), "pets")
    other = replace(other, classes=tuple(f"new{i}" for i in range(6)))
    add_task(Source(Path("pets.hgbundle"), other), backbone, copy, facts)
    second, _ = next(seen)
    assert second.labels[0][0].startswith("new")
