from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_vits import make_backbone
from toys import CLASSES, make_bank, make_task, noise_tokens

import hgprompt_edge.backbones.linearize as linearize_module
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.data import Images
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.algorithm import ascend, learn_weights, starting_weights
from hgprompt_edge.fit.alignment import variance_alignment
from hgprompt_edge.fit.choice import source_candidates
from hgprompt_edge.fit.estimator import HGPrompt
from hgprompt_edge.fit.hscore import debiased_h_score, h_score
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.fit.objective import make_objective
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.mixing import mix, source_shares
from hgprompt_edge.prompts.prompt import START


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


def test_the_ascent_begins_near_the_source_that_it_is_given_and_keeps_the_best_step(
    backbone: Backbone,
) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone, tokens[2])
    bank = make_bank(backbone, tokens)
    store = FeatureStore(backbone, enabled=False)
    learned = learn_weights(store, task, bank, 1, lam=0.0, steps=4, report=lambda *_: None)
    np.testing.assert_allclose(learned.path[0].weights[1], 0.75)
    np.testing.assert_allclose(learned.path[0].weights[[0, 2, 3]], 0.25 / 3)
    values = [step.terms.J for step in learned.path]
    assert learned.terms.J == max(values) > values[0]
    np.testing.assert_allclose(learned.weights.sum(0), 1)
    features = torch.stack([store.features(task.train.pixels, each) for each in tokens])
    for found, score in zip(features, learned.scores, strict=True):
        scaled = found / learned.objective.scale
        expected = debiased_h_score(scaled, task.train.labels, learned.objective.shrinkage)
        assert score == pytest.approx(float(expected) / (CLASSES - 1), rel=1e-6)


def test_fit_begins_near_the_source_that_holds_out_best(backbone: Backbone) -> None:
    tokens = noise_tokens(4, seed=6)
    task = make_task(backbone, tokens[2])
    bank = make_bank(backbone, tokens)
    fitted = HGPrompt(steps=0).fit(bank, backbone, task)
    judge = Judge(FeatureStore(backbone, enabled=False), task)
    losses = [judge.measure(source).cross_log_loss for source in source_candidates(bank)]
    assert None not in losses
    best = int(np.argmin(losses))
    assert fitted.best_source_ == bank.names[best]
    scores = [fitted.objective_["scores"][name] for name in bank.names]
    assert best != int(np.argmax(scores)), "the H-score would have taken another one"
    np.testing.assert_allclose(fitted.weights_[best], 0.75)


def train_for(
    backbone: Backbone,
    parts: tuple[Images, ...],
    start: npt.NDArray[np.float32],
    steps: int = 40,
) -> npt.NDArray[np.float32]:
    """Tune a prompt until the classes of these images separate."""
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    x = normalize(torch.from_numpy(pixels), backbone.preprocessing)
    prompt = torch.from_numpy(start.copy()).requires_grad_(True)
    optimizer = torch.optim.Adam([prompt], lr=0.1)
    for _ in range(steps):
        features = features_token(backbone.model, x, prompt)
        (-h_score(features, labels, 0.1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return prompt.detach().numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_targets_own_prompt_wins_among_noise_prompts(backbone: Backbone, seed: int) -> None:
    tokens = noise_tokens(8, seed=seed)
    task = make_task(backbone)
    everything = task.train, task.validation, task.test  # so that it also holds out best
    tokens[3] = train_for(backbone, everything, tokens[3], steps=120)
    fitted = HGPrompt().fit(make_bank(backbone, tokens), backbone, task)
    assert fitted.best_source_ == "source3"
    assert source_shares(fitted.weights_)[3] > 0.8


def with_start(bank: PromptBank, tokens: npt.NDArray[np.float32]) -> PromptBank:
    start = replace(bank.prompts[0], tokens=tokens, name="untrained", family="", role=START)
    return replace(bank, start=start)


def test_a_share_of_the_start_is_learned_beside_the_sources(backbone: Backbone) -> None:
    tokens = noise_tokens(4)
    task = make_task(backbone)
    start = train_for(backbone, (task.train,), tokens[3])
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
    assert fitted.best_source_ == expected.best_source_


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
