"""A file that has its name is whole and equal to PyTorch; otherwise there is no file."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_vits import make_backbone, make_bundle

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export import onnx_file, verify
from hgprompt_edge.export.onnx_file import export_onnx, resize_rule
from hgprompt_edge.export.verify import verify_onnx
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.parity import compare
from hgprompt_edge.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="module")
def bundle(backbone: Backbone) -> Bundle:
    return make_bundle(backbone)


def assert_untouched(path: Path, old: bytes | None) -> None:
    """Nothing but the old file is in the folder."""
    assert sorted(path.parent.iterdir()) == ([] if old is None else [path])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("mode", ["deep", "shallow", "none"])
def test_exported_file_is_verified_and_says_what_it_is(tmp_path: Path, mode: str) -> None:
    backbone = make_backbone("registers")
    bundle = make_bundle(backbone, mode)
    write_bundle(tmp_path / "pets.hgbundle", bundle)
    path = tmp_path / "pets.onnx"
    verification = export_onnx(read_bundle(tmp_path / "pets.hgbundle"), backbone, path)
    assert verification.ok
    assert verification.batches == (1, 2, 7)
    assert verification.images == 9
    assert verification.max_abs_diff < verification.bound
    # The bound is that of the batch with the largest difference, which rounding decides.
    assert 1e-4 <= verification.bound <= 1.001e-4 * np.abs(bundle.probe_logits).max()
    assert verification.top1_agreement == 1
    assert verification.runtime.startswith("onnxruntime ")
    assert {p.name for p in tmp_path.iterdir()} == {"pets.hgbundle", "pets.onnx"}
    onnx.checker.check_model(path, full_check=True)
    metadata = Predictor(path).metadata
    assert metadata.format == "hgprompt.model/1"
    assert metadata.classes == bundle.classes
    assert metadata.preprocessing == bundle.preprocessing
    assert metadata.image_size == 56
    assert (metadata.task, metadata.choice, metadata.mode) == ("pets", bundle.choice, bundle.mode)
    assert (metadata.backbone, metadata.backbone_sha256) == ("registers", backbone.sha256)
    assert metadata.weights == (0.25, 0.75)
    assert metadata.sources == bundle.sources
    assert metadata.objective == bundle.objective
    assert metadata.table == tuple(vars(row) for row in bundle.table)
    assert metadata.versions["onnx"] == onnx.__version__
    assert metadata.verification["max_abs_diff"] == verification.max_abs_diff
    images, logits = metadata.probe()
    np.testing.assert_array_equal(images, bundle.probe_images)
    np.testing.assert_array_equal(logits, bundle.probe_logits)


def test_older_runtimes_get_an_opset_of_their_own(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    path = tmp_path / "m.onnx"
    assert export_onnx(bundle, backbone, path, opset=20).ok
    assert [o.version for o in onnx.load(path).opset_import] == [20]
    with pytest.raises(UserError, match="`opset=19`: not supported; use 23 "):
        export_onnx(bundle, backbone, path, opset=19)


def test_metadata_is_flat_strings_under_one_prefix(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    export_onnx(bundle, backbone, tmp_path / "m.onnx")
    entries = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert all(key.startswith("hgprompt.") for key in entries)
    assert json.loads(entries["hgprompt.classes"]) == list(bundle.classes)
    assert json.loads(entries["hgprompt.preprocessing"])["image_size"] == 24


def test_large_probe_images_are_not_all_carried(backbone: Backbone, bundle: Bundle) -> None:
    large = replace(bundle, probe_images=np.zeros((9, 224, 224, 3), np.uint8))
    entries = onnx_file.describe(large)
    assert len(json.loads(entries["hgprompt.probe_logits"])) == 4


def test_same_bundle_same_bytes(tmp_path: Path, bundle: Bundle, backbone: Backbone) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_onnx(bundle, backbone, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_other_images_than_the_probe_can_be_given(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    images = np.random.default_rng(5).integers(0, 256, (17, 24, 24, 3), dtype=np.uint8)
    assert export_onnx(bundle, backbone, tmp_path / "m.onnx", images=images).images == 17
    without_probe = replace(
        bundle, probe_images=bundle.probe_images[:0], probe_logits=bundle.probe_logits[:0]
    )
    verification = export_onnx(without_probe, backbone, tmp_path / "m.onnx", images=images[:1])
    assert verification.probe_max_abs_diff is None
    assert len(Predictor(tmp_path / "m.onnx").metadata.probe()[0]) == 0
    with pytest.raises(UserError, match="images to verify on"):
        export_onnx(without_probe, backbone, tmp_path / "m.onnx")


def scaled(array: np.ndarray) -> np.ndarray:
    return array * np.float32(1.01)


def last_changed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[-1] += 0.5
    return changed


def not_a_number(array: np.ndarray) -> np.ndarray:
    return array * np.float32("nan")


def mis_shaped(array: np.ndarray) -> np.ndarray:
    return array[..., :-1]


@pytest.mark.parametrize("old", [None, b"the old file"], ids=["no old file", "old file"])
@pytest.mark.parametrize(
    ("name", "tamper"),
    [
        ("head.weight", scaled),
        ("head.weight", last_changed),
        ("head.weight", not_a_number),
        ("head.weight", mis_shaped),
        ("head.bias", scaled),
        ("blocks.0.attn.prefix_k", scaled),
        ("blocks.1.attn.prefix_k", last_changed),
        ("blocks.0.attn.prefix_v", scaled),
        ("blocks.1.attn.prefix_v", last_changed),
        ("blocks.1.attn.prefix_v", mis_shaped),
        ("patch_embed.weight", scaled),
        ("blocks.1.mlp.fc2.bias", scaled),
    ],
)
def test_a_tampered_graph_is_refused_and_leaves_nothing(
    tmp_path: Path,
    bundle: Bundle,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tamper: Any,
    old: bytes | None,
) -> None:
    honest = onnx_file.build_graph

    def build(*arguments: Any) -> ir.Model:
        model = honest(*arguments)
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.Tensor(tamper(value.const_value.numpy()), name=name)
        value.shape = value.const_value.shape
        return model

    monkeypatch.setattr(onnx_file, "build_graph", build)
    path = tmp_path / "m.onnx"
    if old:
        path.write_bytes(old)
    with pytest.raises(CheckError, match="nothing was written") as caught:
        export_onnx(bundle, backbone, path)
    assert str(caught.value).startswith(str(path))
    assert ".tmp" not in str(caught.value)
    if tamper in (scaled, last_changed):
        assert "largest difference of the logits from PyTorch" in str(caught.value)
    assert_untouched(path, old)


def test_a_head_that_is_not_the_one_that_fit_probed_is_refused(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    changed = replace(
        bundle, head=replace(bundle.head, weight=bundle.head.weight * np.float32(1.01))
    )
    with pytest.raises(CheckError, match="from the logits that fit stored"):
        export_onnx(changed, backbone, tmp_path / "m.onnx")
    assert_untouched(tmp_path / "m.onnx", None)


def test_a_file_of_another_bundle_does_not_verify(
    tmp_path: Path, bundle: Bundle, backbone: Backbone
) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(bundle, backbone, path)
    assert verify_onnx(path, bundle, backbone, bundle.probe_images[:3]).ok
    other = make_bundle(backbone, seed=1)
    assert not verify_onnx(path, other, backbone, other.probe_images).ok


@pytest.mark.parametrize("row", [0, 8])
def test_every_image_counts(
    tmp_path: Path,
    bundle: Bundle,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    row: int,
) -> None:
    honest = verify.reference_logits

    def one_row_off(*arguments: Any) -> np.ndarray:
        logits = honest(*arguments)
        logits[row] += 0.01
        return logits

    monkeypatch.setattr(verify, "reference_logits", one_row_off)
    with pytest.raises(CheckError, match=r"from PyTorch 0\.01"):
        export_onnx(bundle, backbone, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_sha256": "ab" * 32}, "`checkpoint`"),
        ({"head": Head(np.zeros((4, 7), "f"), np.zeros(4, "f"))}, r"its head.weight is \(4, 7\)"),
        ({"head": Head(np.zeros((4, 32), "f"), np.zeros(3, "f"))}, "its head.bias is"),
        ({"prompt": np.zeros((3, 5, 32), np.float32)}, "its prompt is"),
        ({"preprocessing": Preprocessing(32, 32)}, "its image size is 32"),
        ({"probe_images": np.zeros((2, 8, 8, 3), np.uint8)}, "its images to verify on"),
    ],
)
def test_a_bundle_that_does_not_fit_the_backbone_is_refused(
    tmp_path: Path, bundle: Bundle, backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export_onnx(replace(bundle, **changes), backbone, tmp_path / "m.onnx")
    assert_untouched(tmp_path / "m.onnx", None)


def test_a_model_too_large_for_one_file_is_refused(
    tmp_path: Path, bundle: Bundle, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(UserError, match="one ONNX file holds 2 GB"):
        export_onnx(bundle, backbone, tmp_path / "m.onnx")
    assert_untouched(tmp_path / "m.onnx", None)


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "save"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path,
    bundle: Bundle,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old file")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "save":
        monkeypatch.setattr(onnx_file.ir, "save", full)
    elif where == "os.fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_onnx(bundle, backbone, path)
    assert_untouched(path, b"the old file")


def test_a_missing_folder_is_named(tmp_path: Path, bundle: Bundle, backbone: Backbone) -> None:
    with pytest.raises(UserError, match="no-such-folder does not exist"):
        export_onnx(bundle, backbone, tmp_path / "no-such-folder" / "m.onnx")


def test_equal_is_what_method_8_says() -> None:
    reference = np.array([[1.0, 0.5], [0.2, 0.20005]], np.float32)
    assert compare(reference, reference).ok
    swapped = compare(np.array([[1.0, 0.5], [0.20005, 0.2]], np.float32), reference)
    assert swapped.ok, "a near tie may go either way"
    assert swapped.top1_agreement == 0.5
    assert not compare(reference + np.float32(1.2e-4), reference).ok
    assert compare(reference * 1000 + np.float32(0.05), reference * 1000).ok, "bound grows"
    assert compare(reference * 1000, reference * 1000).bound == pytest.approx(0.1)
    # Within the bound, but a class that was decided (top two 1.5e-4 apart) has changed.
    decided = np.array([[1.0, 0.99985]], np.float32)
    changed = compare(np.array([[0.99991, 0.99994]], np.float32), decided)
    assert changed.max_abs_diff < changed.bound
    assert not changed.ok
    for value in (np.nan, np.inf):
        broken = np.array([[1.0, value], [0.2, 0.1]], np.float32)
        assert not compare(broken, reference).ok
        assert not compare(broken, broken).ok


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (
            Preprocessing(224, 248),
            "RGB; resize the shorter side to 248 px (bicubic, antialiased), "
            "then crop 224 x 224 centrally",
        ),
        (
            Preprocessing(64, 64, "squash", "bilinear"),
            "RGB; resize both sides to 64 px (bilinear, antialiased)",
        ),
        (
            Preprocessing(64, 73).with_rule("letterbox"),
            "RGB; resize the longer side to 64 px (bicubic, antialiased), "
            "then centre it on 64 x 64 of the colour 128 128 128",
        ),
    ],
)
def test_resize_rule_in_words(preprocessing: Preprocessing, words: str) -> None:
    assert resize_rule(preprocessing) == words
