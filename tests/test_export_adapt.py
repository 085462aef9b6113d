"""Weights that come at run time, and their gradient: both runtimes = PyTorch, over the families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from planted import known_statistics
from small_vits import FAMILIES, make_backbone, make_mixable

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.artifacts.bank_entries import LEARNED, NO_PROMPT
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import (
    Bank,
    adapt_path,
    bank_path,
    content_sha256,
    read_bank,
    write_bank,
)
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.bank_file import make_bank
from hgprompt_edge.export.gradient import adjoint
from hgprompt_edge.export.gradient import file as adapt_file
from hgprompt_edge.export.gradient.file import adapt_inputs, reference_gradients
from hgprompt_edge.export.gradient.graph import build_adapt_graph
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.openvino_file import export_openvino
from hgprompt_edge.files import read_safetensors, write_safetensors
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.predictor import Predictor

CHOICES = ("learned", "none", "tuned", "layered")


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


class Case:
    """A bundle, its bank, a few images with soft labels, and a random mix."""

    def __init__(self, family: str, choice: str = "learned") -> None:
        self.backbone: Backbone = make_backbone(family)
        self.bundle: Bundle = make_mixable(self.backbone, choice)
        self.bank: Bank = make_bank(self.bundle, self.backbone)
        rng = np.random.default_rng(3)
        self.images = self.bundle.probe_images[:3]
        self.labels = rng.dirichlet(np.ones(4), 3)
        self.mix = rng.dirichlet(np.ones(len(self.bank.names))).astype(np.float32)
        self.inputs = adapt_inputs(self.bank, self.images, self.labels, self.mix)

    def reference(self) -> dict[str, np.ndarray]:
        return reference_gradients(
            self.bundle, self.backbone, self.bank, self.images, self.labels, self.mix
        )


CASES = [(family, choice) for family in FAMILIES for choice in ("learned", "none")]
CASES += [("plain", "tuned"), ("plain", "layered")]


@pytest.mark.parametrize(("family", "choice"), CASES)
def test_gradient_equals_autograd_in_float64(family: str, choice: str) -> None:
    case = Case(family, choice)
    proto = ir.to_proto(build_adapt_graph(case.bundle, case.backbone, case.bank))
    onnx.checker.check_model(proto, full_check=True)
    (fork,) = (node for node in proto.graph.node if node.op_type == "If")
    nodes = [*proto.graph.node, *(node for branch in fork.attribute for node in branch.g.node)]
    assert {node.domain for node in nodes} == {""}, "plain ONNX operators alone"
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = case.reference()
    found = dict(zip(wanted, session.run(list(wanted), case.inputs), strict=True))
    for name, array in wanted.items():
        assert relative(found[name], array) < 5e-5, name  # METHOD 8 asks for 1e-3
    batches = [session.run(["d_mix"], _rows(case.inputs, i))[0] for i in range(3)]
    assert relative(np.sum(batches, axis=0), wanted["d_mix"]) < 5e-5, "micro-batches add up"


@pytest.mark.parametrize(("family", "choice"), CASES)
def test_the_way_back_is_a_branch_that_can_be_left_out(family: str, choice: str) -> None:
    case = Case(family, choice)
    proto = ir.to_proto(build_adapt_graph(case.bundle, case.backbone, case.bank))
    outside = [node.name for node in proto.graph.node if ".back" in node.name]
    assert outside == ["logits.back"], "the head's gradient alone, which costs nothing"
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    whole = dict(zip(names, session.run(names, case.inputs), strict=True))
    alone = session.run(names, {**case.inputs, "backward": np.array(False)})
    for name, array in zip(names, alone, strict=True):
        wanted = whole[name][:0] if name == "d_mix" else whole[name]
        np.testing.assert_array_equal(array, wanted)


def _rows(inputs: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {
        name: array[row : row + 1] if name in ("image", "label") else array
        for name, array in inputs.items()
    }


@pytest.mark.parametrize("attention", [Attention.STANDARD, Attention.PLAIN])
@pytest.mark.parametrize(("family", "choice"), CASES)
def test_given_prefix_equals_the_mix_in_pytorch(
    family: str, choice: str, attention: Attention
) -> None:
    case = Case(family, choice)
    graph = build_graph(case.bundle, case.backbone, Rewrites(attention=attention), case.bank)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"image": case.images, **case.bank.inputs(case.mix)}
    logits, features = session.run(["logits", "features"], given)
    wanted = case.reference()["logits"]
    assert relative(logits, wanted) < 2e-5
    head = features @ case.bank.head.weight.T + case.bank.head.bias
    assert relative(head, wanted) < 2e-5, "the bank's head is the one on the features"


@pytest.mark.parametrize("choice", ["learned", "none"])
def test_openvino_computes_the_same_gradient(choice: str, tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    case = Case("plain", choice)
    path = tmp_path / "m.onnx"
    ir.save(build_adapt_graph(case.bundle, case.backbone, case.bank), path)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(ov.convert_model(path), "CPU", settings)
    found = compiled(case.inputs)
    for name, array in case.reference().items():
        assert relative(found[name], array) < 5e-5, name


def test_a_label_that_sums_to_zero_is_minus_the_gradient_of_the_logits() -> None:
    case = Case("tanh gelu")
    proto = ir.to_proto(build_adapt_graph(case.bundle, case.backbone, case.bank))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    cross = session.run(["d_mix", "logits"], case.inputs)
    p = np.exp(cross[1]) / np.exp(cross[1]).sum(1, keepdims=True)
    direct = session.run(["d_mix"], {**case.inputs, "label": (case.labels - p).astype(np.float32)})
    assert relative(direct[0], cross[0]) < 1e-5


def test_gradient_of_the_features_comes_in_from_outside() -> None:
    case = Case("tanh gelu")
    proto = ir.to_proto(build_adapt_graph(case.bundle, case.backbone, case.bank))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    d = rng.normal(size=(3, case.backbone.embed_dim)).astype(np.float32)
    blank = {**case.inputs, "label": np.zeros((3, 4), np.float32)}
    found = session.run(["d_mix"], {**blank, "d_features": d})[0]
    numeric = np.zeros_like(found)
    for i in range(len(found)):
        sides = []
        for sign in (1, -1):
            mix = case.mix.copy()
            mix[i] += sign * 2e-2
            features = session.run(["features"], {**blank, "mix": mix})[0]
            sides.append(float((features.astype(np.float64) * d).sum()))
        numeric[i] = (sides[0] - sides[1]) / 4e-2
    assert relative(found, numeric) < 2e-2


def test_export_writes_three_files_that_belong_together(tmp_path: Path) -> None:
    case = Case("registers")
    path = tmp_path / "pets.onnx"
    verification = export_onnx(case.bundle, case.backbone, path, runtime_weights=True, adapt=True)
    assert verification.ok
    assert {p.name for p in tmp_path.iterdir()} == {
        "pets.onnx", "pets.bank.safetensors", "pets.adapt.onnx",
    }  # fmt: skip
    predictor = Predictor(path)
    assert predictor.bank is not None
    assert predictor.bank.names == ("a", "b", "dark")
    assert predictor.compare_probe().ok
    predictor.set_weights(case.mix)
    assert relative(predictor.logits(case.images), case.reference()["logits"]) < 2e-5
    other = replace(predictor.bank.head, weight=predictor.bank.head.weight[::-1].copy())
    before = predictor.logits(case.images)
    predictor.set_weights(case.mix, other)
    assert relative(predictor.logits(case.images), before) > 0.1, "another head"


@pytest.mark.parametrize("choice", CHOICES)
def test_openvino_takes_weights_at_run_time(choice: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    case = Case("plain", choice)
    path = tmp_path / "pets.xml"
    assert export_openvino(case.bundle, case.backbone, path, runtime_weights=True).ok
    predictor = Predictor(path)
    assert predictor.metadata.bank_content_sha256 == content_sha256(case.bank)
    predictor.set_weights(case.mix)
    assert relative(predictor.logits(case.images), case.reference()["logits"]) < 5e-5


def test_without_a_prompt_the_model_alone_is_an_entry(tmp_path: Path) -> None:
    case = Case("plain", "none")
    assert case.bank.names == (NO_PROMPT, "a", "b", "dark")
    np.testing.assert_array_equal(case.bank.initial, [1, 0, 0, 0])
    path = tmp_path / "pets.onnx"
    export_onnx(case.bundle, case.backbone, path, runtime_weights=True)
    found = Predictor(path).logits(case.bundle.probe_images)
    assert relative(found, case.bundle.probe_logits) < 1e-5


def test_learned_mix_with_a_weight_for_each_layer_is_an_entry(tmp_path: Path) -> None:
    case = Case("plain", "layered")
    assert case.bank.names == (LEARNED, "a", "b", "dark")
    np.testing.assert_array_equal(case.bank.initial, [1, 0, 0, 0])
    path = tmp_path / "pets.onnx"
    assert export_onnx(case.bundle, case.backbone, path, runtime_weights=True, adapt=True).ok
    predictor = Predictor(path)
    found = predictor.logits(case.bundle.probe_images)
    assert relative(found, case.bundle.probe_logits) < 1e-3, "the bank is float16"
    assert predictor.metadata.weights == pytest.approx(case.bundle.weights.mean(1).tolist())


def test_merged_mix_is_where_a_device_starts(tmp_path: Path) -> None:
    case = Case("plain", "none")
    mix = np.array([0.4, 0.1, 0.2, 0.3], np.float32)
    path = tmp_path / "pets.onnx"
    bundle = replace(case.bundle, initial=mix)
    assert export_onnx(bundle, case.backbone, path, runtime_weights=True, adapt=True).ok
    predictor = Predictor(path)
    assert predictor.bank is not None
    np.testing.assert_array_equal(predictor.bank.initial, mix)
    assert predictor.compare_probe().ok


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_merged_mix_of_a_tuned_prompt_is_over_the_bank_as_it_was(
    tmp_path: Path, suffix: str
) -> None:
    """The tuned prompt stays an entry; only where a device starts is another mix."""
    case = Case("plain", "tuned")
    mix = np.array([0.4, 0.1, 0.2, 0.3], np.float32)
    path = tmp_path / f"pets{suffix}"
    export = export_onnx
    if suffix == ".xml":
        pytest.importorskip("openvino")
        export = export_openvino  # type: ignore[assignment]
    bundle = replace(case.bundle, initial=mix)
    assert export(bundle, case.backbone, path, runtime_weights=True, adapt=True).ok
    predictor = Predictor(path)
    assert predictor.bank is not None
    assert predictor.bank.sha256 == case.bank.sha256
    np.testing.assert_array_equal(predictor.bank.initial, mix)
    assert predictor.compare_probe().ok
    predictor.set_weights(case.mix)
    assert relative(predictor.logits(case.images), case.reference()["logits"]) < 5e-5


def test_wrong_gradient_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("tanh gelu")
    right = adjoint.norm

    def wrong(*args: object, **kwargs: object) -> object:
        y, back = right(*args, **kwargs)  # type: ignore[arg-type]
        w = args[0]
        return y, lambda dy: w.op("Mul", f"{dy.name}.half", back(dy), adjoint.scalar(w, 0.5))  # type: ignore[attr-defined]

    monkeypatch.setattr("hgprompt_edge.export.gradient.block.norm", wrong)
    with pytest.raises(CheckError, match="'d_mix' of the adapt graph is not that of PyTorch"):
        export_onnx(
            case.bundle, case.backbone, tmp_path / "p.onnx", runtime_weights=True, adapt=True
        )
    assert not list(tmp_path.iterdir())


def test_tolerance_is_that_of_method_8() -> None:
    assert adapt_file.TOLERANCE == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_tokens": None}, "does not hold its sources"),
        (
            {
                "source_tokens": np.ones((1, 2, 5, 32), np.float16),
                "sources": ({"name": "a"},),
                "weights": np.ones(1, np.float32),
                "learned_weights": np.ones(1, np.float32),
                "conditions": (),
                "condition_tokens": None,
            },
            "nothing to mix",
        ),
        ({"mode": "shallow"}, "only deep prompts can be mixed on a device"),
    ],
)
def test_bundles_that_cannot_be_mixed_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    case = Case("tanh gelu")
    bundle = replace(case.bundle, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        export_onnx(bundle, case.backbone, tmp_path / "p.onnx", runtime_weights=True)
    assert not list(tmp_path.iterdir())


class TestBankFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        for family, choice in (("qk-norm", "learned"), ("plain", "none")):
            bank = Case(family, choice).bank
            path = tmp_path / "b.bank.safetensors"
            write_bank(path, bank)
            mix = np.full(len(bank.names), 1 / len(bank.names))
            again = read_bank(path)
            for name, array in bank.inputs(mix).items():
                np.testing.assert_allclose(again.inputs(mix)[name], array, rtol=1e-4, atol=1e-6)
            assert (again.names, again.sha256, again.gated) == (
                bank.names, bank.sha256, bank.gated,
            )  # fmt: skip

    def test_bank_of_another_model_is_refused(self, tmp_path: Path) -> None:
        """Over other prompts, or over the same ones with another mix, statistics or classes."""
        case = Case("tanh gelu")
        path = tmp_path / "p.onnx"
        export_onnx(case.bundle, case.backbone, path, runtime_weights=True, adapt=True)
        AdaptGraph(adapt_path(path), read_bank(bank_path(path)))
        width = case.backbone.embed_dim
        moments = np.zeros(width, np.float32), np.ones(width, np.float32)
        one_less = {"head": Head(case.bank.head.weight[:3], case.bank.head.bias[:3])}
        for change, message in (
            ({"sha256": "00" * 32}, "its prompts have the sha256 000000000000..., not "),
            ({"initial": case.bank.initial[::-1]}, "same prompts, but another initial mix"),
            ({"clean": known_statistics(*moments, 4)}, "it has the same prompts, but another"),
            (one_less, "its head has 3 classes, not 4"),
        ):
            write_bank(bank_path(path), replace(case.bank, **change))  # type: ignore[arg-type]
            words = rf"p\.bank\.safetensors does not fit .*p\.onnx: .*{message}.*; copy all"
            with pytest.raises(UserError, match=words):
                Predictor(path)
            words = rf"p\.bank\.safetensors does not fit .*p\.adapt\.onnx: .*{message}"
            with pytest.raises(UserError, match=words):
                AdaptGraph(adapt_path(path), read_bank(bank_path(path)))
        bank_path(path).unlink()
        with pytest.raises(UserError, match="needs its bank beside it"):
            Predictor(path)

    def test_a_model_that_says_nothing_of_its_bank_takes_none(self, tmp_path: Path) -> None:
        case = Case("tanh gelu")
        path = tmp_path / "p.onnx"
        export_onnx(case.bundle, case.backbone, path, runtime_weights=True, adapt=True)
        for file in (path, adapt_path(path)):
            model = onnx.load(file)
            kept = [p for p in model.metadata_props if p.key != "hgprompt.bank_content_sha256"]
            assert len(kept) == len(model.metadata_props) - 1
            del model.metadata_props[:]
            model.metadata_props.extend(kept)
            onnx.save(model, file)
        with pytest.raises(UserError, match="the same prompts, but another initial mix"):
            Predictor(path)
        with pytest.raises(UserError, match="the same prompts, but another initial mix"):
            AdaptGraph(adapt_path(path), case.bank)

    def test_damage_is_refused(self, tmp_path: Path) -> None:
        bank = Case("tanh gelu").bank
        path = tmp_path / "b.bank.safetensors"
        broken = replace(bank, initial=np.array([1, np.nan, 0], np.float32))
        write_bank(path, broken)
        with pytest.raises(UserError, match="'initial' holds NaN"):
            read_bank(path)
        write_bank(path, replace(bank, initial=bank.initial[:2]))
        with pytest.raises(UserError, match="damaged bank"):
            read_bank(path)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(UserError, match="truncated"):
            read_bank(path)


HOSTILE: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no names": ({}, {"names": "[]"}, "'names' holds no names"),
    "numbers for names": ({}, {"names": "[1, 2, 3]"}, "'names' holds no names"),
    "a number for names": ({}, {"names": "3"}, "not iterable"),
    "no heads": ({}, {"heads": "0"}, "'heads' is 0"),
    "negative heads": ({}, {"heads": "-2"}, "'heads' is -2"),
    "no width": ({}, {"width": "0"}, "'width' is 0"),
    "another width": ({}, {"width": "31"}, "'head.weight' is 32, not 31"),
    "weights of integers": ({"initial": np.array([1, 0, 0])}, {}, "'initial' is int64, not"),
    "weights of another sum": ({"initial": np.float32([0, 0, 0])}, {}, "'initial' is no mix"),
    "weights below 0": ({"initial": np.float32([2, 0, -1])}, {}, "'initial' is no mix"),
    "a flat head": (
        {"head.weight": np.zeros(4, np.float32)},
        {},
        r"'head.weight' and .* are \[4\]",
    ),
    "short mean": (
        {"clean.mean": np.zeros(31, np.float32)},
        {},
        r"'clean\.mean' is float32 \[31\], not float32 \[32\]",
    ),
    "variance below 0": ({"clean.var": np.full(32, -1, np.float32)}, {}, "'clean.var' is below 0"),
    "eps below 0": ({"eps": np.full(2, -1.0)}, {}, "'eps' is below 0"),
    "key norm of another width": (
        {"key_norm.bias": np.zeros((2, 9), np.float32)},
        {},
        "'key_norm'",
    ),
    "half a key norm": ({"key_norm.bias": None}, {}, "'key_norm.bias'"),
}


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with all that one may hold."""
    moments = np.zeros(32, np.float32), np.ones(32, np.float32)
    bank = Case("large epsilon").bank
    path = tmp_path_factory.mktemp("bank") / "b.bank.safetensors"
    write_bank(path, replace(bank, clean=known_statistics(*moments, 4)))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_banks_get_one_sentence(name: str, bank_file: Path, tmp_path: Path) -> None:
    assert read_bank(bank_file).clean is not None
    tensors, metadata = read_safetensors(bank_file)
    changed, entries, message = HOSTILE[name]
    tensors = {key: array for key, array in {**tensors, **changed}.items() if array is not None}
    path = tmp_path / "hostile.bank.safetensors"
    write_safetensors(path, tensors, {**metadata, **entries})
    with pytest.raises(
        UserError, match=rf"damaged bank \(.*{message}.*\); copy or export"
    ) as caught:
        read_bank(path)
    assert "\n" not in str(caught.value)


def test_names_beside_the_model() -> None:
    assert bank_path(Path("x/pets.onnx")) == Path("x/pets.bank.safetensors")
    assert adapt_path(Path("x/pets.onnx")) == Path("x/pets.adapt.onnx")
