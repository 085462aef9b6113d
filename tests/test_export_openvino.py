"""OpenVINO: PyTorch's logits for every family; two files or none; words for what fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_vits import FAMILIES, make_backbone, make_bundle
from typer.testing import CliRunner, Result

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export import openvino_file
from hgprompt_edge.export.graph.body import attach_head
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.openvino_file import Precision, add_metadata, export_openvino
from hgprompt_edge.features.cache import cache_size, clear_cache
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.parity import compare
from hgprompt_edge.runtime.bench import file_bytes
from hgprompt_edge.runtime.engines.openvino_engine import computes_bf16
from hgprompt_edge.runtime.predictor import Predictor

ov = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def bundle(backbone: Backbone) -> Bundle:
    return make_bundle(backbone)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, backbone: Backbone) -> Path:
    path = tmp_path_factory.mktemp("ir") / "pets.xml"
    export_openvino(bundle, backbone, path)
    return path


# Compiling takes a second each: the other forms of the prompt run in full with -m slow.
SLOW = [pytest.param(f, m, marks=pytest.mark.slow) for f in FAMILIES for m in ("shallow", "none")]
DEEP = [(family, "deep") for family in FAMILIES]
FAST = [("registers", "shallow"), ("average", "shallow"), ("dinov2", "none")]


@pytest.mark.parametrize(("family", "mode"), [*DEEP, *FAST, *SLOW])
def test_logits_are_those_of_pytorch(tmp_path: Path, family: str, mode: str) -> None:
    backbone = make_backbone(family)
    bundle = make_bundle(backbone, mode)
    verification = export_openvino(bundle, backbone, tmp_path / "m.xml")
    assert verification.ok
    assert verification.runtime.startswith("openvino ")
    assert {p.name for p in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    predictor = Predictor(tmp_path / "m.xml", threads=1)
    assert predictor.metadata.classes == bundle.classes
    for batch in (1, 2, 7):
        logits = predictor.logits(bundle.probe_images[:batch])
        assert compare(logits, bundle.probe_logits[:batch]).ok
    assert predictor.compare_probe().ok


def test_float16_halves_the_file_and_is_near(
    tmp_path: Path, model: Path, bundle: Bundle, backbone: Backbone
) -> None:
    path = tmp_path / "half.xml"
    verification = export_openvino(bundle, backbone, path, precision=Precision.FP16)
    assert 0 < verification.max_abs_diff < verification.bound
    assert verification.bound == pytest.approx(1e-2 * np.abs(bundle.probe_logits).max())
    weights = [p.with_suffix(".bin").stat().st_size for p in (path, model)]
    assert weights[0] < 0.55 * weights[1]
    assert file_bytes(path) == weights[0] + path.stat().st_size
    logits = Predictor(path).logits(bundle.probe_images)
    assert compare(logits, bundle.probe_logits, 1e-2).ok


def test_a_wrong_graph_leaves_both_old_files(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    path = tmp_path / "m.xml"
    export_openvino(bundle, backbone, path)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    changed = replace(
        bundle, head=replace(bundle.head, weight=bundle.head.weight * np.float32(1.01))
    )
    with pytest.raises(CheckError, match=r"from the logits that fit stored.*nothing was written"):
        export_openvino(changed, backbone, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("old", [True, False])
def test_both_files_take_their_names_or_neither(
    tmp_path: Path,
    bundle: Bundle,
    backbone: Backbone,
    fill_disk: Callable[[int], None],
    old: bool,
    fails_at: int,
) -> None:
    path = tmp_path / "m.xml"
    if old:
        export_openvino(make_bundle(backbone, seed=1), backbone, path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    fill_disk(fails_at)
    with pytest.raises(UserError, match="the disk is full"):
        export_openvino(bundle, backbone, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert bool(before) == old


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_disk_that_is_full_under_openvino_is_one_sentence(
    tmp_path: Path,
    bundle: Bundle,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    full_disk(monkeypatch, "save_model", fails_at)
    with pytest.raises(UserError, match=r"m\.bin: the disk is full; nothing was written, free"):
        export_openvino(bundle, backbone, tmp_path / "m.xml")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_told_in_every_step(
    tmp_path: Path, model: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What int8 does to a body: its head, and the metadata."""
    copy = damaged(tmp_path, model, "nothing")
    full_disk(monkeypatch, "serialize", 1)
    with pytest.raises(OSError, match="No space left"):
        add_metadata(copy, {})
    full_disk(monkeypatch, "save_model", 1)
    width = np.eye(len(bundle.classes), dtype=np.float32)
    with pytest.raises(OSError, match="No space left"):
        attach_head(copy, [Head(width, width[0])])


def full_disk(monkeypatch: pytest.MonkeyPatch, writer: str, fails_at: int) -> None:
    """OpenVINO's way to say it, at the so many-th call."""
    honest, calls = getattr(ov, writer), []

    def write(*words: Any, **options: Any) -> None:
        calls.append(words)
        if len(calls) == fails_at:
            raise RuntimeError("basic_ios::clear: iostream error")
        honest(*words, **options)

    monkeypatch.setattr(ov, writer, write)


def damaged(folder: Path, model: Path, what: str) -> Path:
    copy = folder / "m.xml"
    copy.write_bytes(model.read_bytes())
    weights = bytearray(model.with_suffix(".bin").read_bytes())
    if what == "weights changed":
        weights[100] ^= 1
    if what != "weights missing":
        copy.with_suffix(".bin").write_bytes(weights)
    if what == "graph cut":
        copy.write_bytes(model.read_bytes()[:5000])
    if what == "foreign":
        ov.save_model(ov.Core().read_model(foreign(folder)), copy)
    return copy


def foreign(folder: Path) -> Path:
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "f.onnx")
    return folder / "f.onnx"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights missing", "m.xml: needs m.bin beside it, which is missing"),
        ("weights changed", "m.bin is damaged or of another model"),
        ("graph cut", r"openvino .* does not load it"),
        ("foreign", "not a model of `hgedge export`"),
    ],
)
def test_damaged_models_get_one_sentence(
    tmp_path: Path, model: Path, what: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Predictor(damaged(tmp_path, model, what))
    assert "\n" not in str(caught.value)


def test_what_was_compiled_is_cached_and_cleared(model: Path, private_cache: Path) -> None:
    Predictor(model)
    assert list((private_cache / "openvino").rglob("*.blob"))
    assert cache_size()[1] > model.with_suffix(".bin").stat().st_size
    clear_cache()
    assert not list((private_cache / "openvino").iterdir())


@pytest.mark.parametrize("home", [True, False])
def test_a_model_runs_where_nothing_can_be_cached(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HGEDGE_CACHE", str(tmp_path / "file" / "below") if home else "")
    if not home:

        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", nowhere)
    assert Predictor(model).compare_probe().ok


def test_a_new_model_of_the_same_name_is_not_taken_from_the_cache(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    path, pixels = tmp_path / "pets.xml", bundle.probe_images
    export_openvino(bundle, backbone, path)
    before = Predictor(path).logits(pixels)
    assert np.array_equal(Predictor(path).logits(pixels), before), "from the cache"
    date = path.stat().st_mtime
    opposite = replace(
        bundle,
        head=Head(-bundle.head.weight, -bundle.head.bias),
        probe_logits=-bundle.probe_logits,
    )
    export_openvino(opposite, backbone, path)
    os.utime(path, (date, date))
    assert np.abs(Predictor(path).logits(pixels) + before).max() < 1e-4 * np.abs(before).max()


def run(*words: str) -> Result:
    return CliRunner().invoke(openvino_app(), list(words))


def openvino_app() -> Any:
    from hgprompt_edge.cli.main import app

    return app


def test_bfloat16_is_measured_and_never_the_default(model: Path, bundle: Bundle) -> None:
    exact = Predictor(model).logits(bundle.probe_images)
    assert compare(exact, bundle.probe_logits).ok
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UserError, match="`bf16`: this CPU does not compute in bfloat16"):
            Predictor(model, bf16=True)
        return
    rounded = Predictor(model, bf16=True).compare_probe()
    assert not rounded.ok, "computed in float32 after all"
    assert rounded.max_abs_diff < 0.1 * np.abs(bundle.probe_logits).max()
    assert str(rounded).endswith(" of 9 images")


def test_the_other_runtime_is_not_loaded(model: Path) -> None:
    """It would take 20 MB of the device's memory."""
    code = (
        "import sys; from pathlib import Path; "
        "from hgprompt_edge.runtime.predictor import Predictor; "
        "predictor = Predictor(Path(sys.argv[1])); predictor.compare_probe(); "
        "print('openvino' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(model)]
    assert subprocess.check_output(words, text=True).split() == ["True", "False"]


@pytest.mark.skipif(not computes_bf16(), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_bfloat16_is_the_default_where_the_file_and_the_cpu_agree(
    tmp_path: Path, model: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch,
    held: bool, amx: bool,
) -> None:  # fmt: skip
    path = tmp_path / "m.xml"
    for suffix in (".xml", ".bin"):
        shutil.copy(model.with_suffix(suffix), path.with_suffix(suffix))
    add_metadata(path, {"hgprompt.bf16": json.dumps(held)})
    features = ["avx512f", *(["amx_bf16"] if amx else [])]
    monkeypatch.setattr(
        "hgprompt_edge.runtime.engines.openvino_engine.cpu_features", lambda: features
    )
    assert Predictor(path).metadata.bf16 is held
    exact, rounded = (
        Predictor(path, bf16=choice).logits(bundle.probe_images) for choice in (False, True)
    )
    assert np.abs(exact - rounded).max() > 0
    expected = rounded if held and amx else exact
    np.testing.assert_array_equal(Predictor(path).logits(bundle.probe_images), expected)


def test_a_device_that_is_not_there_is_named(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = run("predict", "--model", str(model), "--device", "NPU9", str(tmp_path))
    assert result.exit_code == 2
    assert "--device NPU9: OpenVINO finds none here; choose one of CPU" in result.stderr
    assert Predictor(model, device="AUTO").compare_probe().ok


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle of the backbone tiny."""
    from hgprompt_edge import load_backbone
    from hgprompt_edge.artifacts.bundle_file import write_bundle

    backbone = load_backbone("tiny")
    write_bundle(tmp_path / "pets.hgbundle", make_bundle(backbone))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands(exported: Path, bundle: Bundle) -> None:
    result = run("export", "--format", "openvino")
    assert result.exit_code == 0, result.stderr
    assert "pets.xml: " in result.stdout
    assert "equal to PyTorch on 9 images" in result.stdout
    assert "next: hgedge predict --model pets.xml" in result.stdout
    Image.fromarray(bundle.probe_images[0]).save("a.png")
    predicted = run("predict", "--model", "pets.xml", "a.png", "--json")
    assert predicted.exit_code == 0, predicted.stderr
    assert json.loads(predicted.stdout)[0]["classes"][0]["label"] in bundle.classes
    half = run("export", "--format", "openvino", "--precision", "fp16", "-o", "half.xml")
    assert "near PyTorch on 9 images" in half.stdout
    assert run("export", "-o", "pets.onnx").exit_code == 0
    measured = run("bench", "pets.xml", "pets.onnx", "--runs", "2", "--json")
    assert measured.exit_code == 0, measured.stderr
    rows = json.loads(measured.stdout)["models"]
    assert [row["runtime"].split()[0] for row in rows] == ["openvino", "onnxruntime"]


def test_openvino_that_is_not_installed_names_the_extra(
    exported: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(
        "hgprompt_edge.runtime.engines.openvino_engine.find_spec", lambda name: None
    )
    for words in (
        ["export", "--format", "openvino"],
        ["predict", "--model", str(model), str(tmp_path)],
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert "pip install 'hgprompt-edge[openvino]'" in result.stderr
    assert not (exported / "pets.xml").exists()


def test_nobody_is_told_of_an_export(tmp_path: Path, bundle: Bundle, backbone: Backbone) -> None:
    """OpenVINO's converter and NNCF report their use, and leave an identity in the home folder."""
    pytest.importorskip("nncf")
    export_onnx(bundle, backbone, tmp_path / "m.onnx")
    code = (
        "from hgprompt_edge.runtime.engines.openvino_engine import import_openvino\n"
        "import_openvino().convert_model('m.onnx')\n"
        "from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry\n"
        "assert isinstance(telemetry, NNCFTelemetryStub)"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert not list(home.iterdir())


def test_a_graph_that_openvino_does_not_convert(
    tmp_path: Path, bundle: Bundle, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("Check failed:\nOpenVINO does not support: Attention")

    monkeypatch.setattr(openvino_file.import_openvino().Core, "read_model", refuse)
    with pytest.raises(CheckError, match=r"does not convert the graph .*Attention.*upgrade it"):
        export_openvino(bundle, backbone, tmp_path / "m.xml")
    assert not list(tmp_path.iterdir())
