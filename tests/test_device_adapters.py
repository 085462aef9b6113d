"""Adapter files of ONNX Runtime: what the task gives, and NaN where there is none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from shlex import quote, split

import numpy as np
import onnxruntime as ort
import pytest
from command_line import run
from PIL import Image
from safetensors.numpy import load_file
from small_vits import make_backbone, make_mixable
from test_device_folder import named, sources, tasks_of
from test_export_folded import of

from hgprompt_edge.artifacts.tasks.task_tensors import NAMES
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.device_graphs import OpenVinoGraphs
from hgprompt_edge.maths.softmax import log_softmax
from hgprompt_edge.runtime.adapters import write_adapters
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "many-tasks.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = make_backbone()
    folder = tmp_path_factory.mktemp("adapters") / "device"
    bundles = [
        named(make_mixable(backbone, seed=4), "weather4"),
        named(make_mixable(backbone, "none", seed=5), "cars"),
        named(of(backbone, ("none", "deep", "short"), classes=7), "birds"),
    ]
    export_device(sources(bundles), backbone, folder, adapt=True)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "device"))


def with_adapters(*paths: Path) -> tuple[ort.RunOptions, list[ort.LoraAdapter]]:
    options, adapters = ort.RunOptions(), []
    for path in paths:
        adapters.append(ort.LoraAdapter())
        adapters[-1].Load(str(path))
        options.add_active_adapter(adapters[-1])
    return options, adapters


def test_adapters_give_what_the_task_gives_bit_for_bit(copy: Path) -> None:
    result = run("device", "adapters", str(copy))
    assert result.exit_code == 0, result.stderr
    session = ort.InferenceSession(copy / "adapters.onnx")
    device = Predictor(copy)
    images = device.metadata.probe()[0]
    for name in ("weather4", "cars", "birds", "weather4"):
        options, _kept = with_adapters(copy / f"{name}.onnx_adapter")
        logits, features = session.run(None, {"image": images}, options)
        np.testing.assert_array_equal(logits, device.task(name).logits(images))
        np.testing.assert_array_equal(features, device.task(name).features(images))


def test_without_an_adapter_or_with_a_part_of_one_there_is_no_answer(copy: Path) -> None:
    write_adapters(copy)
    session = ort.InferenceSession(copy / "adapters.onnx")
    images = Predictor(copy).metadata.probe()[0]
    assert np.isnan(session.run(["logits"], {"image": images})[0]).all()
    tensors = load_file(copy / "weather4.hgtask")
    for missing in NAMES:
        adapter = ort.AdapterFormat()
        adapter.set_parameters(
            {n: ort.OrtValue.ortvalue_from_numpy(tensors[n]) for n in NAMES if n != missing}
        )
        adapter.export_adapter(str(copy / "part.onnx_adapter"))
        options, _kept = with_adapters(copy / "part.onnx_adapter")
        try:
            found = session.run(["logits"], {"image": images}, options)[0]
        except Exception:  # sizes that do not fit: no answer, either
            continue
        assert np.isnan(found).all(), missing


def test_the_script_of_the_guide_runs(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapters(copy)
    script = next(
        block
        for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
        if "onnx_adapter" in block
    )
    assert len([line for line in script.splitlines() if line]) <= 12
    assert "hgprompt" not in script
    monkeypatch.chdir(copy.parent)
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save("photo.jpg")
    exec(compile(script, "guide", "exec"), {})
    pixels = np.asarray(Image.open("photo.jpg").convert("RGB"))[None]
    wanted = Predictor(copy).task("weather4").logits(pixels).argmax()
    assert capsys.readouterr().out.strip() == str(wanted)


def test_adapters_hold_what_was_learned_and_go_when_the_task_changes(copy: Path) -> None:
    write_adapters(copy)
    task = Predictor(copy / "weather4.hgtask")
    bank = task.require_bank()
    mix, bias = np.roll(bank.initial, 1), bank.head.bias + 2 * np.arange(len(bank.head.bias))
    with open_history(copy / "weather4.state", bank, task.metadata) as history:
        history.commit(mix, method="labelled", images=9, figures={}, head_bias=bias)
    result = run("device", "adapters", str(copy))
    assert "weather4.onnx_adapter" in result.stdout
    assert "version 2" in result.stdout
    session = ort.InferenceSession(copy / "adapters.onnx")
    options, _kept = with_adapters(copy / "weather4.onnx_adapter")
    images = task.metadata.probe()[0]
    served = Predictor(copy).task("weather4").logits(images)
    found = session.run(["logits"], {"image": images}, options)[0]
    np.testing.assert_allclose(found, log_softmax(served), atol=1e-5)
    undone = run("state", "reset", "--model", str(copy), "--task", "weather4")
    assert "holds the weights of before" in " ".join(undone.stderr.split())
    removed = run("device", "remove", str(copy), "cars")
    assert "cars.onnx_adapter, made before" in " ".join(removed.stderr.split())
    assert not (copy / "cars.onnx_adapter").exists()


def test_tasks_that_fit_into_no_adapter_are_named_and_the_others_written(
    tmp_path: Path, folder: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "my device"))
    write_adapters(copy)
    task = Predictor(copy / "birds.hgtask")
    bank = task.require_bank()
    with open_history(copy / "birds.state", bank, task.metadata) as history:
        bias = np.arange(len(bank.head.bias), dtype=np.float32)
        history.commit(bank.initial, method="labelled", images=9, figures={}, head_bias=bias)
    (copy / "cars.hgtask").write_bytes(b"broken")
    result = run("device", "adapters", str(copy))
    assert result.exit_code == 2
    assert "weather4.onnx_adapter" in result.stdout
    assert "its learned bias comes on top of several folded prompts" in result.stderr
    assert "cars.hgtask: " in result.stderr
    assert f"{copy}: no adapter for birds, cars; the others were written" in result.stderr
    assert sorted(path.name for path in copy.glob("*.onnx_adapter")) == ["weather4.onnx_adapter"]
    assert f"`hgedge device adapters {quote(str(copy))}`" in result.stderr  # of the old ones
    found = json.loads(run("device", "adapters", str(copy), "--json").stdout)
    assert sorted(found["failed"]) == ["birds", "cars"]
    command = result.stderr.partition("run `hgedge ")[2].partition("`")[0]
    assert run(*split(command)).exit_code == 0
    (copy / "cars.hgtask").unlink()
    assert run("device", "adapters", str(copy)).exit_code == 0


def test_folders_for_openvino_have_no_adapters(tmp_path: Path) -> None:
    backbone = make_backbone()
    export_device(sources(tasks_of(backbone)[:1]), backbone, tmp_path / "ov", OpenVinoGraphs())
    result = run("device", "adapters", str(tmp_path / "ov"))
    assert result.exit_code == 2
    assert "adapters are of ONNX Runtime" in result.stderr
