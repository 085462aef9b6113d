"""All shrinkages from one eigendecomposition, logistic regression, and the choice among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hgprompt_edge.heads.best_head import (
    SHRINKAGES,
    STRENGTHS,
    averaged_losses,
    choose_head,
    fit_head,
    lda_choices,
)
from hgprompt_edge.heads.heads import (
    accuracy,
    cross_fitted_log_loss,
    fit_lda,
    lda,
    log_loss,
    logits_of,
)
from hgprompt_edge.heads.lda_path import LdaPath
from hgprompt_edge.heads.logistic import logistic_path


def rows(n: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that share a few strong directions, on uneven scales."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    fixed = np.random.default_rng(7)
    centres, mixing = fixed.normal(size=(classes, width)), fixed.normal(size=(width, width))
    mixing *= np.geomspace(2, 0.05, width)[:, None]
    scales = fixed.lognormal(size=width)
    noise = rng.normal(size=(n, width)) @ mixing
    return torch.from_numpy((0.5 * centres[labels] + noise + 1) * scales), torch.from_numpy(labels)


def centred(logits: Tensor | np.ndarray) -> np.ndarray:
    logits = np.asarray(logits)
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("n", [30, 200])  # fewer rows than features, and more
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_every_shrinkage_of_the_path_equals_scikit_learns(n: int, solver: str) -> None:
    x, y = rows(n, 40, 5)
    new, _ = rows(50, 40, 5, seed=1)
    path = LdaPath(x, y, 5)
    projected = path.project(new)
    scaler = StandardScaler().fit(x)
    for rho in (0.01, 0.1, 0.45, 0.9):
        reference = LinearDiscriminantAnalysis(solver=solver, shrinkage=rho)
        reference.fit(scaler.transform(x), y)
        expected = centred(reference.decision_function(scaler.transform(new)))
        found = centred(path.logits(projected, (rho,))[0])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(6, 60),
    width=st.integers(2, 50),
    classes=st.integers(2, 6),
    constant=st.booleans(),
    rho=st.sampled_from(SHRINKAGES),
)
def test_the_path_equals_one_head_at_a_time(
    n: int, width: int, classes: int, constant: bool, rho: float | None
) -> None:
    x, y = rows(n, width, classes)
    if constant:
        x[:, 0] = 3.0
    new, _ = rows(20, width, classes, seed=1)
    path = LdaPath(x, y, classes + 1)  # one class has no rows
    weight, bias = lda(x, y, classes + 1, rho)
    found = path.logits(path.project(new), (rho,))[0, :, :classes]
    expected = (new @ weight.T + bias)[:, :classes]
    if path.ledoit_wolf < 1e-6 and rho is None and n <= width + classes:
        return  # singular: any answer is rounding noise
    np.testing.assert_allclose(centred(found), centred(expected), rtol=1e-4, atol=1e-5)


def test_the_losses_of_the_path_are_the_cross_fitted_ones() -> None:
    x, y = rows(90, 30, 4)
    for choice in lda_choices(x, y, 4, seeds=(5,)):
        expected = cross_fitted_log_loss(x, y, 4, 5, choice.strength)
        assert choice.log_loss == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("n", [40, 150])
def test_logistic_equals_scikit_learns_for_every_strength(n: int) -> None:
    x, y = rows(n, 60, 3)
    scaler = StandardScaler().fit(x)
    found = logistic_path(x, y, 3, STRENGTHS)
    for strength, (weight, bias) in zip(STRENGTHS, found, strict=True):
        reference = LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
        reference.fit(scaler.transform(x), y)
        expected = reference.predict_log_proba(scaler.transform(x))
        logits = (x @ weight.T + bias).log_softmax(1)
        np.testing.assert_allclose(logits, expected, atol=0.03)


def test_more_shrinkage_is_chosen_where_rows_are_few() -> None:
    many, few = rows(600, 20, 3), rows(18, 20, 3)
    chosen = [choose_head(x, y, 3, kind="lda").strength or 0.0 for x, y in (many, few)]
    assert chosen[0] < 0.1 < chosen[1]


def test_the_best_head_is_better_on_new_rows_than_ledoit_wolfs() -> None:
    x, y = rows(60, 80, 3)
    new, labels = rows(2000, 80, 3, seed=1)
    best, today = (logits_of(fit(x, y, 3), new) for fit in (fit_head, fit_lda))
    assert log_loss(best, labels) <= log_loss(today, labels)
    assert accuracy(best, labels) >= accuracy(today, labels)


def test_averaged_losses_are_those_of_the_mean_probability() -> None:
    x, y = rows(60, 12, 3)
    other = x + torch.from_numpy(np.random.default_rng(1).normal(size=x.shape))
    one, two = (choose_head(each, y, 3) for each in (x, other))
    torch.testing.assert_close(averaged_losses([one], y), one.losses)
    torch.testing.assert_close(averaged_losses([two, two], y), two.losses)
    total, times = torch.zeros(60).double(), torch.zeros(60)
    for (mask, first), (_, second) in zip(one.held_out, two.held_out, strict=True):
        odds = ((one.scale * first).softmax(1) + (two.scale * second).softmax(1)) / 2
        total[mask] -= odds[torch.arange(len(odds)), y[mask]].log()
        times[mask] += 1
    torch.testing.assert_close(averaged_losses([one, two], y), total / times)


def test_each_row_is_held_out_and_only_classes_of_one_row_are_not() -> None:
    x, y = rows(50, 10, 4)
    y[:1] = 4  # one row of a class of its own
    for kind in ("lda", "logistic"):
        losses = choose_head(x, y, 5, kind=kind).losses
        assert torch.equal(losses.isnan(), y == 4)


def test_a_row_does_not_help_to_score_itself() -> None:
    # Labels are noise: whatever is chosen, its held-out loss stays at chance or above.
    rng = np.random.default_rng(3)
    x, y = torch.from_numpy(rng.normal(size=(120, 300))), torch.from_numpy(rng.integers(0, 3, 120))
    for kind in ("lda", "logistic"):
        assert choose_head(x, y, 3, kind=kind).log_loss > np.log(3) - 0.03


def test_the_name_says_what_was_fitted() -> None:
    x, y = rows(80, 12, 3)
    for kind in ("lda", "logistic"):
        choice = choose_head(x, y, 3, kind=kind)
        head = choice.fit(x, y, 3)
        assert head.name == choice.name
        assert head.name.startswith({"lda": "LDA ", "logistic": "logistic "}[kind])
    weight, _ = lda(x, y, 3, choose_head(x, y, 3, kind="lda").strength)
    ratio = fit_head(x, y, 3, kind="lda").weight / weight
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_without_a_second_row_of_any_class_a_head_is_fitted_all_the_same() -> None:
    x = torch.eye(4).double() * 5
    for kind in ("lda", "logistic"):
        choice = choose_head(x, torch.arange(4), 4, kind=kind)
        assert np.isnan(choice.log_loss)
        assert accuracy(logits_of(choice.fit(x, torch.arange(4), 4), x), torch.arange(4)) == 1.0
