from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.base import clone
from small_vits import make_backbone, token_logits
from toys import CLASSES, make_bank, make_task, noise_tokens

import hgprompt_edge.backbones.linearize as linearize_module
import hgprompt_edge.features.cached as features_module
from hgprompt_edge.artifacts.bundle import Row
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import extract_features, features_token, normalize
from hgprompt_edge.cli.shared.fit_table import kept_line
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit import estimator
from hgprompt_edge.fit.algorithm import ascend, learn_weights, starting_weights
from hgprompt_edge.fit.alignment import variance_alignment
from hgprompt_edge.fit.choice import (
    choose,
    decide,
    fold_more,
    least_gain,
    never_worse,
    source_candidates,
)
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.hscore import debiased_h_score, h_score
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.fit.objective import make_objective
from hgprompt_edge.heads.best_head import SHRINKAGES
from hgprompt_edge.heads.heads import (
    calibration_scale,
    cross_fitted_logits,
    log_loss,
    logits_of,
)
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix, source_shares
from hgprompt_edge.prompts.prompt import START, Normalization


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return make_backbone()


def objective_of(backbone: Backbone, tokens: npt.NDArray[np.float32], lam: float = 0.1):
    """J of mixes of these tokens, with made-up gradient variances."""
    task = make_task(backbone, tokens[0])
    store = FeatureStore(backbone, enabled=False)
    unprompted = store.features(task.train.pixels, None)
    generator = torch.Generator().manual_seed(0)
    variances = torch.rand(len(tokens), 4, dtype=torch.float64, generator=generator)
    alignment = variance_alignment(variances)
    return task, store, make_objective(unprompted, task.train.labels, alignment, lam)


@pytest.mark.parametrize("layers", [2, 1])
def test_the_first_step_goes_along_the_gradient_of_j_by_autograd(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone()
    backbone.model.double()
    tokens = noise_tokens(3, layers)
    task, store, objective = objective_of(backbone, tokens)
    largest = 0

    def watched(model, x, prompt):
        nonlocal largest
        largest = max(largest, len(x))
        return features_token(model, x, prompt)

    monkeypatch.setattr(linearize_module, "features_prefix", watched)
    slopes: list[torch.Tensor] = []

    class Noting(torch.optim.Adam):
        def step(self, closure=None):
            slopes.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    ascend(store, task, tokens, objective, 0, 1, lambda *_: None)
    assert 0 < largest <= backbone.compute.micro_batch < len(task.train)

    mix_logits = starting_weights(3, layers, 0).log().requires_grad_(True)
    weights = mix_logits.softmax(0)
    x = normalize(torch.from_numpy(task.train.pixels), backbone.preprocessing).double()
    prompt = torch.einsum("ml,mltd->ltd", weights, torch.from_numpy(tokens).double())
    score = debiased_h_score(
        features_token(backbone.model, x, prompt) / objective.scale,
        objective.labels,
        objective.shrinkage,
    )
    value = score / (CLASSES - 1) - objective.lam * objective.alignment.conflict(weights.mean(1))
    (expected,) = torch.autograd.grad(-value, mix_logits)
    torch.testing.assert_close(slopes[0], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_gradient_equals_finite_differences_of_the_objective(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    task, store, objective = objective_of(backbone, tokens)

    def value(weights: torch.Tensor) -> float:
        features = store.features(task.train.pixels, mix(tokens, weights.numpy()))
        return objective.terms(features, weights).J

    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    prompt = mix(tokens, weights.numpy())
    features, pull_back = store.linearized(task.train.pixels, prompt)
    pulled = pull_back(objective.feature_gradient(features)).double()
    gradient = torch.einsum("mltd,ltd->m", torch.from_numpy(tokens).double(), pulled)
    gradient -= objective.lam * objective.alignment.gradient(weights)
    step = 1e-2
    for along in ([0.7, -0.2, -0.5], [1, 0, -1], [0, 1, -1]):
        direction = torch.tensor(along, dtype=torch.float64)
        up, down = (value(weights + sign * step * direction) for sign in (1, -1))
        inner = float(gradient @ direction)
        assert (up - down) / (2 * step) == pytest.approx(inner, rel=0.05, abs=2e-4)


def test_the_ascent_begins_near_the_best_source_and_keeps_the_best_step(
    backbone: Backbone,
) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone, tokens[2])
    bank = make_bank(backbone, tokens)
    store = FeatureStore(backbone, enabled=False)
    learned = learn_weights(store, task, bank, lam=0.0, steps=4, report=lambda *_: None)
    assert learned.start == int(np.argmax(learned.scores))
    np.testing.assert_allclose(learned.path[0].weights[learned.start], 0.75)
    values = [step.terms.J for step in learned.path]
    assert learned.terms.J == max(values) > values[0]
    np.testing.assert_allclose(learned.weights.sum(0), 1)
    features = torch.stack([store.features(task.train.pixels, each) for each in tokens])
    for found, score in zip(features, learned.scores, strict=True):
        scaled = found / learned.objective.scale
        expected = debiased_h_score(scaled, task.train.labels, learned.objective.shrinkage)
        assert score == pytest.approx(float(expected) / (CLASSES - 1), rel=1e-6)


def train_for(
    backbone: Backbone, task: Task, start: npt.NDArray[np.float32], steps: int = 40
) -> npt.NDArray[np.float32]:
    """Tune a prompt until the task's classes separate."""
    x = normalize(torch.from_numpy(task.train.pixels), backbone.preprocessing)
    prompt = torch.from_numpy(start.copy()).requires_grad_(True)
    optimizer = torch.optim.Adam([prompt], lr=0.1)
    for _ in range(steps):
        features = features_token(backbone.model, x, prompt)
        (-h_score(features, task.train.labels, 0.1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return prompt.detach().numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_targets_own_prompt_wins_among_noise_prompts(backbone: Backbone, seed: int) -> None:
    tokens = noise_tokens(8, seed=seed)
    task = make_task(backbone)
    tokens[3] = train_for(backbone, task, tokens[3])
    fitted = HGPrompt().fit(make_bank(backbone, tokens), backbone, task)
    assert source_shares(fitted.weights_)[3] > 0.8


def with_start(bank: PromptBank, tokens: npt.NDArray[np.float32]) -> PromptBank:
    start = replace(bank.prompts[0], tokens=tokens, name="untrained", family="", role=START)
    return replace(bank, start=start)


def test_a_share_of_the_start_is_learned_beside_the_sources(backbone: Backbone) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone)
    start = train_for(backbone, task, tokens[3])
    bank = with_start(make_bank(backbone, tokens[:3]), start)
    fitted = HGPrompt(steps=14).fit(bank, backbone, task)
    shares = source_shares(fitted.weights_)
    assert fitted.weights_.shape == (4, 2)
    assert shares[3] > 2 * shares[:3].max(), "what separates the classes gains most"
    assert fitted.objective_["sources"] == 3
    assert fitted.objective_["effective_sources"] <= 3 + 1e-9
    bundle = fitted.bundle_
    assert [source.get("role") for source in bundle.sources] == [None, None, None, "start"]
    assert bundle.source_tokens is not None
    np.testing.assert_array_equal(bundle.source_tokens[3], start.astype(np.float16))
    if bundle.prompt is not None:
        mixed = mix(bank.basis_tokens, bundle.weights)
        np.testing.assert_allclose(bundle.prompt, mixed, atol=1e-6)


def test_the_neutral_prompt_is_in_no_other_way_to_use_the_sources(backbone: Backbone) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone, tokens[1])
    plain = make_bank(backbone, tokens[:3])
    expected, fitted = (
        HGPrompt(steps=1).fit(bank, backbone, task)
        for bank in (plain, with_start(plain, tokens[3]))
    )
    assert fitted.table_[:3] == expected.table_[:3]
    assert fitted.objective_["start"] == expected.objective_["start"]


def test_copies_of_one_source_give_the_result_of_one(backbone: Backbone) -> None:
    tokens = noise_tokens(1)
    task = make_task(backbone, tokens[0])
    one = HGPrompt().fit(make_bank(backbone, tokens), backbone, task)
    copies = np.repeat(tokens, 4, axis=0)
    many = HGPrompt().fit(make_bank(backbone, copies), backbone, task)
    assert many.choice_ == one.choice_
    np.testing.assert_allclose(mix(copies, many.weights_), mix(tokens, one.weights_), rtol=1e-6)
    assert many.objective_["H_d"] == pytest.approx(one.objective_["H_d"], rel=1e-5)
    assert many.objective_["R"] == 0
    for row, expected in zip(many.table_, one.table_, strict=True):
        assert row.val_accuracy == expected.val_accuracy
        assert row.val_log_loss == pytest.approx(expected.val_log_loss, rel=1e-4)


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


def test_choice_by_log_loss_then_accuracy_then_simplicity() -> None:
    rows = [Row("none", 0.5, 1.0), Row("best_source", 0.6, 2.0), Row("uniform", 0.6, 1.5)]
    assert choose(rows) == 0
    assert choose([*rows, Row("learned", 0.6, 0.9)]) == 3
    assert choose([*rows, Row("learned", 0.4, 1.0)]) == 0
    assert choose([Row("none", 0.5, 1.0), Row("learned", 0.6, 1.0)]) == 1
    assert choose([Row("none", 0.5, 1.0), Row("learned", 0.5, 1.0)]) == 0


def test_cross_fitted_log_loss_chooses_where_all_rows_have_it() -> None:
    none, learned = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.5, 0.9)
    assert choose([none, learned]) == 1
    assert choose([none, replace(learned, cross_log_loss=0.85)]) == 0


def test_a_prompt_has_to_gain_two_nats_over_all_images() -> None:
    none, mixed = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.6, 0.9)
    mixed = replace(mixed, cross_log_loss=0.78)
    assert never_worse([none, mixed], 99, 20, 1) == 0
    assert never_worse([none, mixed], 101, 20, 1) == 1
    assert never_worse([none, replace(mixed, cross_log_loss=0.81)], 10**6, 20, 1) == 0


def test_the_best_of_many_sources_has_to_gain_more() -> None:
    none, mixed = Row("none", 0.5, 1.0, cross_log_loss=0.8), Row("learned", 0.6, 0.9)
    mixed = replace(mixed, cross_log_loss=0.78)
    assert least_gain(16) == pytest.approx(2 + 3 * np.log(16))
    for sources in (1, 4, 16):
        images = least_gain(sources) / 0.02
        assert never_worse([none, mixed], int(0.99 * images), 20, sources) == 0
        assert never_worse([none, mixed], int(1.01 * images), 20, sources) == 1


def test_without_cross_fitted_losses_validation_must_show_the_same_gain() -> None:
    rows = [Row("none", 0.5, 1.0), Row("learned", 0.6, 0.9)]
    assert never_worse(rows, 1000, 19, 1) == 0, "one image a class and few to validate: no evidence"
    assert never_worse(rows, 1000, 21, 1) == 1


def test_the_cross_fitted_log_loss_is_the_mean_over_divisions(backbone: Backbone) -> None:
    task = make_task(backbone)
    store = FeatureStore(backbone)
    judge = Judge(store, task, "lda", seed=3)
    nothing = Candidate("none", None, np.zeros(1))
    row = judge.measure(nothing)
    parts = (task.train, task.validation)
    features = torch.cat([store.features(part.pixels, None) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    losses = []
    for rho in SHRINKAGES:
        found = [
            cross_fitted_logits(features, labels, len(task.classes), 3 + division, rho)
            for division in range(5)
        ]
        logits, held_out = (torch.cat(part) for part in zip(*found, strict=True))
        losses.append(log_loss(logits * calibration_scale(logits, held_out), held_out))
    assert row.cross_log_loss == pytest.approx(min(losses), rel=1e-9)
    assert row.head == f"LDA {SHRINKAGES[int(np.argmin(losses))]:.2f}"


def test_each_row_has_its_own_best_head_and_the_choice_of_it_sees_no_validation_image(
    backbone: Backbone,
) -> None:
    task = make_task(backbone)
    judge = Judge(FeatureStore(backbone), task)
    nothing = Candidate("none", None, np.zeros(1))
    row, (final,) = judge.measure(nothing), judge.final_heads(nothing)
    assert row.head == final.name
    others = replace(task, validation=replace(task.validation, labels=task.validation.labels * 0))
    same = Judge(FeatureStore(backbone), others).training_head(None)
    assert np.array_equal(judge.training_head(None).weight, same.weight)
    assert not np.array_equal(final.weight, same.weight)


def test_the_average_of_two_prompts_is_what_the_table_says(backbone: Backbone) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone, tokens[1])
    judge = Judge(FeatureStore(backbone), task)
    one, two = source_candidates(make_bank(backbone, tokens))[:2]
    both = replace(one, more=(two,))
    probabilities = [
        logits_of(
            judge.training_head(each.tokens),
            extract_features(backbone, task.validation.pixels, each.tokens),
        ).softmax(1)
        for each in (one, two)
    ]
    average = (probabilities[0] + probabilities[1]) / 2
    row = judge.measure(both)
    expected = (average.argmax(1).numpy() == task.validation.labels).mean()
    assert row.val_accuracy == pytest.approx(expected)
    assert row.cross_log_loss is not None
    same = judge.measure(replace(one, more=(one,)))
    assert same.cross_log_loss == pytest.approx(judge.measure(one).cross_log_loss)


def test_the_prompts_that_average_best_are_folded_and_kept_where_they_gain(
    backbone: Backbone,
) -> None:
    tokens = noise_tokens(5)
    task = make_task(backbone, tokens[1])
    bank = make_bank(backbone, tokens)
    judge = Judge(FeatureStore(backbone), task)
    one = decide(judge, bank, np.full(5, 0.2))
    three = decide(judge, bank, np.full(5, 0.2), folded=3)
    assert three.rows[:4] == one.rows
    first, second, _ = three.candidates[-1].parts
    assert first.weights.tolist() == one.chosen.weights.tolist()
    held_out = judge.measure(three.candidates[-1]).cross_log_loss
    assert held_out is not None
    for other in source_candidates(bank):  # no other third prompt averages better
        if not any(np.array_equal(other.weights, part.weights) for part in (first, second)):
            loss = judge.measure(replace(first, more=(second, other))).cross_log_loss
            assert loss is not None
            assert loss >= held_out - 1e-12
    before = one.rows[one.kept].cross_log_loss
    assert before is not None
    assert three.kept == (4 if held_out < before else one.kept)
    lonely = fold_more(judge, [one.candidates[0]], 3)
    assert lonely.more == ()


def test_with_permuted_labels_no_prompt_is_kept(backbone: Backbone) -> None:
    tokens = noise_tokens(6)
    task = make_task(backbone)
    kept = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        parts = (task.train, task.validation)
        train, validation = (replace(part, labels=rng.permutation(part.labels)) for part in parts)
        shuffled = replace(task, train=train, validation=validation)
        kept.append(HGPrompt(steps=6).fit(make_bank(backbone, tokens), backbone, shuffled).choice_)
    assert kept == ["none"] * 4


@pytest.mark.parametrize(("beyond", "said"), [(-0.1, True), (0.1, False)])
def test_several_prompts_that_gain_by_chance_are_said_to_do_so(
    backbone: Backbone, beyond: float, said: bool
) -> None:
    bank, task = make_bank(backbone, noise_tokens(6)), make_task(backbone)
    shuffled = with_labels(task, np.random.default_rng(0).permutation)
    bundle = HGPrompt(steps=1, folded=2).fit(bank, backbone, shuffled).bundle_
    words = "195 images do not show that they are better than no prompt"
    assert bundle.choice == "folded"
    assert words in kept_line(bundle, shuffled)  # meaningless labels
    *others, kept = bundle.table
    assert others[0].cross_log_loss is not None
    loss = others[0].cross_log_loss - (least_gain(6) + beyond) / 195
    table = (*others, replace(kept, cross_log_loss=loss))
    assert (words in kept_line(replace(bundle, table=table), shuffled)) is said


def with_labels(task: Task, change) -> Task:
    """Relabel the training, validation and test images."""
    parts = {
        name: replace(part, labels=change(part.labels.copy()))
        for name, part in (
            ("train", task.train),
            ("validation", task.validation),
            ("test", task.test),
        )
    }
    return replace(task, **parts)


def test_a_bank_of_one_source_and_of_two_equal_ones(backbone: Backbone) -> None:
    tokens = noise_tokens(1)
    task = make_task(backbone, tokens[0])
    one = HGPrompt(steps=2, folded=2).fit(make_bank(backbone, tokens), backbone, task)
    np.testing.assert_array_equal(one.weights_, 1)
    twins = np.repeat(tokens, 2, axis=0)
    two = HGPrompt(steps=2, folded=2).fit(make_bank(backbone, twins), backbone, task)
    assert np.isfinite(two.weights_).all()
    for row, same in zip(two.table_[:4], one.table_[:4], strict=True):
        assert row.val_accuracy == same.val_accuracy


def test_prompts_that_all_hurt_are_not_kept(backbone: Backbone) -> None:
    tokens = 30 * noise_tokens(3)  # they take all attention
    task = make_task(backbone)
    fitted = HGPrompt(steps=2, folded=3).fit(make_bank(backbone, tokens), backbone, task)
    assert fitted.choice_ == "none"
    assert fitted.bundle_.prompt is None


def test_a_class_of_one_image(backbone: Backbone) -> None:
    def change(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lonely = np.flatnonzero(labels == 2)
        labels[lonely[1:]] = 0
        return labels

    tokens = noise_tokens(3)
    task = with_labels(make_task(backbone, tokens[1]), change)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, task)
    assert np.isfinite(fitted.objective_["J"])
    assert all(np.isfinite(row.val_log_loss) for row in fitted.table_)


def test_one_image_of_each_class_is_no_evidence_for_a_prompt(backbone: Backbone) -> None:
    tokens = noise_tokens(3)
    task = make_task(backbone, tokens[1])
    first = [int(np.flatnonzero(task.train.labels == label)[0]) for label in range(CLASSES)]
    held = [int(np.flatnonzero(task.validation.labels == label)[0]) for label in range(CLASSES)]
    train, validation = task.train.subset(first), task.validation.subset(held)
    few = replace(task, train=train, validation=validation)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, few)
    assert fitted.choice_ == "none"


def test_two_classes_that_cannot_be_told_apart(backbone: Backbone) -> None:
    rng = np.random.default_rng(0)

    def change(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        labels[labels > 0] = 1 + rng.integers(0, 2, int((labels > 0).sum()))
        return labels

    tokens = noise_tokens(3)
    task = with_labels(make_task(backbone, tokens[1]), change)
    fitted = HGPrompt(steps=2).fit(make_bank(backbone, tokens), backbone, task)
    kept = next(row for row in fitted.table_ if row.method == fitted.choice_)
    assert kept.test_accuracy is not None
    assert kept.test_accuracy < 0.9
    assert kept.cross_log_loss is not None
    assert kept.cross_log_loss > 2 / 3 * np.log(2) * 0.8, "no false certainty about those two"


def test_the_example_of_the_docstring_runs() -> None:
    failed, tried = doctest.testmod(estimator)
    assert (failed, tried > 0) == (0, True)


def test_parameters_are_those_of_scikit_learn() -> None:
    mixer = HGPrompt(steps=3, lam=0.5)
    twin = clone(mixer).set_params(steps=4)
    assert twin.get_params() == {**mixer.get_params(), "steps": 4}
    assert repr(mixer) == "HGPrompt(lam=0.5, steps=3)"
    assert HGPrompt(steps=-1).steps == -1, "checked by fit, not before"
