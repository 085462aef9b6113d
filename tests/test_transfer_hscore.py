from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hgprompt_edge.transfer.hscore import feature_shrinkage, h_score, noise_floor


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


def test_shrinkage_is_scikit_learns_ledoit_wolf() -> None:
    features, _ = planted(n=30)
    expected = ledoit_wolf_shrinkage(features.numpy())
    assert feature_shrinkage(features) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_noise_floor_is_the_expectation_under_random_labels(shrinkage: float) -> None:
    features, labels = planted()
    n, width, classes = 400, 12, 4
    # E[Sigma_B] under permutation is (K - 1) / (n - 1) Sigma, for any Sigma.
    sigma = np.cov(features.numpy().T, bias=True)
    shrunk = (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / width * np.eye(width)
    expected = (classes - 1) / (n - 1) * np.trace(np.linalg.solve(shrunk, sigma))
    floor = noise_floor(features, labels, shrinkage, seed=0, permutations=400)
    assert floor == pytest.approx(expected, rel=0.05)
    assert floor == noise_floor(features, labels, shrinkage, seed=0, permutations=400)


def test_permuted_labels_fall_to_the_floor() -> None:
    features, labels = planted()
    permuted = labels[torch.from_numpy(np.random.default_rng(5).permutation(len(labels)))]
    floor = noise_floor(features, labels, 0.1, seed=0)
    assert float(h_score(features, labels, 0.1)) > 10 * floor
    assert float(h_score(features, permuted, 0.1)) < 2 * floor


def test_gradient_equals_finite_differences() -> None:
    features, labels = planted(n=24, width=5, classes=3)
    features.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f: h_score(f, labels, 0.2), (features,), eps=1e-6)


def test_fewer_images_than_features_stay_solvable() -> None:
    features, labels = planted(n=8, width=12)
    assert feature_shrinkage(features) >= 0.01
    assert torch.isfinite(h_score(features, labels, feature_shrinkage(features)))
    pair = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert feature_shrinkage(pair) == pytest.approx(0.01)


def test_features_that_do_not_vary_score_nothing() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    assert float(h_score(torch.ones(4, 3), labels, 0.0)) == 0.0
    features = torch.zeros(4, 3, dtype=torch.float64)
    features[:, 0] = labels.double()
    assert float(h_score(features, labels, 0.0)) == pytest.approx(1.0)


def test_labels_without_rows_change_nothing() -> None:
    features, labels = planted(classes=3)
    assert float(h_score(features, 2 * labels, 0.1)) == pytest.approx(
        float(h_score(features, labels, 0.1)), rel=1e-12
    )
