"""The digest over graph, weights and metadata, and what `verify` says about signatures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import helper
from small_vits import make_backbone, make_bundle, make_mixable
from typer.testing import Result

from hgprompt_edge.artifacts.device_bank import adapt_path
from hgprompt_edge.artifacts.model_digest import FILE_SHA256, is_whole
from hgprompt_edge.artifacts.onnx_bytes import read_facts
from hgprompt_edge.artifacts.signature import sign
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import append_metadata, export_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    export_onnx(make_bundle(make_backbone()), make_backbone(), path)
    return path


@pytest.fixture(scope="module")
def ir_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    from hgprompt_edge.export.openvino_file import export_openvino

    path = tmp_path_factory.mktemp("model") / "m.xml"
    export_openvino(make_bundle(make_backbone()), make_backbone(), path)
    return path


def verified(path: Path, *words: str) -> tuple[Result, dict[str, Any], str]:
    result = run("verify", str(path), "--json", *words)
    document = json.loads(result.stdout)
    checks = {check["name"]: check for check in document["checks"]}
    return result, checks, document["signature"]


def renamed_class(data: bytes) -> bytes:
    """Another name of the same length, so that the file stays one that loads."""
    place = data.index(b'["', data.index(b"hgprompt.classes")) + 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_model_as_it_was_exported_passes(model: Path) -> None:
    result, checks, words = verified(model)
    assert result.exit_code == 0
    assert checks["digest"]["ok"] is True
    assert words.startswith("not signed: the digest shows damage and accidents")
    assert run("verify", str(model)).stdout.splitlines()[-1] == words


def test_a_class_with_another_name_fails(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(renamed_class(model.read_bytes()))
    result, checks, _ = verified(path)
    assert result.exit_code == 1
    assert checks["digest"]["ok"] is False
    assert checks["digest"]["detail"] == "m.onnx was changed after its export"
    assert checks["probe"]["ok"] is True, "the logits do not show it"
    assert "does not pass (digest); copy or export it again" in result.stderr


def test_metadata_that_another_program_edited_fail(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    entries = {p.key: p.value for p in proto.metadata_props}
    for key, text in {
        "preprocessing": entries["hgprompt.preprocessing"] + " ",
        "seed": "1",
    }.items():
        changed = {**entries, f"hgprompt.{key}": text}
        del proto.metadata_props[:]
        helper.set_model_props(proto, changed)
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert verified(tmp_path / "m.onnx")[1]["digest"]["ok"] is False


def test_openvino_models_carry_it_too(ir_model: Path, tmp_path: Path) -> None:
    assert verified(ir_model)[1]["digest"]["ok"] is True
    path = tmp_path / "m.xml"
    path.with_suffix(".bin").write_bytes(ir_model.with_suffix(".bin").read_bytes())
    text = ir_model.read_text()
    place = text.index("&quot;", text.index("<classes ")) + len("&quot;")
    path.write_text(f"{text[:place]}X{text[place:]}")
    result, checks, _ = verified(path)
    assert result.exit_code == 1
    assert [name for name, check in checks.items() if check["ok"] is False] == ["digest"]


def test_the_graph_that_a_device_adapts_with_carries_one(tmp_path: Path) -> None:
    backbone, path = make_backbone(), tmp_path / "m.onnx"
    export_onnx(make_mixable(backbone), backbone, path, runtime_weights=True, adapt=True)
    assert verified(path)[1]["adapt digest"]["ok"] is True
    append_metadata(adapt_path(path), {"note": "mine"})
    result, checks, _ = verified(path)
    assert result.exit_code == 1
    assert checks["digest"]["ok"] is True
    assert checks["adapt digest"]["ok"] is False


def test_a_model_whose_digest_was_taken_out_is_named(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    kept = [entry for entry in proto.metadata_props if entry.key != FILE_SHA256]
    assert len(kept) == len(proto.metadata_props) - 1
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    result, checks, _ = verified(path)
    assert result.exit_code == 1
    assert checks["digest"]["ok"] is False
    assert checks["digest"]["detail"] == "m.onnx was changed after its export"


def test_every_bit_counts(model: Path, tmp_path: Path) -> None:
    """Those of the digest, too."""
    good, path = model.read_bytes(), tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    digest, unreadable = good.index(FILE_SHA256.encode()) + len(FILE_SHA256), 0
    for place in [*rng.integers(0, len(good), 60), *range(digest, digest + 66, 5)]:
        data = bytearray(good)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            whole = is_whole(path, read_facts(path).entries)
        except UserError:
            unreadable += 1
            continue
        assert whole is not True
        if place < digest - len(FILE_SHA256):
            assert whole is False or FILE_SHA256 not in read_facts(path).entries
    assert unreadable < 30, "most of the 74 damaged files are read, and judged by their digest"
    path.write_bytes(good + b"\x12\x00")
    assert is_whole(path, read_facts(path).entries) is False


def test_the_last_line_says_whether_it_is_signed(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives.asymmetric import ec
    from test_artifacts_keys import write_pair

    private, public = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes())
    sign(path, private)
    assert verified(path)[2] == (
        f"signed, but not checked: give the public key of {path}.sig with --key"
    )
    assert verified(path, "--key", str(public))[2].startswith(f"signed: m.onnx.sig, by {public}; ")
    path.write_bytes(renamed_class(model.read_bytes()))
    result, _, words = verified(path, "--key", str(public))
    assert result.exit_code == 1
    assert words == "the signature does not hold: do not use this model"
