"""Verify: a good model passes anywhere, a changed one fails, weights from outside never load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image
from small_vits import make_backbone, make_bundle, make_mixable
from typer.testing import CliRunner, Result

from hgprompt_edge import load_backbone
from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path, read_bank, write_bank
from hgprompt_edge.artifacts.external_weights import check_external_data
from hgprompt_edge.artifacts.onnx_bytes import read_facts
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.cli.main import app
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.recheck import recheck
from hgprompt_edge.files import sha256_file
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.verify import verify_model


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the backbone tiny, another one, and the model of the first."""
    folder = tmp_path_factory.mktemp("made")
    backbone = load_backbone("tiny")
    write_bundle(folder / "pets.hgbundle", make_bundle(backbone))
    write_bundle(folder / "other.hgbundle", make_bundle(backbone, seed=1))
    assert run("export", str(folder / "pets.hgbundle")).exit_code == 0
    return folder


def checks_of(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_a_good_model_passes_and_says_what_it_is(made: Path) -> None:
    result = run("verify", str(made / "pets.onnx"))
    assert result.exit_code == 0, result.stderr
    digest = sha256_file(made / "pets.hgbundle")[:12]
    for words in (digest, "tiny, ", "a, 00", "onnxruntime ", "same class on 9 of 9 images"):
        assert words in result.stdout
    assert "FAILED" not in result.stdout


def test_what_is_not_recorded_is_no_proof(tmp_path: Path) -> None:
    """A bundle is named that the model must be made from, and the model does not say which."""
    backbone = make_backbone()
    bundle = make_bundle(backbone)
    export_onnx(bundle, backbone, tmp_path / "m.onnx")  # no digest of a bundle
    write_bundle(tmp_path / "m.hgbundle", bundle)
    asked = {check.name: check for check in verify_model(tmp_path / "m.onnx")}
    assert asked["bundle"].ok is None
    checks = verify_model(tmp_path / "m.onnx", bundle=tmp_path / "m.hgbundle")
    (found,) = (check for check in checks if check.name == "bundle")
    assert found.ok is False
    assert "does not record what it was made from" in found.detail


def test_a_server_also_compares_with_pytorch(made: Path) -> None:
    bundle = str(made / "pets.hgbundle")
    result = run("verify", str(made / "pets.onnx"), "--bundle", bundle, "--json")
    assert result.exit_code == 0, result.stderr
    checks = checks_of(result)
    assert json.loads(result.stdout)["ok"] is True
    assert [name for name, check in checks.items() if check["ok"]] == [
        "digest", "bundle", "probe", "onnx.checker", "PyTorch",
    ]  # fmt: skip
    assert "largest difference of the logits from PyTorch" in checks["PyTorch"]["detail"]


@pytest.mark.parametrize("words", ["--weights runtime", "--adapt", "--adapt --format openvino"])
def test_a_server_compares_weights_at_run_time_with_pytorch(tmp_path: Path, words: str) -> None:
    """At the initial mix of devices that were merged, and at another one."""
    if words.endswith("openvino"):
        pytest.importorskip("openvino")
    backbone = load_backbone("tiny")
    mix = np.array([0.3, 0.7], np.float32)
    bundle = tmp_path / "m.hgbundle"
    write_bundle(bundle, replace(mixable_bundle(backbone), choice="best_source", initial=mix))
    model = tmp_path / ("m.xml" if words.endswith("openvino") else "m.onnx")
    assert run("export", str(bundle), *words.split()).exit_code == 0
    result = run("verify", str(model), "--bundle", str(bundle), "--json")
    assert result.exit_code == 0, result.stderr
    assert checks_of(result)["PyTorch"]["ok"] is True


def mixable_bundle(backbone: Backbone) -> Bundle:
    """A bundle with two sources."""
    tokens = np.random.default_rng(3).normal(size=(2, backbone.depth, 4, backbone.embed_dim))
    return replace(make_bundle(backbone, "deep"), source_tokens=tokens.astype(np.float16))


def test_a_bank_of_other_prompts_than_the_bundles_fails(tmp_path: Path) -> None:
    """Where the model does not say which bundle it was made from."""
    backbone = make_backbone()
    one, other = make_mixable(backbone), make_mixable(backbone, seed=5)
    export_onnx(one, backbone, tmp_path / "m.onnx", runtime_weights=True)
    assert recheck(tmp_path / "m.onnx", one, backbone)[-1].ok
    last = recheck(tmp_path / "m.onnx", other, backbone)[-1]
    assert (last.name, last.ok) == ("bank", False)


def test_a_model_of_another_bundle_fails(made: Path) -> None:
    bundle = str(made / "other.hgbundle")
    result = run("verify", str(made / "pets.onnx"), "--bundle", bundle)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "does not pass (bundle); copy or export it again" in result.stderr


def tampered(model: Path, path: Path) -> Path:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "head.bias":
            array = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_changed_weight_fails(made: Path, tmp_path: Path) -> None:
    path = tampered(made / "pets.onnx", tmp_path / "m.onnx")
    result = run("verify", str(path), "--json")
    assert result.exit_code == 1
    checks = checks_of(result)
    assert checks["probe"]["ok"] is False
    assert checks["probe"]["detail"].startswith("largest difference of the logits 0.01")


WITHOUT_SERVER = """
import sys
BLOCKED = {"torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "sklearn"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not on a device")
sys.meta_path.insert(0, Blocker())
from pathlib import Path
from hgprompt_edge.runtime.verify import verify_model
print([check.ok for check in verify_model(Path(sys.argv[1]))])
"""


def test_it_works_on_a_device(made: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_SERVER, str(made / "pets.onnx")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("None, True]")


def with_external_data(folder: Path, location: str) -> Path:
    """A model that keeps a weight in another file."""
    folder.mkdir(exist_ok=True)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="length", value="4")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


OUTSIDE = {
    "..": ("../weights.bin", "outside its folder"),
    ".. in the middle": ("data/../../weights.bin", "outside its folder"),
    "absolute": ("/etc/hostname", "outside its folder"),
    "a drive": ("C:\\\\weights.bin", "outside its folder"),
    "backslashes": ("..\\\\weights.bin", "outside its folder"),
    "a link": ("linked.bin", "a symbolic link"),
    "a linked folder": ("folder/weights.bin", "a symbolic link"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    location, reason = OUTSIDE[name]
    (tmp_path / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    path = with_external_data(tmp_path / "model", location)
    (path.parent / "linked.bin").symlink_to(tmp_path / "weights.bin")
    (path.parent / "folder").symlink_to(tmp_path)
    assert read_facts(path).locations == (location,)
    for command in (["verify", str(path)], ["predict", "--model", str(path), str(path)]):
        result = run(*command)
        assert result.exit_code == 2
        assert f"wants weights from '{location}', {reason}" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_external_data_is_found_in_every_place_and_allowed_inside(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model", "weights.bin")
    check_external_data(path)
    (path.parent / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    with pytest.raises(UserError, match="not a model of `hgedge export` "):
        Predictor(path)
    inner = onnx.load(path, load_external_data=False)
    tensor = inner.graph.initializer[0]
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(onnx.AttributeProto(name="value", type=4, t=tensor))
    branch = helper.make_graph([constant], "b", [], [])
    outer = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    del inner.graph.initializer[:]
    inner.graph.node.append(outer)
    path.write_bytes(inner.SerializeToString())
    assert read_facts(path).locations == ("weights.bin",)
    for damage in (b"\xff" * 100, path.read_bytes()[:30], b"\x3a\x05\x0a\x7f"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"m\.onnx: truncated or not an ONNX file"):
            read_facts(path)


# What the runtime skips behind or around a graph: groups, one with a field 7 in it, and a key of
# more than 32 bits, which it cuts.
SKIPPED = {
    "a group": lambda graph: b"\x3a" + graph + b"\xa3\x06\xa4\x06",
    "nested groups": lambda graph: b"\xa3\x06\xab\x06\x3a\x01\xff\xac\x06\xa4\x06\x3a" + graph,
    "a long key": lambda graph: b"\xba\x80\x80\x80\x70" + graph,
}


@pytest.mark.parametrize("name", SKIPPED)
def test_fields_that_onnx_does_not_have_hide_no_weights(tmp_path: Path, name: str) -> None:
    path = with_external_data(tmp_path / "model", "weights.bin")
    (path.parent / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    model = onnx.load(path, load_external_data=False)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    assert len(graph) < 128, "its length takes a byte"
    path.write_bytes(model.SerializeToString() + SKIPPED[name](bytes([len(graph)]) + graph))
    session = ort.InferenceSession(path)
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == 2, "the runtime finds them"
    assert read_facts(path).locations == ("weights.bin",)


@pytest.mark.parametrize("end", [b"\xa4\x06", b"\xa3\x06", b"\xa3\x06\xac\x06", b"\x09\x00"])
def test_a_file_that_breaks_off_is_refused_by_this_reader(tmp_path: Path, end: bytes) -> None:
    path = with_external_data(tmp_path / "model", "../weights.bin")
    path.write_bytes(path.read_bytes() + end)
    with pytest.raises(UserError, match=r"truncated or not an ONNX file"):
        check_external_data(path)


def test_defaults_of_a_function_are_searched(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model", "../weights.bin")
    model = onnx.load(path, load_external_data=False)
    default = onnx.AttributeProto(name="value", type=4, t=model.graph.initializer[0])
    del model.graph.initializer[:]
    opset = [helper.make_opsetid("", 20)]
    function = helper.make_function("d", "f", [], [], [], opset, attribute_protos=[default])
    model.functions.append(function)
    path.write_bytes(model.SerializeToString())
    assert read_facts(path).locations == ("../weights.bin",)


@pytest.fixture
def nameless(made: Path, tmp_path: Path) -> Path:
    """A model that computes what ours does and says nothing of itself."""
    proto = onnx.load(made / "pets.onnx")
    del proto.metadata_props[:]
    (tmp_path / "nameless.onnx").write_bytes(proto.SerializeToString())
    return tmp_path / "nameless.onnx"


def test_a_model_without_metadata_predicts(nameless: Path, made: Path) -> None:
    photo = nameless.with_name("a.png")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photo)
    words = ["predict", str(photo), "--json", "--model"]
    result, ours = run(*words, str(nameless)), run(*words, str(made / "pets.onnx"))
    assert result.exit_code == 0, result.stderr
    assert "it lacks class names and the resize rule; classes are numbers" in result.stderr
    (answer,), (expected,) = json.loads(result.stdout), json.loads(ours.stdout)
    (top,), (known,) = answer["classes"], expected["classes"]
    assert known["label"] == f"class {top['label']}, ä"
    assert known["probability"] == top["probability"]
    assert run("bench", str(nameless), "--runs", "2").exit_code == 0


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("model_signing")  # cryptography comes with it
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    paths = tmp_path / "key.pem", tmp_path / "key.pub"
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    paths[1].write_bytes(private.public_key().public_bytes(pem, spki))
    return paths


def signed(made: Path, folder: Path, keys: tuple[Path, Path], *words: str) -> Result:
    bundle = str(made / "pets.hgbundle")
    return run("export", bundle, "-o", str(folder / "m.onnx"), "--sign", str(keys[0]), *words)


def test_a_signature_holds_for_its_key_and_file_alone(
    made: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    result = signed(made, tmp_path, keys)
    assert result.exit_code == 0, result.stderr
    assert f"m.onnx.sig: signed with {keys[0]}" in result.stdout
    model = str(tmp_path / "m.onnx")
    good = run("verify", model, "--key", str(keys[1]))
    assert good.exit_code == 0, good.stderr
    assert "m.onnx.sig, by" in good.stdout

    tampered(made / "pets.onnx", tmp_path / "m.onnx")
    bad = run("verify", model, "--key", str(keys[1]), "--json")
    assert bad.exit_code == 1
    assert "m.onnx" in checks_of(bad)["signature"]["detail"].partition("does not hold:")[2]
    assert list(checks_of(bad)) == ["signature"], "a model that was tampered with was run"
    (tmp_path / "m.onnx.sig").unlink()
    assert "m.onnx.sig: no such signature" in run("verify", model, "--key", str(keys[1])).stderr


def test_a_signature_covers_what_a_device_adapts_with(
    made: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """The graph of the gradient by a signature of its own, the bank by its digest in the model."""
    backbone = load_backbone("tiny")
    write_bundle(tmp_path / "m.hgbundle", mixable_bundle(backbone))
    result = run("export", str(tmp_path / "m.hgbundle"), "--adapt", "--sign", str(keys[0]))
    assert result.exit_code == 0, result.stderr
    assert "m.adapt.onnx.sig: signed with" in " ".join(result.stdout.split())
    words = ("verify", str(tmp_path / "m.onnx"), "--key", str(keys[1]), "--json")
    good = run(*words)
    assert good.exit_code == 0, good.stderr
    names = [check["name"] for check in json.loads(good.stdout)["checks"]]
    assert names.count("signature") == 2
    bank = read_bank(bank_path(tmp_path / "m.onnx"))
    write_bank(
        bank_path(tmp_path / "m.onnx"),
        replace(bank, head=replace(bank.head, bias=bank.head.bias + 1)),
    )
    changed = run(*words)
    assert changed.exit_code == 2
    assert "m.bank.safetensors does not fit" in " ".join(changed.stderr.split())
    write_bank(bank_path(tmp_path / "m.onnx"), bank)
    (tmp_path / "m.adapt.onnx").write_bytes(b"another")
    bad = run(*words)
    assert bad.exit_code == 1
    assert "m.adapt.onnx.sig does not hold" in json.loads(bad.stdout)["checks"][1]["detail"]
    (tmp_path / "m.adapt.onnx").unlink()
    assert run(*words).exit_code == 0, "a device that does not adapt needs no graph for it"


def test_the_graph_of_a_newer_format_is_refused_and_replaced(made: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "m.hgbundle", mixable_bundle(load_backbone("tiny")))
    model = tmp_path / "m.onnx"
    assert run("export", str(tmp_path / "m.hgbundle"), "--adapt").exit_code == 0
    proto = onnx.load(adapt_path(model))
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "hgprompt.format")
    entry.value = "hgprompt.adapt/2"
    onnx.save(proto, adapt_path(model))
    with pytest.raises(UserError, match=r"hgprompt.adapt/2 is newer .*; upgrade hgprompt-edge"):
        AdaptGraph(adapt_path(model), read_bank(bank_path(model)))
    result = run("export", str(made / "pets.hgbundle"), "-o", str(model))
    assert "m.adapt.onnx, of an earlier export" in " ".join(result.stderr.split())
    assert not adapt_path(model).exists()


def test_what_an_earlier_export_left_is_in_nobodys_way(
    made: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """Its graph of the gradient has no signature; a folded model does not use it."""
    write_bundle(tmp_path / "m.hgbundle", mixable_bundle(load_backbone("tiny")))
    model = tmp_path / "m.onnx"
    assert run("export", str(tmp_path / "m.hgbundle"), "--adapt").exit_code == 0
    left = adapt_path(model).read_bytes()
    result = signed(made, tmp_path, keys)
    assert result.exit_code == 0, result.stderr
    assert "m.adapt.onnx, of an earlier export" in " ".join(result.stderr.split())
    assert not bank_path(model).exists()
    assert not adapt_path(model).exists()
    adapt_path(model).write_bytes(left)
    good = run("verify", str(model), "--key", str(keys[1]), "--json")
    assert good.exit_code == 0, good.stderr
    names = [check["name"] for check in json.loads(good.stdout)["checks"]]
    assert names.count("signature") == 1


@pytest.mark.parametrize("why", ["a model of that name", "the other format"])
def test_what_may_be_anothers_stays(made: Path, tmp_path: Path, why: str) -> None:
    """A model called NAME.adapt.onnx, and the bank that NAME.xml shares with NAME.onnx."""
    model = tmp_path / "m.onnx"
    bundle = str(made / "pets.hgbundle")
    if why == "a model of that name":
        assert run("export", bundle, "-o", str(adapt_path(model))).exit_code == 0
    else:
        (tmp_path / "m.xml").write_bytes(b"")
        bank_path(model).write_bytes(b"")
    before = set(tmp_path.iterdir())
    assert run("export", bundle, "-o", str(model)).exit_code == 0
    assert set(tmp_path.iterdir()) == {*before, model}


def test_without_the_library_the_extra_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgprompt_edge.artifacts.signature.find_spec", lambda name: None)
    key = tmp_path / "key.pem"
    key.write_text("")
    for words in (["--sign", str(key)], []):
        command = ["export", str(made / "pets.hgbundle"), "-o", str(tmp_path / "m.onnx"), *words]
        result = run(*command)
        assert result.exit_code == (2 if words else 0)
    assert (
        "hgprompt-edge[sign]" in run("verify", str(tmp_path / "m.onnx"), "--key", str(key)).stderr
    )
