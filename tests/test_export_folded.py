"""Several folded prompts in one bundle and one graph: the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from PIL import Image
from planted import known_statistics
from safetensors.numpy import load_file, save_file
from small_vits import make_backbone, make_bundle
from test_monitor import make_reference
from toys import make_task

from hgprompt_edge import load_backbone
from hgprompt_edge.adapt.closed_loop import ClosedLoop
from hgprompt_edge.adapt.images import read_unlabelled
from hgprompt_edge.adapt.model import Request
from hgprompt_edge.artifacts.bank_entries import FOLDED
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.artifacts.device_bank import adapt_path, read_bank
from hgprompt_edge.artifacts.folded import FoldedPrompt
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Task
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.int8.quantize import export_int8
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.openvino_file import Precision, export_openvino
from hgprompt_edge.fit.assemble import bundle_logits
from hgprompt_edge.fit.merged_bundle import with_mix
from hgprompt_edge.heads.best_head import choose_head, fit_head
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_mean_softmax, log_softmax, softmax
from hgprompt_edge.runtime.bench import bench
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitor import Monitor

TWO, THREE = ("deep", "none"), ("none", "deep", "short")
"""Which prompts a bundle folds: random ones, none, and one of fewer tokens."""


def singles(backbone: Backbone, modes: tuple[str, ...], classes: int = 4) -> list[Bundle]:
    """A bundle for each folded prompt, as if it were the only one."""
    found = []
    for seed, mode in enumerate(modes):
        bundle = make_bundle(backbone, mode.replace("short", "deep"), seed, classes)
        if mode == "short" and bundle.prompt is not None:
            bundle = replace(bundle, prompt=bundle.prompt[:, :2])
        found.append(with_probe(replace(bundle, probe_images=found[0].probe_images), backbone)
                     if found else bundle)  # fmt: skip
    return found


def with_probe(bundle: Bundle, backbone: Backbone) -> Bundle:
    return replace(bundle, probe_logits=bundle_logits(backbone, bundle.probe_images, bundle.folded))


def together(bundles: list[Bundle], backbone: Backbone) -> Bundle:
    """One bundle that folds the prompts of several."""
    more = tuple(FoldedPrompt(b.prompt, b.weights, b.head, b.choice) for b in bundles[1:])
    return with_probe(replace(bundles[0], choice="folded", more=more), backbone)


def of(backbone: Backbone, modes: tuple[str, ...], classes: int = 4) -> Bundle:
    return together(singles(backbone, modes, classes), backbone)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


CASES = [
    ("tanh gelu", TWO, 23),
    ("tanh gelu", THREE, 23),
    ("tanh gelu", THREE, 20),
    ("average with registers", TWO, 23),
    ("class token and patches", THREE, 23),
    ("qk-norm", TWO, 23),
    ("one block", THREE, 23),
]


@pytest.mark.parametrize(("family", "modes", "opset"), CASES)
def test_probabilities_are_the_mean_of_those_of_separate_models(
    tmp_path: Path, family: str, modes: tuple[str, ...], opset: int
) -> None:
    backbone = make_backbone(family)
    bundles = singles(backbone, modes)
    bundle = together(bundles, backbone)
    assert export_onnx(bundle, backbone, tmp_path / "all.onnx", opset=opset).ok
    predictor = Predictor(tmp_path / "all.onnx")
    assert predictor.metadata.folded_prompts == len(modes)
    assert [one["method"] for one in predictor.metadata.more] == [b.choice for b in bundles[1:]]
    assert predictor.compare_probe().ok
    for batch in (1, 3):
        images, expected = bundle.probe_images[:batch], []
        for index, one in enumerate(bundles):
            export_onnx(one, backbone, tmp_path / f"{index}.onnx", opset=opset)
            expected.append(Predictor(tmp_path / f"{index}.onnx").probabilities(images))
        mean = np.mean(expected, axis=0)
        np.testing.assert_allclose(predictor.probabilities(images), mean, atol=1e-5)
        np.testing.assert_allclose(np.exp(predictor.logits(images)), mean, atol=1e-5)


@pytest.mark.parametrize("modes", [TWO, THREE])
def test_openvino_gives_the_same(
    tmp_path: Path, backbone: Backbone, modes: tuple[str, ...]
) -> None:
    pytest.importorskip("openvino")
    bundle = of(backbone, modes)
    for precision, bound in ((Precision.FP32, 1e-4), (Precision.FP16, 2e-2)):
        path = tmp_path / f"{precision.value}.xml"
        assert export_openvino(bundle, backbone, path, precision=precision).ok
        predictor = Predictor(path, threads=1)
        assert predictor.metadata.folded_prompts == len(modes)
        for batch in (1, 3):
            found = predictor.logits(bundle.probe_images[:batch])
            scale = max(1, np.abs(bundle.probe_logits).max())
            np.testing.assert_allclose(found, bundle.probe_logits[:batch], atol=bound * scale)


def test_weights_are_in_the_file_once(tmp_path: Path, backbone: Backbone) -> None:
    bundles = singles(backbone, ("deep", "deep", "deep"))
    export_onnx(bundles[0], backbone, tmp_path / "one.onnx")
    export_onnx(together(bundles, backbone), backbone, tmp_path / "three.onnx")
    one, three = (
        {t.name: t.dims for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer}
        for name in ("one", "three")
    )
    kinds = ("patch_embed.weight", ".attn.q.weight", ".attn.proj.weight", ".mlp.fc1.weight")
    for kind in kinds:
        assert [n for n in one if n.endswith(kind)] == [n for n in three if n.endswith(kind)]


def test_the_mean_survives_probabilities_that_float32_cannot_hold() -> None:
    logits = np.array([[[0.0, -2000, -3000]], [[0.0, -2500, -2000]]])
    np.testing.assert_allclose(
        log_mean_softmax(logits), [[0, -2000 - np.log(2), -2000 - np.log(2)]], rtol=1e-6
    )


def test_a_graph_keeps_probabilities_that_float32_cannot_hold(
    tmp_path: Path, backbone: Backbone
) -> None:
    bundles = [
        with_probe(replace(b, head=replace(b.head, weight=100 * b.head.weight)), backbone)
        for b in singles(backbone, ("deep", "none"))
    ]
    bundle = together(bundles, backbone)
    assert bundle.probe_logits.min() < -200
    assert export_onnx(bundle, backbone, tmp_path / "sure.onnx").ok


def test_a_wrong_graph_gets_no_name(tmp_path: Path, backbone: Backbone) -> None:
    """The mean of the logits, as if they were probabilities, is not taken for the same."""
    bundles = singles(backbone, TWO)
    logits = [log_softmax(b.probe_logits) for b in bundles]
    wrong = replace(
        together(bundles, backbone), probe_logits=np.mean(logits, axis=0).astype(np.float32)
    )
    with pytest.raises(CheckError, match="from the logits that fit stored"):
        export_onnx(wrong, backbone, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path, backbone: Backbone) -> None:
    for modes in (TWO, THREE):
        bundle = of(backbone, modes)
        write_bundle(tmp_path / "a.hgbundle", bundle)
        found = read_bundle(tmp_path / "a.hgbundle")
        write_bundle(tmp_path / "b.hgbundle", found)
        assert (tmp_path / "a.hgbundle").read_bytes() == (tmp_path / "b.hgbundle").read_bytes()
        for one, other in zip(found.folded, bundle.folded, strict=True):
            assert one.method == other.method
            assert (one.prompt is None) == (other.prompt is None)
            if one.prompt is not None:
                np.testing.assert_array_equal(one.prompt, other.prompt)
            np.testing.assert_array_equal(one.head.weight, other.head.weight)
            np.testing.assert_array_equal(one.head.bias, other.head.bias)
            np.testing.assert_array_equal(one.weights, other.weights)
    alone = make_bundle(backbone)
    write_bundle(tmp_path / "a.hgbundle", alone)
    assert not any(name.startswith("more") for name in load_file(tmp_path / "a.hgbundle"))


Damage = Callable[[dict[str, np.ndarray], dict[str, str]], object]


def cut(name: str) -> Damage:
    return lambda tensors, _: tensors.update({name: tensors[name][..., :-1].copy()})


DAMAGE: dict[str, tuple[Damage, str]] = {
    "prompt": (cut("more.1.prompt"), "'more.1.prompt' is float32 [2, 2, 31]"),
    "layers": (
        lambda t, _: t.update({"more.1.prompt": t["more.1.prompt"][:1].copy()}),
        "'more.1.prompt' is float32 [1, 2, 32]",
    ),
    "classes": (cut("more.0.head.bias"), "'more.0.head.bias' is float32 [3]"),
    "features": (cut("more.0.head.weight"), "'more.0.head.weight' is float32 [4, 31]"),
    "sources": (cut("more.0.weights"), "'more.0.weights' is float32 [1]"),
    "dtype": (
        lambda t, _: t.update({"more.0.head.bias": t["more.0.head.bias"].astype(np.float64)}),
        "'more.0.head.bias' is float64 [4]",
    ),
    "missing": (lambda t, _: t.pop("more.0.weights"), "'more.0.weights'"),
    "left over": (
        lambda _, m: m.update(more=json.dumps(json.loads(m["more"])[:1])),
        "is of no folded prompt",
    ),
    "too many": (
        lambda _, m: m.update(more=json.dumps(["a", "b", "c"])),
        "4 folded prompts, and 3 is the most",
    ),
    "no names": (lambda _, m: m.update(more="[1, 2]"), "'more' is no list of names"),
    "to be mixed": (
        lambda t, _: t.update(initial=np.ones(2, np.float32)),
        "several folded prompts with shallow tokens, conditions or an initial mix",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_bundle_is_named(tmp_path: Path, backbone: Backbone, name: str) -> None:
    damage, words = DAMAGE[name]
    path = tmp_path / "pets.hgbundle"
    bundle = of(backbone, ("deep", "none", "short"))
    write_bundle(path, bundle)
    tensors = load_file(path)
    metadata = header(path)
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(UserError) as caught:
        read_bundle(path)
    assert str(caught.value).startswith(f"{path}: damaged bundle (")
    assert words in str(caught.value)
    assert str(caught.value).endswith("run `hgedge fit` again")


def header(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    found = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata: dict[str, str] = found["__metadata__"]
    return metadata


def test_parts_that_fit_each_other_but_not_the_backbone_are_named(
    tmp_path: Path, backbone: Backbone
) -> None:
    bundle = of(backbone, TWO)
    shallow = replace(bundle.more[0], prompt=np.zeros((1, 2, 32), np.float32))
    with pytest.raises(UserError, match=r"its more\.0\.prompt is \(1, 2, 32\)"):
        export_onnx(replace(bundle, more=(shallow,)), backbone, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="its number of folded prompts is 4"):
        export_onnx(replace(bundle, more=bundle.more * 3), backbone, tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def fitted(backbone: Backbone) -> tuple[Bundle, Task]:
    """Three folded prompts whose heads name the class of most images of a task."""
    bundles = singles(backbone, ("deep", "none", "short"), classes=3)
    task = make_task(backbone, bundles[0].prompt)
    found = []
    for bundle in bundles:
        features = extract_features(backbone, task.train.pixels, bundle.prompt)
        head = fit_head(features, task.train.labels, 3)
        fits = {"classes": task.classes, "split_digest": task.digest}
        found.append(replace(bundle, head=head.as_float32(), **fits))
    return together(found, backbone), task


# NNCF takes half a minute on a busy machine.
@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".xml", marks=pytest.mark.slow)])
def test_int8_names_the_same_classes(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task], suffix: str
) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")
    bundle, task = fitted
    path = tmp_path / f"m{suffix}"
    result = export_int8(bundle, backbone, path, task, max_drop=9)
    pixels = np.concatenate([task.train.pixels, task.validation.pixels])
    labels = np.concatenate([task.train.labels, task.validation.labels])
    choices = [
        choose_head(extract_features(backbone, pixels, one.prompt), labels, 3)
        for one in bundle.folded
    ]
    right = []
    for parts in zip(*(choice.held_out[:5] for choice in choices), strict=True):
        found = [
            softmax((choice.scale * logits).numpy())
            for choice, (_, logits) in zip(choices, parts, strict=True)
        ]
        right.append(np.mean(found, axis=0).argmax(1) == labels[parts[0][0].numpy()])
    assert result.float_accuracy == pytest.approx(np.concatenate(right).mean(), abs=1e-6)
    predictor = Predictor(path)
    images = np.concatenate([task.validation.pixels, task.test.pixels])
    exact = bundle_logits(backbone, images, bundle.folded)
    found = np.concatenate([predictor.logits(images[i : i + 5]) for i in range(0, len(images), 5)])
    assert np.abs(found - exact).max() > 1e-4, "the body is not int8"
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9


def test_an_int8_model_gives_what_a_device_can_move_a_head_on(
    tmp_path: Path, backbone: Backbone, fitted: tuple[Bundle, Task]
) -> None:
    bundle, task = fitted
    path = tmp_path / "m.onnx"
    export_int8(bundle, backbone, path, task, max_drop=20, runtime_weights=True, adapt=True)
    predictor, images = Predictor(path), task.test.pixels[:9]
    np.testing.assert_array_equal(predictor.features(images), predictor.logits(images))


class Device:
    """A folder with a model for devices, and images whose classes the shipped bias gets wrong."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        # Patches of one colour each: noise would look the same to a random ViT in every image.
        coarse = np.random.default_rng(5).integers(0, 256, (80, 3, 3, 3), dtype=np.uint8)
        self.images = coarse.repeat(8, axis=1).repeat(8, axis=2)
        bundles = []
        for bundle in singles(backbone, TWO):
            mild = replace(bundle, head=replace(bundle.head, weight=bundle.head.weight / 2))
            level = bundle_logits(backbone, self.images, mild.folded).mean(axis=0)
            head = Head(mild.head.weight, mild.head.bias - level)  # all classes occur
            bundles.append(replace(mild, head=head))
        bundle = replace(together(bundles, backbone), classes=("a", "b", "c", "d"))
        self.log_p = bundle_logits(backbone, self.images, bundle.folded)
        mean, variance = self.log_p.mean(axis=0), self.log_p.var(axis=0)
        shift = np.array([0.8, -0.6, 0.6, -0.8]) * np.sqrt(variance)
        self.labels = (self.log_p + shift).argmax(axis=1)
        clean = (mean + shift).astype(np.float32), variance.astype(np.float32)
        self.bundle = replace(bundle, clean=known_statistics(*clean, 4))
        self.path = folder / "m.onnx"
        export_onnx(self.bundle, backbone, self.path, runtime_weights=True, adapt=True)
        for index, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            place = folder / "seen" / bundle.classes[label] / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Device:
    return Device(tmp_path_factory.mktemp("device"), backbone)


def test_a_device_gets_the_averaged_probabilities_and_no_gradient(device: Device) -> None:
    bank = read_bank(device.path.with_suffix("").with_suffix(".bank.safetensors"))
    assert bank.names == (FOLDED,)
    assert bank.inputs(bank.initial) == {}
    np.testing.assert_array_equal(bank.head.weight, np.eye(4))
    np.testing.assert_array_equal(bank.head.bias, np.zeros(4))
    np.testing.assert_array_equal(bank.clean.mean, device.bundle.clean.mean)
    assert not adapt_path(device.path).exists()
    predictor = Predictor(device.path)
    np.testing.assert_allclose(predictor.features(device.images), device.log_p, atol=1e-4)


def test_labels_move_the_bias_of_the_averaged_probabilities(device: Device, tmp_path: Path) -> None:
    data, state = device.path.parent / "seen", tmp_path / "state"
    words = f"adapt --model {device.path} --data {data} --state {state} --json"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["accuracy_before"] < document["accuracy_after"]
    before, after = Predictor(device.path), Predictor(device.path, state=state)
    shift = after.logits(device.images) - before.logits(device.images)
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)
    one_hot = np.eye(4)[device.labels]
    losses = [
        -(one_hot * log_softmax(p.logits(device.images))).sum(1).mean() for p in (before, after)
    ]
    assert losses[1] < losses[0]


def test_without_labels_the_bias_follows_the_mean(device: Device, tmp_path: Path) -> None:
    data, state = device.path.parent / "seen", tmp_path / "state"
    words = f"adapt --model {device.path} --data {data} --unlabelled --state {state} --json"
    result = run(*words.split())
    assert result.exit_code == 0, result.stdout
    before, after = Predictor(device.path), Predictor(device.path, state=state)
    images = read_unlabelled(data, before.preprocessing).pixels
    moved = after.logits(images)
    np.testing.assert_allclose(moved.mean(axis=0), device.bundle.clean.mean, atol=1e-4)
    shift = moved - before.logits(images)
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)


def test_an_alarm_cannot_start_the_adaptation_of_a_fixed_mix(
    device: Device, tmp_path: Path
) -> None:
    monitor, request = Monitor(make_reference()), Request(data=(), unlabelled=True)
    with pytest.raises(UserError, match="whose mixing weights are fixed") as caught:
        ClosedLoop(monitor, device.path, tmp_path / "state", request)
    assert str(caught.value).endswith("; leave out `adapt`")
    assert not (tmp_path / "state").exists()


def test_a_device_refuses_what_another_set_of_prompts_learned(
    device: Device, tmp_path: Path, backbone: Backbone
) -> None:
    data, state = device.path.parent / "seen", tmp_path / "state"
    run(*f"adapt --model {device.path} --data {data} --state {state}".split())
    more = tuple(
        replace(one, head=replace(one.head, bias=one.head.bias + 1)) for one in device.bundle.more
    )
    other = with_probe(replace(device.bundle, more=more), backbone)
    export_onnx(other, backbone, tmp_path / "other.onnx", runtime_weights=True)
    with pytest.raises(UserError, match="another"):
        Predictor(tmp_path / "other.onnx", state=state)


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of two folded prompts on the bundled backbone, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_bundle(Path("pets.hgbundle"), of(load_backbone("tiny"), TWO))
    return tmp_path


def test_the_command_line_says_how_many_prompts_are_folded(pets: Path) -> None:
    result = run("export")
    assert result.exit_code == 0, result.stderr
    assert "2 folded prompts, equal to PyTorch on 9 images" in " ".join(result.stdout.split())
    result = run("verify", "pets.onnx", "--bundle", "pets.hgbundle")
    assert result.exit_code == 0, result.stdout
    assert "2 folded prompts, their probabilities averaged" in result.stdout
    image = read_bundle(pets / "pets.hgbundle").probe_images[0]
    Image.fromarray(image).save("one.png")
    answer = run("predict", "--model", "pets.onnx", "one.png", "--top", "4", "--json")
    labels = {c["label"]: c["probability"] for c in json.loads(answer.stdout)[0]["classes"]}
    bundle = read_bundle(pets / "pets.hgbundle")
    expected = dict(zip(bundle.classes, softmax(bundle.probe_logits)[0], strict=True))
    assert labels == pytest.approx(expected, abs=1e-3)
    write_bundle(Path("one.hgbundle"), make_bundle(load_backbone("tiny")))
    run("export", "one.hgbundle")
    rows = bench([Path("one.onnx"), Path("pets.onnx")], threads=1, runs=2)
    assert [row.folded_prompts for row in rows] == [1, 2]


def test_a_mix_of_devices_cannot_replace_several_prompts(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="averages 2 folded prompts"):
        with_mix(of(backbone, TWO), np.ones(1, np.float32), {}, backbone)
