"""Features of the class token, of the mean of the patch tokens, and of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_vits import make_backbone, make_bundle, make_mixable
from torch import Tensor
from toys import make_bank, make_task, noise_tokens, pixels_of

from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.forward import (
    block_rows,
    extract_features,
    features_prefix,
    features_token,
    prepare_tokens,
)
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.export.verify import reference_logits
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.features.pooling import choose_pooling
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.runtime.predictor import Predictor

FAMILIES = ["tanh gelu", "registers", "class token, fc_norm"]


def images(backbone: Backbone, n: int = 3) -> Tensor:
    side = backbone.image_size
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_features_without_a_prompt_are_timms_tokens(family: str) -> None:
    backbone = make_backbone(family)
    model, x = backbone.model, images(backbone)
    tokens = model.norm(model.blocks(prepare_tokens(model, x)))
    token = model.fc_norm(tokens[:, 0])
    mean = model.fc_norm(tokens[:, model.num_prefix_tokens :].mean(1))
    for name, expected in {
        "token": token,
        "avg": mean,
        "both": torch.cat([token, mean], dim=1),
    }.items():
        pooled = backbone.with_pooling(name)
        assert pooled.feature_dim == expected.shape[1]
        assert relative(features_prefix(pooled.model, x, None), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["deep", "shallow"])
def test_both_are_the_one_behind_the_other_in_every_form(family: str, mode: str) -> None:
    backbone = make_backbone(family)
    layers = backbone.depth if mode == "deep" else 1
    shape = (layers, 4, backbone.embed_dim)
    prompt = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    x = images(backbone)
    for form in (features_token, features_prefix):
        found = {n: form(backbone.with_pooling(n).model, x, prompt) for n in backbone.poolings}
        joined = torch.cat([found["token"], found["avg"]], dim=1)
        assert relative(found["both"], joined) < 1e-5
        assert relative(found["avg"], found["token"]) > 1e-2
    if mode == "deep":
        features, rows = block_rows(backbone.with_pooling("both").model, x, prompt)
        assert relative(features, joined) < 1e-5
        parts = [block_rows(backbone.with_pooling(n).model, x, prompt)[1] for n in ("token", "avg")]
        assert relative(rows, torch.cat(parts, dim=2)) < 1e-5


def test_a_pooling_changes_neither_the_weights_nor_the_fingerprint_nor_the_original() -> None:
    backbone = make_backbone()
    pooled = backbone.with_pooling("both")
    assert (pooled.pooling, backbone.pooling) == ("both", "token")
    assert (pooled.feature_dim, backbone.feature_dim) == (2 * backbone.embed_dim, 32)
    assert pooled.sha256 == backbone.sha256
    ours, theirs = (list(b.model.parameters()) for b in (backbone, pooled))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    assert pooled.with_pooling("token").pooling == "token"
    assert pooled.in_precision("bfloat16").pooling == "both"


def test_a_backbone_that_averages_has_no_other_features() -> None:
    backbone = make_backbone("average, fc_norm")
    assert backbone.poolings == ("avg",)
    with pytest.raises(UserError, match=r"cannot be pooled by 'both', only by avg"):
        backbone.with_pooling("both")
    assert choose_pooling(FeatureStore(backbone), make_task(backbone)).name == "avg"


def test_one_pass_gives_all_features_without_a_prompt() -> None:
    store = FeatureStore(make_backbone(), enabled=False)
    pixels = pixels_of(6)
    with store.counting() as asked:
        found = {n: store.with_pooling(n).features(pixels, None) for n in ("token", "avg", "both")}
    assert sum(asked.values()) == 6
    assert torch.equal(found["both"], torch.cat([found["token"], found["avg"]], dim=1))
    for name, features in found.items():
        expected = extract_features(store.backbone.with_pooling(name), pixels, None)
        assert relative(features, expected) < 1e-5


def test_features_of_one_pooling_are_never_taken_for_those_of_another() -> None:
    backbone, pixels = make_backbone(), pixels_of(6)
    prompt = noise_tokens(1)[0]
    for name in backbone.poolings:
        pooled = backbone.with_pooling(name)
        found = FeatureStore(pooled).features(pixels, prompt)  # all in one folder
        assert relative(found, extract_features(pooled, pixels, prompt)) < 1e-5
        cotangent = torch.ones(len(pixels), pooled.feature_dim)
        assert FeatureStore(pooled).pull_back(pixels, prompt, cotangent).shape == prompt.shape


def test_another_pooling_is_chosen_only_where_the_labels_need_it() -> None:
    backbone = make_backbone()
    own = choose_pooling(FeatureStore(backbone), make_task(backbone))
    assert (own.name, own.gain) == ("token", 0.0)
    other = choose_pooling(FeatureStore(backbone), make_task(backbone.with_pooling("avg")))
    assert other.name in ("avg", "both")
    assert other.gain > other.error > 0


def test_a_task_that_needs_the_patches_goes_from_fit_to_a_model_with_them(tmp_path: Path) -> None:
    backbone = make_backbone()
    tokens = noise_tokens(2)
    task = make_task(backbone.with_pooling("avg"))
    fitted = HGPrompt(steps=1).fit(make_bank(backbone, tokens), backbone, task)
    write_bundle(tmp_path / "toy.hgbundle", fitted.bundle_)
    bundle = read_bundle(tmp_path / "toy.hgbundle")
    assert bundle.pooling == fitted.pooling_.name != "token"
    assert bundle.head.weight.shape == (
        len(task.classes),
        backbone.with_pooling(bundle.pooling).feature_dim,
    )
    # The backbone as it was loaded: the bundle says how it is pooled.
    export_onnx(bundle, backbone, tmp_path / "toy.onnx", images=task.test.pixels)
    predictor = Predictor(tmp_path / "toy.onnx", threads=1)
    assert predictor.metadata.pooling == bundle.pooling
    predicted = predictor.logits(task.test.pixels).argmax(1)
    row = next(row for row in fitted.table_ if row.method == fitted.choice_)
    assert float((predicted == task.test.labels).mean()) == pytest.approx(row.test_accuracy)


def test_a_bundles_pooling_rules_whatever_the_backbone_that_is_given() -> None:
    backbone = make_backbone()
    bundle = make_bundle(backbone.with_pooling("avg"))
    found = reference_logits(bundle, backbone, bundle.probe_images)
    np.testing.assert_allclose(found, bundle.probe_logits, rtol=1e-4, atol=1e-4)
    assert as_fitted(bundle, backbone.with_pooling("both")).pooling == "avg"


def test_a_bank_for_a_device_holds_a_head_on_both(tmp_path: Path) -> None:
    backbone = make_backbone()
    bundle = make_mixable(backbone.with_pooling("both"))
    verification = export_onnx(
        bundle, backbone, tmp_path / "m.onnx", runtime_weights=True, adapt=True
    )
    assert verification.ok
