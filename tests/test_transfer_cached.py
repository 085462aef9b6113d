from __future__ import annotations

import time

import pytest
import torch

from hgprompt_edge.prompts import effective_sources
from hgprompt_edge.transfer.alignment import common_head, head_alignment
from hgprompt_edge.transfer.cached import Climb, DirectMixedFeatures, MixedFeatures, climb
from hgprompt_edge.transfer.fit import LAMBDA
from hgprompt_edge.transfer.hscore import h_score
from hgprompt_edge.transfer.objective import Objective, make_objective

CLASSES, SOURCES = 8, 8
SEEDS = range(4)


class Planted:
    """Synthetic features of sources that see class means or noise."""

    def __init__(self, seed: int, n: int = 400, width: int = 32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.n, self.width = n, width
        self.labels = torch.randint(0, CLASSES, (n,), generator=self.generator)
        self.means = 0.6 * self.noise(CLASSES, width)

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def source(self, means: torch.Tensor | None = None) -> torch.Tensor:
        noise = self.noise(self.n, self.width)
        return noise if means is None else means[self.labels] + noise

    def half(self, chosen: slice) -> torch.Tensor:
        """Class means that tell only the chosen classes apart."""
        rest = torch.ones(CLASSES, dtype=torch.bool)
        rest[chosen] = False
        means = self.means.clone()
        means[rest] = means[rest].mean(0)
        return means

    def objective(self, features: torch.Tensor, lam: float = LAMBDA) -> Objective:
        head = common_head(features, self.labels, CLASSES)
        alignment = head_alignment(features, self.labels, head)
        return make_objective(features.mean(0), self.labels, alignment, lam)

    def climb(self, *features: torch.Tensor, lam: float = LAMBDA, steps: int = 300) -> Climb:
        stacked = torch.stack(features)
        return climb(stacked, self.objective(stacked, lam), steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_targets_own_source_wins_among_noise(seed: int) -> None:
    planted = Planted(seed)
    sources = [planted.source() for _ in range(SOURCES)]
    sources[3] = planted.source(planted.means)
    assert planted.climb(*sources).weights[3] > 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_two_useful_halves_both_keep_weight(seed: int) -> None:
    planted = Planted(seed)
    first = planted.source(planted.half(slice(0, 4)))
    second = planted.source(planted.half(slice(4, 8)))
    noise = [planted.source() for _ in range(SOURCES - 2)]
    weights = planted.climb(first, second, *noise).weights
    assert weights[:2].min() > 0.25
    assert weights[2:].max() < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_a_corrupted_duplicate_loses_to_the_original(seed: int) -> None:
    planted = Planted(seed)
    original = planted.source(planted.means)
    duplicate = original + planted.source()
    noise = [planted.source() for _ in range(SOURCES - 2)]
    weights = planted.climb(duplicate, original, *noise).weights
    assert weights[1] > 0.8
    assert weights[0] < 0.1


def test_copies_of_one_source_stay_uniform_and_score_as_one() -> None:
    planted = Planted(0)
    source = planted.source(planted.means)
    found = planted.climb(*[source] * 5)
    alone = planted.climb(source)
    assert effective_sources(found.weights) == pytest.approx(5, rel=1e-6)
    assert abs(found.path[-1].J - alone.path[-1].J) < 1e-6
    assert found.path[-1].R == 0.0


def test_cached_j_at_vertices_is_exact_j_there() -> None:
    planted = Planted(0)
    features = torch.stack([planted.source(planted.means), planted.source(), planted.source()])
    objective = planted.objective(features)
    mixed = MixedFeatures(features, planted.labels, objective.shrinkage)
    vertices = torch.eye(3, dtype=torch.float64)
    scores, _ = mixed.h_scores(vertices)
    for source, vertex, score in zip(features, vertices, scores, strict=True):
        terms = objective.terms(source, vertex)
        assert float(score) == pytest.approx(terms.H, rel=1e-9)
        assert abs(terms.J - float(score) / objective.h_scale) < 1e-9


@pytest.mark.parametrize("kind", [MixedFeatures, DirectMixedFeatures])
def test_gradient_on_cached_features_is_autograds(kind: type) -> None:
    planted = Planted(0, n=60, width=7)
    features = torch.stack([planted.source(planted.means) for _ in range(4)]).double()
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 4, dtype=torch.float64, generator=generator).softmax(1)
    weights.requires_grad_(True)
    expected = torch.stack(
        [h_score(torch.tensordot(a, features, dims=1), planted.labels, 0.15) for a in weights]
    )
    (slope,) = torch.autograd.grad(expected.sum(), weights)
    found, gradient = kind(features, planted.labels, 0.15).h_scores(weights.detach())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-8)


def test_feature_gradient_equals_finite_differences() -> None:
    planted = Planted(0, n=40, width=5)
    features = planted.source(planted.means).double()
    objective = planted.objective(torch.stack([features, planted.source()]))
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    direction = planted.noise(40, 5).double()
    step = 1e-5
    up = objective.terms(features + step * direction, weights).J
    down = objective.terms(features - step * direction, weights).J
    inner = float((objective.feature_gradient(features) * direction).sum())
    assert (up - down) / (2 * step) == pytest.approx(inner, rel=1e-5)


def test_uninformative_features_keep_a_positive_scale() -> None:
    planted = Planted(0, n=60)
    for seed in range(5):
        sources = torch.stack([Planted(seed, n=60).source() for _ in range(2)])
        objective = planted.objective(sources)
        assert objective.h_scale > 0


def test_no_steps_give_a_start_and_the_same_call_the_same_weights() -> None:
    planted = Planted(0)
    sources = [planted.source(planted.means), planted.source(), planted.source()]
    still = planted.climb(*sources, steps=0)
    assert still.steps == 0
    assert len(still.path) == 1
    once, again = planted.climb(*sources), planted.climb(*sources)
    assert torch.equal(once.weights, again.weights)
    assert once.path[-1].J > still.path[-1].J
    assert float(once.weights.sum()) == pytest.approx(1)


@pytest.mark.slow
def test_a_climb_takes_less_than_a_second() -> None:
    planted = Planted(0, n=640, width=192)
    features = torch.stack([planted.source(planted.means) for _ in range(8)])
    objective = planted.objective(features)
    start = time.perf_counter()
    climb(features, objective, 300)
    assert time.perf_counter() - start < 1.0
