"""Every reader of files meets thousands of damaged ones: it takes them, or says one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_vits import make_backbone, make_mixable

from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.prompts.prompt import Prompt, write_prompt
from hgprompt_edge.state.history import History
from hgprompt_edge.state.update_file import write_update

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]

COUNTS = {
    "prompt": 3000,
    "bundle": 2000,
    "bank": 3000,
    "update file": 3000,
    "state": 500,
    "key": 1000,
    "model": 400,
    "adapt graph": 300,
    "task": 1000,
    "tasks bank": 1000,
    "OpenVINO graph": 150,
    "OpenVINO weights": 20,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of each kind."""
    root = tmp_path_factory.mktemp("files")
    backbone = make_backbone()
    bundle = make_mixable(backbone)
    (root / "prompt").mkdir()
    tokens = bundle.prompt
    assert tokens is not None
    prompt = Prompt(tokens, "p", backbone.name, backbone.sha256, backbone.image_size)
    write_prompt(root / "prompt" / "p.safetensors", prompt)
    write_bundle(root / "m.hgbundle", bundle)
    export_onnx(bundle, backbone, root / "m.onnx", runtime_weights=True, adapt=True)
    source = Source(root / "m.hgbundle", bundle)
    export_device([source], backbone, root / "device", adapt=True)
    bank = read_bank(bank_path(root / "m.onnx"))
    with History(
        root / "state", bank.sha256, bank.initial, classes=("a", "b"), resize="center"
    ) as history:
        for turn in range(3):
            history.commit(bank.initial, method="labelled", images=turn, figures={"loss": 0.5})
        version = history.current()
    write_update(root / "update.json", version, bank.sha256, bank.names, classes=("a", "b"))
    return {
        "prompt": root / "prompt" / "p.safetensors",
        "bundle": root / "m.hgbundle",
        "bank": bank_path(root / "m.onnx"),
        "update file": root / "update.json",
        "state": root / "state" / "history.sqlite",
        "model": root / "m.onnx",
        "adapt graph": adapt_path(root / "m.onnx"),
        "task": root / "device" / "pets.hgtask",
        "tasks bank": bank_path(root / "device" / "pets.hgtask"),
    }


def add_optional(files: dict[str, Path], kind: str) -> Path:
    folder = files["model"].parent / kind.replace(" ", "-")
    folder.mkdir()
    if kind == "key":
        pytest.importorskip("model_signing")
        from cryptography.hazmat.primitives.asymmetric import ec
        from test_artifacts_keys import write_pair

        return write_pair(folder, ec.generate_private_key(ec.SECP256R1()))[1]
    pytest.importorskip("openvino")
    from hgprompt_edge.export.openvino_file import export_openvino

    backbone = make_backbone()
    export_openvino(make_mixable(backbone), backbone, folder / "m.xml")
    return folder / ("m.xml" if kind == "OpenVINO graph" else "m.bin")


@pytest.mark.parametrize("kind", COUNTS)
def test_damage_is_one_sentence(files: dict[str, Path], kind: str) -> None:
    path = files.get(kind) or add_optional(files, kind)
    good = path.read_bytes()
    words = [kind, str(path), str(COUNTS[kind]), "1"]
    try:
        result = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "mutate.py"), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    finally:
        path.write_bytes(good)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.splitlines()[-1]) > COUNTS[kind] / 20
    assert len(result.stdout.splitlines()) == 1, "a reader printed something"
