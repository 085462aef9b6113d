"""Closed-form and logistic heads against scikit-learn, and where classes are few or missing."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import log_loss as sklearn_log_loss
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.best_head import fit_head
from hgprompt_edge.heads.heads import (
    accuracy,
    calibration_scale,
    cross_fitted_logits,
    fit_lda,
    lda,
    ledoit_wolf,
    log_loss,
    logits_of,
)
from hgprompt_edge.maths.head import Head


def clusters(
    n: int = 240, width: int = 12, classes: int = 4, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gaussian classes with a common, far from spherical covariance, on uneven scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    noise = rng.normal(size=(n, width)) @ np.random.default_rng(98).normal(size=(width, width))
    scales = np.random.default_rng(97).lognormal(sigma=2, size=width)
    features = (centres[labels] + spread * noise / width**0.5) * scales + 3 * scales
    return torch.from_numpy(features), torch.from_numpy(labels)


fit_logistic = partial(fit_head, kind="logistic")
FITS = [fit_lda, partial(fit_head, kind="lda"), fit_logistic, fit_head]


def standardised(features: Tensor) -> np.ndarray:
    x = features.numpy()
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7, 1.0])
def test_lda_equals_scikit_learn_on_standardised_features(shrinkage: float) -> None:
    x, y = clusters()
    weight, bias = lda(x, y, 4, shrinkage)
    z = standardised(x)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(z, y)
    expected = reference.decision_function(z)
    expected = expected - expected.mean(1, keepdims=True)
    logits = x @ weight.T + bias
    logits = logits - logits.mean(1, keepdim=True)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(logits.argmax(1), reference.predict(z))


def test_lda_takes_ledoit_wolfs_shrinkage_of_the_residuals() -> None:
    x, y = clusters(n=40)
    z = standardised(x)
    residuals = z - np.stack([z[y == c].mean(0) for c in range(4)])[y]
    rho = ledoit_wolf_shrinkage(residuals, assume_centered=True)
    for default, chosen in zip(lda(x, y, 4), lda(x, y, 4, rho), strict=True):
        torch.testing.assert_close(default, chosen, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.floats(-3, 3), st.integers(0, 2**16))
def test_ledoit_wolf_equals_scikit_learn(n: int, width: int, log_scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, width)) * 10**log_scale * rng.lognormal(size=width)
    # scikit-learn answers 0 for one column; there any shrinkage gives the same covariance.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is only one row
        expected = ledoit_wolf_shrinkage(rows, assume_centered=True) if width > 1 else 0.0
    assert ledoit_wolf(torch.from_numpy(rows)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shrinkage", [0.3, None])
def test_lda_is_differentiable(shrinkage: float | None) -> None:
    x, y = clusters(n=14, width=3, classes=3)
    x = x / x.std(0)
    if shrinkage is None:  # a constant, so the finite differences must hold it fixed as well
        z = (x - x.mean(0)) / x.std(0, correction=0)
        means = torch.stack([z[y == c].mean(0) for c in range(3)])
        shrinkage = ledoit_wolf(z - means[y])
        direct = x.clone().requires_grad_()
        sum(part.sum() for part in lda(direct, y, 3)).backward()
        fixed = x.clone().requires_grad_()
        sum(part.sum() for part in lda(fixed, y, 3, shrinkage)).backward()
        torch.testing.assert_close(direct.grad, fixed.grad)
    rho = shrinkage
    assert torch.autograd.gradcheck(lambda f: lda(f, y, 3, rho), (x.requires_grad_(),))


def test_lda_gradient_is_finite_with_constant_features_and_an_absent_class() -> None:
    x, y = clusters(n=20, width=5, classes=3)
    x[:, 2] = 7.0
    x.requires_grad_()
    weight, bias = lda(x, y, 4)
    functional.cross_entropy(x @ weight.T + bias, y).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("fit", FITS)
def test_rescaled_features_give_the_same_predictions(fit: type[Head]) -> None:
    x, y = clusters()
    head = fit(x, y, 4)
    moved = x * torch.logspace(-3, 3, 12, dtype=torch.float64) + 100
    logits = logits_of(fit(moved, y, 4), moved).log_softmax(1)
    torch.testing.assert_close(logits, logits_of(head, x).log_softmax(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fit", [fit_lda, fit_head])
def test_calibration_makes_probabilities_honest_where_lda_is_overconfident(fit: type[Head]) -> None:
    # As many features as rows, as with 800 images and a wide backbone.
    x, y = clusters(n=120, width=100, spread=4, classes=3)
    new_x, new_y = clusters(n=2000, width=100, spread=4, classes=3, seed=1)
    head = fit(x, y, 3)
    calibrated = logits_of(head, new_x)
    weight, bias = lda(x, y, 3)
    raw = new_x @ weight.T + bias
    chance = float(np.log(3))
    assert log_loss(calibrated, new_y) < min(chance, log_loss(raw, new_y))
    # No other temperature would have been much better on data that was never seen.
    best = minimize_scalar(
        lambda s: log_loss(calibrated * float(np.exp(s)), new_y), bounds=(-4, 4), method="bounded"
    )
    assert log_loss(calibrated, new_y) < best.fun + 0.05
    confidence = float(calibrated.softmax(1).amax(1).mean())
    assert abs(confidence - accuracy(calibrated, new_y)) < 0.1


def test_calibration_of_rows_that_are_surely_right_is_finite_and_quiet() -> None:
    logits = torch.tensor([[362.5, -362.5]], dtype=torch.float64).repeat(6, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the slope over a bend of 1e-309 overflows
        scale = calibration_scale(logits, torch.zeros(6, dtype=torch.long))
    # One pseudo-observation of both classes alike: the loss is least at p = 13 / 14.
    assert scale * 725 == pytest.approx(np.log(13), rel=1e-6)


def test_calibration_keeps_the_order_of_lda() -> None:
    x, y = clusters()
    head, (raw, _) = fit_lda(x, y, 4), lda(x, y, 4)
    ratio = torch.from_numpy(head.weight) / raw
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert float(ratio[0, 0]) > 0


def test_separable_classes_keep_finite_confidence() -> None:
    x, y = clusters(spread=0.01)
    for fit in FITS:
        head = fit(x, y, 4)
        logits = logits_of(head, x)
        assert accuracy(logits, y) == 1.0
        assert log_loss(logits, y) < 0.05
        assert float(logits.log_softmax(1).min()) > -200


@pytest.mark.parametrize("fit", FITS)
def test_absent_classes_never_win_and_never_give_nan(fit: type[Head]) -> None:
    x, y = clusters(classes=3)
    head = fit(x, 2 * y, 6)  # classes 1, 3 and 5 have no rows
    far = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * 1e4
    for features in (x, far):
        logits = logits_of(head, features)
        assert logits.shape == (len(features), 6)
        assert torch.isfinite(logits).all()
        best = logits.amax(1)
        assert bool((logits[:, [1, 3, 5]] <= best[:, None] - 49).all())
    same = logits_of(fit(x, y, 3), x)
    torch.testing.assert_close(logits_of(head, x)[:, [0, 2, 4]], same)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("labels", [[0, 1], [0], [0, 0, 0], [0, 1, 2, 3, 4], [0, 0, 1, 1]])
def test_classes_with_one_or_two_rows(fit: type[Head], labels: list[int]) -> None:
    y = torch.tensor(labels)
    x = 5 * torch.eye(8)[y] + 0.1 * torch.randn(
        len(y), 8, generator=torch.Generator().manual_seed(0)
    )
    head = fit(x, y, 6)
    logits = logits_of(head, x)
    assert torch.isfinite(logits).all()
    assert accuracy(logits, y) == 1.0


def test_one_row_among_many_gives_finite_logits() -> None:
    # It cannot be cross-validated, so logistic regression may give it up; LDA must not.
    y = torch.tensor([0] * 6 + [1])
    x = 5 * torch.eye(8)[y] + 0.1 * torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(logits_of(fit_logistic(x, y, 3), x)).all()
    assert accuracy(logits_of(fit_lda(x, y, 3), x), y) == 1.0


def test_constant_features_do_not_break_a_head() -> None:
    y = torch.arange(20) % 2
    for fit in FITS:
        logits = logits_of(fit(torch.full((20, 3), 2.0), y, 2), torch.full((1, 3), 2.0))
        torch.testing.assert_close(logits.softmax(1), torch.full((1, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("fit", FITS)
def test_same_seed_same_head(fit: type[Head]) -> None:
    x, y = clusters(n=60, spread=2)
    state = torch.random.get_rng_state()
    first, again, other = fit(x, y, 4, seed=3), fit(x, y.numpy(), 4, seed=3), fit(x, y, 4, seed=4)
    assert np.array_equal(first.weight, again.weight)
    assert np.array_equal(first.bias, again.bias)
    assert not np.array_equal(first.weight, other.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_heads_take_float32_features_and_need_no_gradient() -> None:
    x, y = clusters(n=60)
    for fit in FITS:
        with torch.no_grad():
            head = fit(x.float().requires_grad_(), y, 4)
        assert head.weight.dtype == head.bias.dtype == np.float64
        assert logits_of(head, x.float()).dtype == torch.float64


def test_log_loss_and_accuracy_equal_scikit_learns() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 4
    expected = sklearn_log_loss(y, logits.double().softmax(1), labels=range(4))
    assert log_loss(logits, y) == pytest.approx(expected)
    assert accuracy(logits, y) == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_cross_fitted_logits_pass_a_gradient_to_the_features() -> None:
    rng = np.random.default_rng(0)
    labels = torch.arange(60) % 4
    features = torch.from_numpy(rng.normal(size=(60, 5)) + rng.normal(size=(4, 5))[labels])

    def loss(x: Tensor) -> Tensor:
        return functional.cross_entropy(*cross_fitted_logits(x, labels, 4, seed=1, shrinkage=0.1))

    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    for _ in range(3):
        step = 1e-5 * torch.from_numpy(rng.normal(size=features.shape))
        difference = float(loss(features + step) - loss(features - step)) / 2
        assert float((gradient * step).sum()) == pytest.approx(difference, rel=1e-5)
