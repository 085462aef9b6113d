from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hgprompt_edge.fit.hscore import (
    debiased_h_score,
    h_score,
    noise_floor,
    shrinkage_for,
)


def planted(n: int = 400, width: int = 12, classes: int = 4, signal: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    means = signal * rng.normal(size=(classes, width))
    mixing = rng.normal(size=(width, width))
    features = (means[labels] + rng.normal(size=(n, width))) @ mixing + rng.normal(size=width)
    return torch.from_numpy(features), torch.from_numpy(labels)


def test_equals_the_trace_of_scikit_learns_lda() -> None:
    features, labels = planted()
    # Its projection makes the within-class covariance the identity; the squared canonical
    # correlations are then between-class over total variance, direction by direction.
    model = LinearDiscriminantAnalysis(solver="eigen").fit(features.numpy(), labels.numpy())
    z = model.transform(features.numpy())
    total = z.var(axis=0)
    between = total - 1.0
    expected = (between / total).sum()
    assert float(h_score(features, labels, 0.0)) == pytest.approx(expected, rel=1e-9)


def test_is_invariant_to_invertible_maps_without_shrinkage_only() -> None:
    features, labels = planted()
    generator = torch.Generator().manual_seed(1)
    mapping = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    mapped = features @ mapping + 3.0
    score = float(h_score(features, labels, 0.0))
    assert float(h_score(mapped, labels, 0.0)) == pytest.approx(score, rel=1e-9)
    assert float(h_score(7 * features + 2, labels, 0.3)) == pytest.approx(
        float(h_score(features, labels, 0.3)), rel=1e-9
    )
    assert float(h_score(mapped, labels, 0.3)) != pytest.approx(
        float(h_score(features, labels, 0.3)), rel=1e-3
    )


def test_shrinkage_falls_with_the_images_and_looks_at_nothing_else() -> None:
    assert shrinkage_for(400, 384) == pytest.approx(384 / 8384)
    assert shrinkage_for(20, 384) > shrinkage_for(400, 384) > shrinkage_for(4000, 384) > 0


@pytest.mark.parametrize("shrinkage", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("labels", [(0, 0, 0, 1, 1, 2, 2), (0, 0, 0, 0, 0, 3, 1)])
def test_the_debiased_score_is_zero_over_all_orders_of_the_labels(shrinkage, labels) -> None:
    features, _ = planted(n=7, width=4, classes=3)
    orders = sorted(set(permutations(labels)))
    scores = [debiased_h_score(features, torch.tensor(order), shrinkage) for order in orders]
    raw = [h_score(features, torch.tensor(order), shrinkage) for order in orders]
    assert float(torch.stack(scores).mean()) == pytest.approx(0, abs=1e-9)
    floor = float(noise_floor(features, torch.tensor(labels), shrinkage))
    assert float(torch.stack(raw).mean()) == pytest.approx(floor, rel=1e-9)


def test_the_debiased_score_is_the_unbiased_estimate_of_analysis_of_variance() -> None:
    features, labels = planted(n=60, width=5, classes=4)
    n, classes = len(labels), 4
    x = features.numpy() - features.numpy().mean(0)
    means = np.stack([x[labels.numpy() == c].mean(0) for c in range(classes)])
    within = x - means[labels.numpy()]
    counts = np.bincount(labels.numpy())
    between, sigma_w = (means.T * counts / n) @ means, within.T @ within / n
    sigma = x.T @ x / n
    shrunk = 0.9 * sigma + 0.1 * np.trace(sigma) / 5 * np.eye(5)
    inner = between - (classes - 1) / (n - classes) * sigma_w
    expected = (n - classes) / (n - 1) * np.trace(np.linalg.solve(shrunk, inner))
    assert float(debiased_h_score(features, labels, 0.1)) == pytest.approx(expected, rel=1e-9)


def test_more_noise_directions_raise_the_score_but_not_the_debiased_one() -> None:
    features, labels = planted(n=60, width=4, classes=3)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 40, dtype=torch.float64, generator=generator) * features.std()
    filled = torch.cat([features, noise], 1)
    assert h_score(filled, labels, 0.05) > 1.2 * h_score(features, labels, 0.05)
    assert debiased_h_score(filled, labels, 0.05) < debiased_h_score(features, labels, 0.05)


def test_gradient_equals_finite_differences() -> None:
    features, labels = planted(n=24, width=5, classes=3)
    features.requires_grad_(True)
    for score in (h_score, debiased_h_score):
        assert torch.autograd.gradcheck(lambda f, s=score: s(f, labels, 0.2), (features,), eps=1e-6)


def test_fewer_images_than_features_stay_solvable() -> None:
    features, labels = planted(n=8, width=12)
    assert torch.isfinite(debiased_h_score(features, labels, shrinkage_for(8, 12)))


def test_features_that_do_not_vary_score_nothing() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    assert float(h_score(torch.ones(4, 3), labels, 0.0)) == 0.0
    assert float(debiased_h_score(torch.ones(4, 3), labels, 0.0)) == 0.0
    features = torch.zeros(4, 3, dtype=torch.float64)
    features[:, 0] = labels.double()
    assert float(h_score(features, labels, 0.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("score", [h_score, debiased_h_score])
def test_labels_without_rows_change_nothing(score) -> None:
    features, labels = planted(classes=3)
    assert float(score(features, 2 * labels, 0.1)) == pytest.approx(
        float(score(features, labels, 0.1)), rel=1e-12
    )
