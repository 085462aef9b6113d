from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hgprompt_edge.fit.alignment import (
    common_head,
    head_alignment,
    head_gradient_moments,
    variance_alignment,
)
from hgprompt_edge.maths.head import Head

VARIANCES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(1, 5)),
    elements=st.integers(0, 99).map(lambda value: value / 8),
)


def random_weights(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(count)))


@settings(deadline=None)
@given(VARIANCES, st.integers(0, 99))
def test_conflict_equals_a_direct_double_loop(variances: np.ndarray, seed: int) -> None:
    alignment = variance_alignment(torch.from_numpy(variances))
    weights = random_weights(len(variances), seed)
    count = len(variances)
    scale = np.mean([np.sum((v - variances.mean(0)) ** 2) for v in variances])
    expected = 0.0
    if scale > 0:
        for i in range(count):
            inside = variances[i].copy()
            for k in range(count):
                inside -= float(weights[k]) * variances[k]
            expected += float(weights[i]) * np.sum(inside**2) / scale
    assert float(alignment.conflict(weights)) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(deadline=None)
@given(VARIANCES)
def test_no_conflict_at_vertices_and_one_at_uniform(variances: np.ndarray) -> None:
    alignment = variance_alignment(torch.from_numpy(variances))
    count = len(variances)
    vertices = alignment.conflict(torch.eye(count, dtype=torch.float64))
    torch.testing.assert_close(vertices, torch.zeros(count, dtype=torch.float64))
    uniform = float(alignment.conflict(torch.full((count,), 1 / count, dtype=torch.float64)))
    assert uniform == pytest.approx(0.0 if alignment.scale == 0 else 1.0)


@settings(deadline=None)
@given(hnp.arrays(np.float64, 4, elements=st.floats(0, 1e6)), st.integers(2, 7))
def test_equal_sources_never_conflict(variance: np.ndarray, count: int) -> None:
    alignment = variance_alignment(torch.from_numpy(np.tile(variance, (count, 1))))
    weights = random_weights(count)
    assert float(alignment.conflict(weights)) == 0.0
    assert torch.equal(alignment.gradient(weights), torch.zeros(count, dtype=torch.float64))


@settings(deadline=None)
@given(VARIANCES, st.randoms(use_true_random=False))
def test_renaming_the_sources_changes_nothing(variances: np.ndarray, random) -> None:
    order = list(range(len(variances)))
    random.shuffle(order)
    weights = random_weights(len(variances))
    one = variance_alignment(torch.from_numpy(variances)).conflict(weights)
    other = variance_alignment(torch.from_numpy(variances[order])).conflict(weights[order])
    assert float(one) == pytest.approx(float(other), rel=1e-9, abs=1e-12)


def test_gradient_is_that_of_the_conflict() -> None:
    generator = torch.Generator().manual_seed(0)
    alignment = variance_alignment(torch.rand(5, 7, dtype=torch.float64, generator=generator))
    weights = random_weights(5).requires_grad_(True)
    (expected,) = torch.autograd.grad(alignment.conflict(weights), weights)
    torch.testing.assert_close(alignment.gradient(weights.detach()), expected)
    both = torch.stack([weights.detach(), random_weights(5, 1)])
    torch.testing.assert_close(alignment.gradient(both)[0], expected)
    assert alignment.conflict(both).shape == (2,)


def test_moments_in_head_space_equal_per_sample_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 4, generator=generator).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0])
    weight = torch.randn(3, 4, generator=generator).double().requires_grad_(True)
    bias = torch.randn(3, generator=generator).double()
    head = Head(weight.detach().numpy(), bias.numpy())
    gradients = torch.stack(
        [
            torch.autograd.grad(
                functional.cross_entropy((weight @ f + bias)[None], y[None]), weight
            )[0]
            for f, y in zip(features, labels, strict=True)
        ]
    )
    mean, variance = head_gradient_moments(features, labels, head)
    torch.testing.assert_close(mean, gradients.mean(0))
    torch.testing.assert_close(variance, gradients.var(0, correction=0))


def test_alignment_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(4, 60, 6, generator=generator)
    features[:, :, 0] += labels
    head = common_head(features, labels, 3)
    assert float(head_alignment(features, labels, head).conflict(random_weights(4))) > 0
    same = head_alignment(features[:1].expand(4, -1, -1), labels, head)
    assert float(same.conflict(random_weights(4))) == pytest.approx(0, abs=1e-12)
