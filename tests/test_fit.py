from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from small_vits import make_backbone, token_logits
from toys import make_bank, make_task, noise_tokens, shorten_digits

import hgprompt_edge.features.cached as features_module
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.errors import UserError
from hgprompt_edge.fit import estimator
from hgprompt_edge.fit.choice import (
    never_worse,
)
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix
from hgprompt_edge.prompts.prompt import Normalization


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


@pytest.mark.parametrize(("layers", "head"), [(2, "lda"), (1, "lda"), (2, "logistic")])
def test_fit_leaves_a_whole_and_true_bundle(
    backbone: Backbone, tmp_path: Path, layers: int, head
) -> None:
    tokens = noise_tokens(3, layers)
    task = make_task(backbone, tokens[2])
    fitted = HGPrompt(steps=1, head=head).fit(make_bank(backbone, tokens), backbone, task)
    write_bundle(tmp_path / "toy.hgbundle", fitted.bundle_)
    bundle = read_bundle(tmp_path / "toy.hgbundle")
    assert bundle.mode == ("shallow" if layers == 1 else "deep")
    assert [row.method for row in bundle.table] == ["none", "best_source", "uniform", "learned"]
    held_out = len(task.train) + len(task.validation), len(task.validation)
    best = never_worse(fitted.table_, *held_out, sources=3)
    assert bundle.choice == fitted.choice_ == fitted.table_[best].method
    assert all(row.test_accuracy is not None for row in bundle.table)
    np.testing.assert_allclose(fitted.weights_.sum(0), 1)
    assert bundle.objective == fitted.objective_
    assert bundle.objective["floor"] > 0
    assert [set(row) for row in fitted.history_] == 2 * [{"J", "H_d", "R", "floor"}]
    features = extract_features(backbone, task.train.pixels, bundle.prompt).numpy()
    assert bundle.clean is not None
    for place, (mean, count) in enumerate(
        zip(bundle.clean.class_means, bundle.clean.class_counts, strict=True)
    ):
        own = features[task.train.labels == place]
        assert count == len(own)
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-3, atol=1e-4)
    assert bundle.probe_images.shape == (16, 24, 24, 3)
    assert bundle.source_tokens is not None
    assert bundle.source_tokens.dtype == np.float16
    expected = token_logits(bundle, backbone, bundle.probe_images)
    np.testing.assert_allclose(bundle.probe_logits, expected, rtol=1e-4, atol=1e-4)
    if bundle.prompt is not None:
        np.testing.assert_allclose(bundle.prompt, mix(tokens, bundle.weights), atol=1e-6)


def test_the_banks_normalization_reaches_features_and_bundle(backbone: Backbone) -> None:
    tokens = noise_tokens(2)
    other = Normalization((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    task = make_task(backbone)
    fitted, expected, plain = (
        HGPrompt(steps=0).fit(make_bank(form, tokens, normalization=named), form, task)
        for form, named in (
            (backbone, other),
            (backbone.normalized(other), None),
            (backbone, None),
        )
    )
    assert fitted.bundle_.preprocessing == backbone.normalized(other).preprocessing
    assert fitted.bundle_.preprocessing != backbone.preprocessing
    np.testing.assert_equal(vars(fitted.bundle_.head), vars(expected.bundle_.head))
    for name in ("probe_logits", "table", "weights"):
        np.testing.assert_equal(getattr(fitted.bundle_, name), getattr(expected.bundle_, name))
    assert not np.allclose(fitted.bundle_.probe_logits, plain.bundle_.probe_logits)
    images = fitted.bundle_.probe_images
    logits = token_logits(fitted.bundle_, backbone, images)
    np.testing.assert_allclose(fitted.bundle_.probe_logits, logits, rtol=1e-4, atol=1e-4)


def test_same_seed_same_bytes_with_and_without_cache(backbone: Backbone, tmp_path: Path) -> None:
    tokens = noise_tokens(3)
    bank, task = make_bank(backbone, tokens), make_task(backbone, tokens[1])
    for name, cache in (("cold", True), ("warm", True), ("none", False)):
        fitted = HGPrompt(steps=2, seed=3, cache=cache).fit(bank, backbone, task)
        write_bundle(tmp_path / name, fitted.bundle_)
    cold = (tmp_path / "cold").read_bytes()
    assert (tmp_path / "warm").read_bytes() == cold
    assert (tmp_path / "none").read_bytes() == cold


def test_a_repeated_fit_runs_the_backbone_for_the_probe_only(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = noise_tokens(3)
    bank, task = make_bank(backbone, tokens), make_task(backbone, tokens[1])
    HGPrompt(steps=2).fit(bank, backbone, task)
    for name in ("extract_features", "Linearized", "pull_parts"):
        monkeypatch.setattr(features_module, name, lambda *_: pytest.fail("ran again"))
    HGPrompt(steps=2).fit(bank, backbone, task)


def test_an_interrupted_fit_goes_on_from_its_features(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = noise_tokens(4)
    bank, task = make_bank(backbone, tokens), make_task(backbone, tokens[1])
    runs: list[int] = []
    interrupt = True

    def interrupted(*args, **kwargs):
        runs.append(1)
        if interrupt and len(runs) == 6:
            raise KeyboardInterrupt
        return extract_features(*args, **kwargs)

    monkeypatch.setattr(features_module, "extract_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        HGPrompt(steps=0).fit(bank, backbone, task)
    HGPrompt(steps=0).fit(bank, backbone, task)
    total = len(runs)
    runs.clear()
    interrupt = False
    HGPrompt(steps=0, cache=False).fit(bank, backbone, task)
    assert len(runs) + 1 == total  # one was cut off, none ran twice


def test_the_test_part_is_optional_and_progress_ends(backbone: Backbone) -> None:
    tokens = noise_tokens(2)
    task = make_task(backbone, None)
    task = replace(task, test=task.test.subset([]))
    seen: dict[str, tuple[int, int]] = {}
    fitted = HGPrompt(steps=1, keep_sources=False).fit(
        make_bank(backbone, tokens),
        backbone,
        task,
        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)),
    )
    assert all(row.test_accuracy is None for row in fitted.table_)
    assert fitted.bundle_.source_tokens is None
    assert {"features", "weights", "test images"} <= seen.keys()
    assert all(done == total for done, total in seen.values())


def test_sources_of_the_targets_family_are_left_out(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    bank, task = make_bank(backbone, tokens), make_task(backbone, family="family1")
    fitted = HGPrompt(steps=0).fit(bank, backbone, task)
    assert fitted.left_out_ == ("source1",)
    assert [source["name"] for source in fitted.bundle_.sources] == ["source0", "source2"]
    alone = PromptBank(bank.prompts[1:2])
    with pytest.raises(UserError, match="family1"):
        HGPrompt().fit(alone, backbone, task)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone_sha256": "0" * 64}, "trained on the weights 000000000000"),
        ({"image_size": 32}, "32 px"),
        ({"tokens": np.zeros((2, 3, 16), np.float32)}, "width 16, not 32"),
        ({"tokens": np.zeros((3, 3, 32), np.float32)}, "3 layers"),
    ],
)
def test_a_bank_for_another_backbone_is_refused(backbone: Backbone, change, words: str) -> None:
    prompt = replace(make_bank(backbone, noise_tokens(1)).prompts[0], **change)
    with pytest.raises(UserError, match=words) as caught:
        HGPrompt().fit(PromptBank((prompt,)), backbone, make_task(backbone))
    assert str(caught.value).startswith(
        f"the prompt bank does not fit the backbone {backbone.name}"
    )


def test_no_bank_and_no_validation_are_refused(backbone: Backbone) -> None:
    task = make_task(backbone)
    with pytest.raises(UserError, match="empty"):
        HGPrompt().fit(PromptBank(()), backbone, task)
    bank = make_bank(backbone, noise_tokens(1))
    with pytest.raises(UserError, match="validation"):
        HGPrompt().fit(bank, backbone, replace(task, validation=task.validation.subset([])))


@pytest.mark.parametrize(
    "options", [{"lam": -1}, {"lam": float("nan")}, {"steps": -1}, {"folded": 4}, {"head": "x"}]
)
def test_parameters_are_checked(options) -> None:
    with pytest.raises(ValueError):
        HGPrompt(**options).fit(PromptBank(()), make_backbone(), None)  # type: ignore[arg-type]


def test_the_example_of_the_docstring_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_digits(monkeypatch, 120)
    failed, tried = doctest.testmod(estimator)
    assert (failed, tried > 0) == (0, True)


def test_parameters_are_those_of_scikit_learn() -> None:
    mixer = HGPrompt(steps=3, lam=0.5)
    twin = clone(mixer).set_params(steps=4)
    assert twin.get_params() == {**mixer.get_params(), "steps": 4}
    assert repr(mixer) == "HGPrompt(lam=0.5, steps=3)"
    assert HGPrompt(steps=-1).steps == -1, "checked by fit, not before"
