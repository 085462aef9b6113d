"""INT8: accuracy decides, safer schemes follow, and a model that loses too much is no file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from small_vits import make_backbone, make_bundle
from toys import make_task, pixels_of, shorten_digits
from typer.testing import CliRunner, Result

from hgprompt_edge.adapt.learner import ForwardLearner
from hgprompt_edge.adapt.loop import adapt_labelled
from hgprompt_edge.adapt.optimizer import Settings
from hgprompt_edge.adapt.proposal import Weights
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.device_bank import adapt_path, bank_path
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Images, Task
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.bank_file import make_bank
from hgprompt_edge.export.graph.body import attach_head, split_head
from hgprompt_edge.export.graph.inference import build_graph
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.int8 import quantize as int8
from hgprompt_edge.export.int8.measure import right_in_any_batch
from hgprompt_edge.export.int8.quantize import export_int8
from hgprompt_edge.export.int8.schemes import Scheme, onnx_schemes
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.heads.best_head import choose_head, fit_head
from hgprompt_edge.heads.heads import accuracy, logits_of
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.paired import Paired
from hgprompt_edge.runtime.cpu import cpu_name
from hgprompt_edge.runtime.engines.onnx_engine import OnnxEngine
from hgprompt_edge.runtime.engines.openvino_engine import computes_bf16
from hgprompt_edge.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def fitted(backbone: Backbone) -> tuple[Bundle, Task]:
    """A bundle whose head names the class of most images of a task."""
    bundle = make_bundle(backbone, classes=3)
    task = make_task(backbone, bundle.prompt)
    features = extract_features(backbone, task.train.pixels, bundle.prompt).numpy()
    centred = features - features.mean(0)
    means = np.stack([centred[task.train.labels == c].mean(0) for c in range(3)])
    precision = np.linalg.inv(np.cov(centred.T) + 1e-3 * np.eye(features.shape[1]))
    weight = (means @ precision).astype(np.float32)
    bias = (-weight @ features.mean(0)).astype(np.float32)
    probe = extract_features(backbone, bundle.probe_images, bundle.prompt).numpy()
    return (
        replace(
            bundle,
            classes=task.classes,
            split_digest=task.digest,
            head=Head(weight, bias),
            probe_logits=probe @ weight.T + bias,
        ),
        task,
    )


# NNCF takes half a minute on a busy machine.
SUFFIXES = [".onnx", pytest.param(".xml", marks=pytest.mark.slow)]


def needs(suffix: str) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_is_smaller_and_keeps_its_accuracy(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task], suffix: str
) -> None:
    needs(suffix)
    bundle, task = fitted
    path = tmp_path / f"m{suffix}"
    result = export_int8(bundle, backbone, path, task, max_drop=9)
    assert result.proven
    assert result.images == len(task.train) + len(task.validation)
    assert result.float_accuracy > 0.6, "the toy is too hard to tell anything"
    last = result.tried[-1]
    assert last.low <= last.drop <= last.high <= 9
    assert last.drop == pytest.approx(100 * (result.float_accuracy - last.accuracy))
    assert {p.name for p in tmp_path.iterdir()} == (
        {"m.onnx"} if suffix == ".onnx" else {"m.xml", "m.bin"}
    )
    predictor = Predictor(path)
    logits = predictor.logits(task.validation.pixels)
    exact = Predictor(float_model(tmp_path / "float", bundle, backbone)).logits(
        task.validation.pixels
    )
    difference = np.abs(logits - exact).max()
    assert 1e-4 * np.abs(exact).max() < difference < 0.5 * np.abs(exact).max()
    metadata = predictor.metadata
    assert metadata.precision == "int8"
    right = logits_of_test(predictor, task) == task.test.labels
    assert result.test is not None
    assert result.test_images == len(task.test)
    assert result.test.accuracy == pytest.approx(right.mean(), abs=1 / len(task.test))
    assert metadata.quantization["accuracy_fp32"] == result.float_accuracy
    assert metadata.quantization["proven"] is True
    assert metadata.quantization["tried"][-1]["scheme"] == last.scheme
    assert metadata.quantization["cpu"] == cpu_name()
    if suffix == ".xml":
        assert quantized_inputs_of_attention(path) == 0
        assert 48 < largest_int8_weight(path) <= 64, "two of them fit in 16 bits with 255 each"
    if suffix == ".xml" and computes_bf16():
        assert result.bf16 is not None
        assert metadata.bf16 is (result.bf16.high <= 9)
        assert metadata.quantization["bf16"]["accuracy"] == result.bf16.accuracy
    else:
        assert result.bf16 is None
        assert not metadata.bf16
    assert predictor.compare_probe().ok


@pytest.mark.parametrize("scheme", onnx_schemes(2)[:2], ids=lambda scheme: scheme.name)
def test_a_class_does_not_depend_on_the_other_images(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task], scheme: Scheme
) -> None:
    """Of files in the field, too: the runtime by itself scales a whole batch alike."""
    bundle, task = fitted
    body, heads = split_head(build_graph(bundle, backbone, Rewrites(attention=Attention.STANDARD)))
    ir.save(body, tmp_path / "float.onnx")
    path, pixels = tmp_path / "m.onnx", task.validation.pixels
    scheme.write(tmp_path / "float.onnx", task.train.pixels[:32], path)
    attach_head(path, heads)
    engine = OnnxEngine(path)
    alone = np.concatenate([engine.run(pixels[i : i + 1]) for i in range(len(pixels))])
    for batch in (4, 16):
        parts = [engine.run(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
        np.testing.assert_allclose(np.concatenate(parts), alone, atol=1e-4)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    together = session.run(None, {"image": pixels[:16]})[0]
    differ = not np.allclose(together, alone[:16], atol=1e-3)
    assert differ == (scheme.name == "dynamic")


class LooksAround:
    """An engine that names another class than the first for images that come in a batch."""

    def run(self, pixels: np.ndarray, given: object = None) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[[int(len(pixels) > 1)] * len(pixels)]


def test_accuracy_counts_what_is_right_alone_and_among_others() -> None:
    images = Images(pixels_of(20), np.array([0, 1] * 10), tuple(map(str, range(20))))
    right = right_in_any_batch(
        LooksAround(), images, None, lambda found: found.argmax(1) == images.labels
    )
    assert not right.any()  # half of them at either size


def logits_of_test(predictor: Predictor, task: Task) -> np.ndarray:
    parts = range(0, len(task.test), 16)
    logits = [predictor.logits(task.test.pixels[start : start + 16]) for start in parts]
    return np.concatenate(logits).argmax(1)


def quantized_inputs_of_attention(path: Path) -> int:
    """FakeQuantize nodes on the way into attention; there must be attention."""
    import openvino as ov

    ops = ov.Core().read_model(path).get_ops()
    attention = [op for op in ops if op.get_type_name() == "ScaledDotProductAttention"]
    assert attention
    found, todo = 0, [op.input_value(i).get_node() for op in attention for i in range(3)]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "FakeQuantize":
            found += 1
        elif node.get_type_name() != "MatMul":  # up to the projection, whose inputs are int8
            todo += [value.get_node() for value in node.input_values()]
    return found


INT8_FAMILIES = [
    *("plain", "qk-norm", "average with registers", "one block"),
    "class token and patches, fc_norm",
]


def largest_int8_weight(path: Path) -> int:
    import openvino as ov

    ops = ov.Core().read_model(path).get_ops()
    weights = [op for op in ops if op.get_type_name() == "Constant"]
    kinds = [op for op in weights if op.get_element_type().get_type_name() == "i8"]
    return max(int(np.abs(op.get_data().astype(int)).max()) for op in kinds)


def float_model(folder: Path, bundle: Bundle, backbone: Backbone) -> Path:
    from hgprompt_edge.export.onnx_file import export_onnx

    folder.mkdir()
    export_onnx(bundle, backbone, folder / "float.onnx")
    return folder / "float.onnx"


@pytest.mark.parametrize("family", INT8_FAMILIES)
@pytest.mark.parametrize("mode", ["deep", "shallow", "none"])
def test_every_scheme_of_onnxruntime_runs(tmp_path: Path, family: str, mode: str) -> None:
    backbone = make_backbone(family)
    bundle = make_bundle(backbone, mode)
    graph = float_model(tmp_path / "float", bundle, backbone)
    scale = np.abs(bundle.probe_logits).max()
    for index, scheme in enumerate(onnx_schemes(backbone.depth)):
        path = tmp_path / f"{index}.onnx"
        scheme.write(graph, bundle.probe_images[:4], path)
        onnx.checker.check_model(path)
        logits = OnnxEngine(path).run(bundle.probe_images)
        assert np.abs(logits - bundle.probe_logits).max() < 0.6 * scale, scheme.name
        kinds = {node.op_type for node in onnx.load(path).graph.node}
        assert kinds & {"MatMulInteger", "DequantizeLinear"}, f"{scheme.name} quantized nothing"


@pytest.mark.slow
def test_accuracy_control_keeps_layers_in_float(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task]
) -> None:
    """What costs too much by itself comes within the bound, with fewer layers in int8."""
    needs(".xml")
    import openvino as ov

    bundle, task = fitted
    counts = {}
    # NNCF judges by other images than the export: at a bound of 0 one image of either decides.
    for name, max_drop in (("free", 100.0), ("bound", 1.0)):
        path = tmp_path / f"{name}.xml"
        result = export_int8(
            bundle, backbone, path, task, max_drop=max_drop, control=True, accept_unproven=True
        )
        assert [trial.scheme for trial in result.tried] == ["SmoothQuant 0.15, accuracy control"]
        assert result.tried[-1].low <= max_drop
        ops = ov.Core().read_model(path).get_ops()
        counts[name] = sum(op.get_type_name() == "FakeQuantize" for op in ops)
    assert 0 < counts["bound"] <= counts["free"]


def mixable(bundle: Bundle) -> Bundle:
    """The same bundle with two sources of which the first is what was chosen."""
    other = np.random.default_rng(1).normal(size=bundle.prompt.shape)
    tokens = np.stack([bundle.prompt, other]).astype(np.float16)
    return replace(
        bundle,
        choice="best_source",
        weights=np.array([1, 0], np.float32),
        source_tokens=tokens,
    )


def test_weights_at_run_time_reach_an_int8_model(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task]
) -> None:
    bundle, task = fitted
    path, floating = tmp_path / "pets.onnx", tmp_path / "float.onnx"
    bundle = mixable(bundle)
    assert export_int8(
        bundle, backbone, path, task, max_drop=20, runtime_weights=True, adapt=True
    ).verification.ok
    export_onnx(bundle, backbone, floating, runtime_weights=True)
    small, large = Predictor(path), Predictor(floating)
    assert small.metadata.precision == "int8"
    assert bank_path(path).exists()
    assert adapt_path(path).exists()
    images = task.test.pixels[:20]
    found = []
    for mix in ([1.0, 0.0], [0.0, 1.0]):
        small.set_weights(mix)
        large.set_weights(mix)
        found.append(small.logits(images))
        scale = np.abs(large.logits(images)).max()
        assert np.abs(found[-1] - large.logits(images)).max() < 0.2 * scale
    assert np.abs(found[0] - found[1]).max() > 0.3 * np.abs(found[0]).max()
    small.set_weights([1.0, 0.0])
    seen = task.train.pixels[:60]
    labels = small.logits(seen).argmax(1)  # what the first source says
    learner = ForwardLearner(small, Settings(steps=4))
    start = Weights(np.array([0.0, 1.0]), learner.head)
    proposal = adapt_labelled(learner, seen, labels, start)
    assert proposal.verdict.taken, proposal.verdict.reason
    assert proposal.weights.mix[0] > 0.5, "forwards only, on int8"


@pytest.mark.parametrize("scheme", onnx_schemes(2), ids=lambda scheme: scheme.name)
def test_every_scheme_takes_a_prefix_that_comes_with_the_image(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task], scheme: Scheme
) -> None:
    bundle = mixable(fitted[0])
    bank = make_bank(bundle, backbone)
    given = bank.inputs(bank.initial)
    scheme = next(s for s in onnx_schemes(backbone.depth, given) if s.name == scheme.name)
    ir.save(build_graph(bundle, backbone, Rewrites(), bank), tmp_path / "float.onnx")
    scheme.write(tmp_path / "float.onnx", fitted[1].train.pixels[:32], tmp_path / "int8.onnx")
    images = fitted[1].test.pixels[:7]
    found = OnnxEngine(tmp_path / "int8.onnx").run(images, given)
    wanted = OnnxEngine(tmp_path / "float.onnx").run(images, given)
    assert np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()


@pytest.mark.parametrize("head", ["lda", "logistic"])
def test_a_head_that_has_not_seen_the_images_judges(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task], head: str
) -> None:
    """float32 is as good as cross-fitting says, whatever the bundle's own head makes of them."""
    bundle, task = fitted
    judge = Judge(FeatureStore(backbone, enabled=False), task, head)
    row = judge.on_validation(Candidate("learned", bundle.prompt, bundle.weights))
    choice = judge.head_choice(bundle.prompt)
    labels = torch.from_numpy(judge.labels)
    first, right = choice.held_out[:5], 0  # the first division into folds
    for rows, logits in first:
        right += int((logits.argmax(1) == labels[rows]).sum())
    bundle = replace(
        bundle,
        objective={"head": head},
        head=Head(-bundle.head.weight, -bundle.head.bias),
        probe_logits=-bundle.probe_logits,
    )
    result = export_int8(bundle, backbone, tmp_path / "m.onnx", task, max_drop=9)
    assert result.float_accuracy == pytest.approx(right / len(labels), abs=2.1 / len(labels))
    logits = Predictor(tmp_path / "m.onnx").logits(task.validation.pixels)
    share = (logits.argmax(1) == task.validation.labels).mean()
    assert share < 0.2 < row.val_accuracy, "the bundle's head is in the file"


def spoiled(*damage: float) -> Any:
    """Schemes that write the float graph with one number of every patch moved so much."""

    def scheme(amount: float) -> Scheme:
        def write(graph: Path, _: Any, path: Path) -> None:
            proto = onnx.load(graph)
            for tensor in proto.graph.initializer:
                if tensor.name == "patch_embed.bias":
                    array = onnx.numpy_helper.to_array(tensor).copy()
                    array[..., 0] += amount
                    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            onnx.save(proto, path)

        return Scheme(f"moved by {amount:g}", write)

    return lambda *_: [scheme(amount) for amount in damage]


@pytest.mark.parametrize("choice", ["tuned", "none"])
def test_what_devices_start_from_is_judged(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
) -> None:
    """After a merge that is not the bundle's prompt, and may be a share beside the model alone."""
    bundle, task = fitted
    bundle = replace(
        mixable(bundle),
        choice=choice,
        prompt=None if choice == "none" else bundle.prompt[::-1].copy(),
        initial=np.array([0.4, 0.6, 0] if choice == "none" else [0, 1, 0], np.float32),
    )
    monkeypatch.setattr(int8, "onnx_schemes", spoiled(0))
    path = tmp_path / "m.onnx"
    result = export_int8(bundle, backbone, path, task, max_drop=100, runtime_weights=True)
    assert result.tried[0].drop == 0, "the float graph as it is loses nothing"
    predictor = Predictor(path)
    features = [torch.tensor(predictor.features(p.pixels)) for p in (task.train, task.validation)]
    if choice == "tuned":  # its prompt may have been trained on the training images
        head = fit_head(features[0], task.train.labels, len(task.classes), bundle.seed)
        right = accuracy(logits_of(head, features[1]), task.validation.labels)
        assert (result.images, result.float_accuracy) == (len(task.validation), right)
        return
    labels = np.concatenate([task.train.labels, task.validation.labels])
    chosen = choose_head(torch.cat(features), labels, len(task.classes), bundle.seed)
    found = [logits.argmax(1) == torch.tensor(labels)[r] for r, logits in chosen.held_out[:5]]
    assert result.images == len(labels)
    assert result.float_accuracy == pytest.approx(
        float(torch.cat(found).double().mean()), abs=2.1 / len(labels)
    )


def test_the_next_safer_scheme_is_tried(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, task = fitted
    monkeypatch.setattr(int8, "onnx_schemes", spoiled(1000, 0, 0))
    stages: list[Any] = []
    result = export_int8(
        bundle,
        backbone,
        tmp_path / "m.onnx",
        task,
        max_drop=2,
        report=lambda *stage: stages.append(stage),
    )
    assert [trial.scheme for trial in result.tried] == ["moved by 1000", "moved by 0"]
    assert result.tried[0].drop > 10
    assert result.tried[1].drop == 0
    assert stages == [("int8: moved by 1000", 0, 3), ("int8: moved by 0", 1, 3)]


def test_an_accuracy_out_of_reach_leaves_the_old_file(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, task = fitted
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old file")
    monkeypatch.setattr(int8, "onnx_schemes", spoiled(1000, 900))
    with pytest.raises(CheckError, match=r"`max_drop=0\.5` of .*moved by 1000: .*moved by 900: "):
        export_int8(bundle, backbone, path, task, max_drop=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"the old file"


def test_where_the_images_are_too_few_a_model_is_written_on_request_only(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tuned prompt leaves the validation images alone, and no loss on them proves little."""
    bundle, task = fitted
    bundle, path = replace(bundle, choice="tuned"), tmp_path / "m.onnx"
    monkeypatch.setattr(int8, "onnx_schemes", spoiled(0, 0))
    count = len(task.validation)
    few = rf"{count} held-out images are too few .*`max_drop=1` \(moved by 0: 0\.0 points lost, "
    needed = 268  # z^2 / (n + z^2) is below one in a hundred from here on
    with pytest.raises(CheckError, match=few + rf".*about {needed} would .*`accept_unproven=True`"):
        export_int8(bundle, backbone, path, task, max_drop=1)
    assert not list(tmp_path.iterdir())
    result = export_int8(bundle, backbone, path, task, max_drop=1, accept_unproven=True)
    assert not result.proven
    assert result.needed == needed
    assert len(result.tried) == 1, "no safer scheme would prove more"
    assert Predictor(path).metadata.quantization["proven"] is False


def test_of_what_is_not_proven_the_least_loss_at_worst_is_in_the_file(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, task = fitted
    monkeypatch.setattr(int8, "onnx_schemes", spoiled(3, 1, 2, 1000))
    path = tmp_path / "m.onnx"
    found: list[Any] = []

    def compared(*_: Any, **__: Any) -> Paired:
        found.append(Paired(200, *((9, 3), (4, 2), (6, 3), (90, 1))[len(found)]))
        return found[-1]

    monkeypatch.setattr(int8, "held_against", compared)
    result = export_int8(bundle, backbone, path, task, max_drop=2, accept_unproven=True)
    assert [t.scheme for t in result.tried] == [f"moved by {n}" for n in (3, 2, 1000, 1)]
    assert result.tried[-1].drop == 1
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    exact = onnx.load(float_model(tmp_path / "float", bundle, backbone)).graph.initializer
    (bias,) = (onnx.numpy_helper.to_array(t) for t in exact if t.name == "patch_embed.bias")
    np.testing.assert_allclose(weights["patch_embed.bias"][..., 0], bias[..., 0] + 1, rtol=1e-5)


def test_any_name_can_be_given(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task]
) -> None:
    """The one of the float graph that is quantized, too."""
    bundle, task = fitted
    path = tmp_path / "float.onnx"
    export_int8(bundle, backbone, path, task, max_drop=20)
    assert [p.name for p in tmp_path.iterdir()] == ["float.onnx"]
    assert Predictor(path).metadata.precision == "int8"
    assert Predictor(path).compare_probe().ok


def test_images_that_do_not_fit_are_refused(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task]
) -> None:
    bundle, task = fitted
    few = replace(task, train=task.train.subset(range(31)))
    with pytest.raises(UserError, match="31 training images, and int8 takes at least 32"):
        export_int8(bundle, backbone, tmp_path / "m.onnx", few)
    none = replace(task, validation=task.validation.subset([]))
    with pytest.raises(UserError, match="no validation images, and the accuracy of int8 is"):
        export_int8(bundle, backbone, tmp_path / "m.onnx", none)
    other = replace(task, digest="of others")
    with pytest.raises(UserError, match="pets does not fit toy: it was fitted on other images"):
        export_int8(bundle, backbone, tmp_path / "m.onnx", other)
    with pytest.raises(UserError, match="its 4 classes are not the 3 of these images"):
        export_int8(make_bundle(backbone), backbone, tmp_path / "m.onnx", task)
    assert not list(tmp_path.iterdir())


def run(*words: str) -> Result:
    from hgprompt_edge.cli.main import app

    return CliRunner().invoke(app, list(words))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgprompt_edge import load_backbone, load_task

    monkeypatch.chdir(tmp_path)
    shorten_digits(monkeypatch, 180)
    backbone = load_backbone("tiny")
    task = load_task("digits", backbone.preprocessing)
    bundle = make_bundle(backbone, "none", classes=len(task.classes))
    bundle = replace(bundle, classes=task.classes, task="digits", split_digest=task.digest)
    write_bundle(Path("digits.hgbundle"), bundle)
    result = run("export", "--precision", "int8", "--task", "digits", "--max-drop", "100")
    assert result.exit_code == 0, result.stderr
    assert "int8 scheme" in result.stdout
    assert "dynamic" in result.stdout
    assert "near PyTorch on 9 images" in result.stdout
    assert "test images" in result.stdout
    assert Path("digits.onnx").stat().st_size < 5e6, "3.6 M parameters, one byte each, and a head"


def test_nncf_that_is_not_installed_names_the_extra(
    tmp_path: Path,
    backbone: Backbone,
    fitted: tuple[Bundle, Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hgprompt_edge.export.int8.schemes.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"nncf, which is not installed; .*hgprompt-edge\[int8\]"):
        export_int8(fitted[0], backbone, tmp_path / "m.xml", fitted[1])
