"""What goes wrong around a model is told in one sentence, of a bounded length."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import helper
from PIL import Image
from small_vits import make_backbone, make_bundle, make_mixable
from test_runtime_predictor import edited, foreign

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.artifacts.device_bank import bank_path, read_bank
from hgprompt_edge.errors import UserError, brief
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.files import read_safetensors, write_safetensors
from hgprompt_edge.prompts.prompt import read_prompt
from hgprompt_edge.runtime.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
LONG = "x" * 5000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(make_backbone())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    export_onnx(bundle, make_backbone(), path)
    return path


@pytest.fixture(scope="module")
def ir_model(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    pytest.importorskip("openvino")
    from hgprompt_edge.export.openvino_file import export_openvino

    path = tmp_path_factory.mktemp("model") / "m.xml"
    export_openvino(bundle, make_backbone(), path)
    return path


def sentence(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Predictor(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """What a reader says of a damaged file; empty where it takes it."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", [{"opset": 99}, {"ir_version": 99}])
def test_an_int8_model_on_an_old_runtime_is_not_told_of_opsets_that_it_has_not(
    tmp_path: Path, kind: dict[str, int]
) -> None:
    proto = onnx.load_from_string(foreign(**kind))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert sentence(path).endswith("or export the model again with `opset=20`")
    helper.set_model_props(proto, {"hgprompt.precision": "int8"})
    path.write_bytes(proto.SerializeToString())
    assert sentence(path).endswith("does not know; upgrade onnxruntime")


def test_a_model_that_does_not_load_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(foreign(opset=99))
    sentence(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_metadata_that_are_not_utf8_are_damage(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes().replace(b'["class 0', b'["cl\xffss 0', 1))
    assert "damaged (its text is not UTF-8); copy or export it again" in sentence(path)


def test_names_in_the_graph_that_are_not_utf8_are_damage(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes().replace(b"image", b"im\xffge"))
    assert "export it again" in sentence(path)


def test_openvino_metadata_that_are_not_utf8_are_damage(ir_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    path.with_suffix(".bin").write_bytes(ir_model.with_suffix(".bin").read_bytes())
    path.write_bytes(ir_model.read_bytes().replace(b"class 0", b"cl\xffss 0", 1))
    assert "damaged (its text is not UTF-8); copy or export it again" in sentence(path)


@pytest.mark.parametrize(
    "key", ["format", "precision", "classes", "preprocessing", "seed", "versions", "quantization"]
)
def test_long_metadata_of_a_model_are_quoted_in_brief(
    model: Path, tmp_path: Path, key: str
) -> None:
    text = f"hgprompt.model/{LONG}" if key == "format" else LONG
    path = edited(model, tmp_path / "m.onnx", **{key: text})
    assert len(sentence(path)) < 400 + len(str(path))


def test_long_metadata_of_other_files_are_quoted_in_brief(tmp_path: Path) -> None:
    backbone = make_backbone()
    write_bundle(tmp_path / "m.hgbundle", make_mixable(backbone))
    export_onnx(make_mixable(backbone), backbone, tmp_path / "m.onnx", runtime_weights=True)
    damage = {"format": LONG, "pooling": LONG, "names": f'["{LONG}"', "mode": LONG}
    texts = []
    for file, read in (
        (tmp_path / "m.hgbundle", read_bundle),
        (bank_path(tmp_path / "m.onnx"), read_bank),
        (tmp_path / "m.hgbundle", read_prompt),
    ):
        tensors, metadata = read_safetensors(file)
        for key, text in damage.items():
            path = tmp_path / "damaged.safetensors"
            write_safetensors(path, tensors, {**metadata, key: text})
            texts.append(refusal(read, path))
    assert max(map(len, texts)) < 400 + len(str(tmp_path))
    assert sum(map(bool, texts)) > 6


DAMAGED_JSON = ("[" * 5000, "1" * 5000)
OTHER_JSON = ("7", '"a"', "[7]", "null")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *itertools.product(
            ("sources", "conditions", "table", "objective", "versions"),
            (*DAMAGED_JSON, *OTHER_JSON),
        ),
    ],
)
def test_json_of_another_kind_is_damage(tmp_path: Path, key: str, text: str) -> None:
    write_bundle(tmp_path / "m.hgbundle", make_mixable(make_backbone()))
    tensors, metadata = read_safetensors(tmp_path / "m.hgbundle")
    write_safetensors(tmp_path / "m.hgbundle", tensors, {**metadata, key: text})
    with pytest.raises(UserError, match="damaged bundle"):
        read_bundle(tmp_path / "m.hgbundle")


def test_quotes_keep_both_ends() -> None:
    assert brief("short") == "short"
    assert brief("a\n\tb\x1b[31m") == "a b?[31m"
    text = brief("begin" + LONG + "end", 40)
    assert len(text) <= 40
    assert text.startswith("beginx")
    assert text.endswith("xend")


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from hgprompt_edge.runtime.predictor import Predictor

predictor = Predictor(Path(sys.argv[1]), threads=1)
predictor.logits(np.zeros((1, 24, 24, 3), np.uint8))
pixels = np.zeros((60_000, 24, 24, 3), np.uint8)
status = Path("/proc/self/status").read_text()
held = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))
try:
    predictor.logits(pixels)
except MemoryError:
    print("MemoryError")
print(predictor.logits(pixels[:1]).shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_batch_that_memory_does_not_hold_is_pythons_error(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.splitlines() == ["MemoryError", "(1, 4)"], result.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.new("RGB", (24, 24)).save(path)
    return path


def test_a_batch_that_is_too_large_names_the_option(
    model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Predictor, pixels: np.ndarray) -> np.ndarray:
        raise MemoryError(f"Unable to allocate for {self.path} and {len(pixels)}")

    monkeypatch.setattr(Predictor, "probabilities", full)
    result = run("predict", "--model", str(model), str(image), "--batch-size", "99")
    assert result.exit_code == 2
    assert "--batch-size 99: not enough memory for 1 images at a time" in result.stderr
    monkeypatch.setattr(Predictor, "logits", full)
    result = run("bench", str(model))
    assert result.exit_code == 2
    assert "not enough memory; give fewer images at a time" in result.stderr
    assert run("bench", str(model), "--batch", str(10**12)).exit_code == 2

    def of_pytorch(self: Predictor, pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(Predictor, "logits", of_pytorch)
    result = run("bench", str(model))
    assert result.exit_code == 2
    assert "not enough memory; give fewer images at a time" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("words", [[], ["--json"], ["--csv"]])
def test_output_to_a_full_device_is_one_sentence(
    model: Path, image: Path, words: list[str]
) -> None:
    command = [sys.executable, "-m", "hgprompt_edge.cli.main", "predict", "--model", str(model)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*command, str(image), *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert result.returncode == 2
    assert result.stderr == (
        "hgedge: standard output: cannot be written (no space left on device)\n"
    )


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_cache_that_was_half_written_is_made_anew(
    ir_model: Path, bundle: Bundle, private_cache: Path, keep: int
) -> None:
    wanted = Predictor(ir_model).logits(bundle.probe_images)
    (blob,) = (private_cache / "openvino").rglob("*.blob")
    size = blob.stat().st_size
    blob.write_bytes(blob.read_bytes()[:keep])
    for _ in range(2):
        np.testing.assert_array_equal(Predictor(ir_model).logits(bundle.probe_images), wanted)
    (again,) = (private_cache / "openvino").rglob("*.blob")
    assert again.stat().st_size == size
    assert not list((private_cache / "openvino").glob(".*")), "a copy was left"


@pytest.mark.slow
def test_processes_that_start_together_share_the_cache(ir_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hgprompt_edge.runtime.predictor import "
        "Predictor; assert Predictor(Path(sys.argv[1])).compare_probe().ok"
    )
    for turn in range(5):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HGEDGE_CACHE": str(tmp_path / str(turn)),
        }
        command = [sys.executable, "-c", code, str(ir_model)]
        processes = [
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
