"""Heads on frozen features: closed-form LDA and a short logistic regression, both calibrated.

Everything is float64. A head is linear in the raw features: standardisation and temperature are
folded into its weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Labels: TypeAlias = Tensor | npt.NDArray[np.int64]

FOLDS = 5
ABSENT_MARGIN = 50.0
"""How far the logit of a class without examples stays below the best of the other classes."""
INVERSE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""`C` of the logistic regression, from strong to weak regularisation."""


@dataclass(frozen=True)
class Head:
    """A linear classifier whose softmax gives probabilities.

    Attributes
    ----------
    weight
        `[K, D]` float64.
    bias
        `[K]` float64.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Features `[n, D]` to logits `[n, K]` float64."""
        return features.to(self.weight) @ self.weight.T + self.bias


def lda(
    features: Tensor, labels: Labels, num_classes: int, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis in closed form: `(weight [K, D], bias [K])`, float64.

    On standardised features, with the within-class covariance shrunk as in METHOD 3,
    `(1 - rho) S + rho (tr S / D) I`, and solved by Cholesky. Differentiable with respect to
    `features [n, D]`; `rho` is a constant. Not calibrated.

    Parameters
    ----------
    shrinkage
        `rho` in [0, 1]; None: Ledoit-Wolf's, from the residuals.

    Notes
    -----
    Where no class varies at all the covariance is the identity: the nearest mean wins.
    A class without rows gets the mean of the other logits less `ABSENT_MARGIN`, so it never wins.
    """
    x, y = features.double(), _as_labels(labels, features)
    z, mean, std = _standardise(x)
    onehot = functional.one_hot(y, num_classes).to(z)  # [n, K]
    counts = onehot.sum(0)
    means = onehot.T @ z / counts.clamp(min=1)[:, None]  # [K, D]
    residuals = z - means[y]
    rho = _shrinkage(residuals, int((counts > 0).sum())) if shrinkage is None else shrinkage
    factor = torch.linalg.cholesky(_shrink(residuals.T @ residuals / len(z), rho))
    weight = torch.cholesky_solve(means.T, factor).T
    prior = counts.clamp(min=1).log() - np.log(len(z))
    bias = prior - 0.5 * (weight * means).sum(1)
    return _sink_absent(*_fold(weight, bias, mean, std), counts > 0)


def ledoit_wolf(residuals: Tensor) -> float:
    """Ledoit-Wolf's shrinkage in [0, 1] of the covariance of centred rows `[n, D]`.

    The closed form of Ledoit and Wolf (2004), as in `sklearn.covariance.ledoit_wolf_shrinkage`.
    """
    x = residuals.detach().double()
    n, width = x.shape
    covariance = x.T @ x / n
    mean_variance = covariance.diagonal().mean()
    squared_norm = covariance.square().sum()
    distance = squared_norm / width - mean_variance**2
    noise = (x.square().sum(1).square().sum() / n - squared_norm) / (n * width)
    if distance <= 0 or noise <= 0:
        return 0.0
    return float(min(noise, distance) / distance)


def fit_lda(features: Tensor, labels: Labels, num_classes: int, seed: int = 0) -> Head:
    """Calibrated LDA head on features `[n, D]` and labels `[n]` (METHOD 6).

    Uncalibrated LDA is overconfident where `n` is near `D`; one temperature, chosen by the
    cross-validated log-loss, mends that.
    """
    x, y = features.detach().double(), _as_labels(labels, features)
    scale = calibration_scale(*cross_fitted_logits(x, y, num_classes, seed))
    weight, bias = lda(x, y, num_classes)
    present = functional.one_hot(y, num_classes).sum(0) > 0
    return Head(*_sink_absent(weight * scale, bias * scale, present))


def fit_logistic(features: Tensor, labels: Labels, num_classes: int, seed: int = 0) -> Head:
    """Calibrated multinomial logistic regression with an L2 penalty on standardised features.

    The penalty and the temperature are chosen together by the cross-validated log-loss.
    """
    x, y = features.detach().double(), _as_labels(labels, features)
    best_loss, best_strength, best_scale = np.inf, INVERSE_STRENGTHS[0], 1.0
    for strength in INVERSE_STRENGTHS:

        def fit(rows: Tensor, classes: Tensor, strength: float = strength) -> tuple[Tensor, Tensor]:
            return _logistic(rows, classes, num_classes, strength)

        logits, held_out = _held_out_logits(x, y, fit, seed)
        scale = calibration_scale(logits, held_out)
        loss = log_loss(logits * scale, held_out) if len(held_out) else 0.0
        if loss >= best_loss:  # it falls with a weaker penalty, then rises
            break
        best_loss, best_strength, best_scale = loss, strength, scale
    weight, bias = _logistic(x, y, num_classes, best_strength)
    present = functional.one_hot(y, num_classes).sum(0) > 0
    return Head(*_sink_absent(weight * best_scale, bias * best_scale, present))


def cross_fitted_logits(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[m, K]` of the LDA, each fold of the features `[n, D]` scored by the others' head.

    With them the labels `[m]`, in the order of the folds; rows whose class has no row in another
    fold are left out. Float64, not calibrated, differentiable with respect to the features.
    """
    x, y = features.double(), _as_labels(labels, features)

    def fit(rows: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        return lda(rows, classes, num_classes)

    return _held_out_logits(x, y, fit, seed)


def cross_fitted_log_loss(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0
) -> float:
    """Log-loss in nats of `cross_fitted_logits`, at the temperature that is best for it."""
    logits, held_out = cross_fitted_logits(features.detach(), labels, num_classes, seed)
    return log_loss(logits * calibration_scale(logits, held_out), held_out)


def log_loss(logits: Tensor, labels: Labels) -> float:
    """Mean negative log-likelihood in nats of labels `[n]` under logits `[n, K]`."""
    return float(functional.cross_entropy(logits.detach().double(), _as_labels(labels, logits)))


def accuracy(logits: Tensor, labels: Labels) -> float:
    """Share of rows, in [0, 1], whose largest of the logits `[n, K]` is that of the label."""
    return float((logits.argmax(1) == _as_labels(labels, logits)).double().mean())


def _as_labels(labels: Labels, like: Tensor) -> Tensor:
    return torch.as_tensor(labels, device=like.device).long()


def _standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(z, mean, std)`; a feature that does not vary gets the std of rounding noise, not zero."""
    mean = x.mean(0)
    variance = (x - mean).square().mean(0)
    floor = 1e-12 * variance.detach().mean() + 1e-24
    std = variance.clamp(min=float(floor)).sqrt()
    return (x - mean) / std, mean, std


def _fold(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight / std
    return weight, bias - weight @ mean


def _shrinkage(residuals: Tensor, classes: int) -> float:
    # With too few rows to fill the space, chance symmetries (two rows a class) can bring the
    # estimate to zero and the covariance to a singular matrix.
    n, width = residuals.shape
    return max(ledoit_wolf(residuals), 0.01 if n - classes < width else 0.0)


def _shrink(covariance: Tensor, rho: float) -> Tensor:
    """`(1 - rho) S + rho (tr S / D) I`, of standardised features (METHOD 3)."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    target = covariance.diagonal().mean()
    if float(target.detach()) < 1e-12:
        return identity
    # The last term is rounding noise; it matters to a feature that is constant, at rho = 0.
    return (1 - rho) * covariance + (rho + 1e-14) * target * identity


def _sink_absent(weight: Tensor, bias: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    # The mean of the present classes' logits is at most their maximum, whatever the features, and
    # of their size, so that a bound relative to the largest logit keeps its meaning.
    if bool(present.all()):
        return weight, bias
    weight = torch.where(present[:, None], weight, weight[present].mean(0))
    bias = torch.where(present, bias, bias[present].mean() - ABSENT_MARGIN)
    return weight, bias


def _held_out_logits(
    x: Tensor, y: Tensor, fit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], seed: int
) -> tuple[Tensor, Tensor]:
    """Logits of each row under a fit without its fold, and the rows' labels.

    Over the classes that the fit has seen a row's logits have mean zero; the others are out.
    Rows whose class has no row in the other folds say nothing about confidence and are left out.
    """
    logits, labels = [], []
    for held_out in _stratified_folds(y, seed):
        weight, bias = fit(x[~held_out], y[~held_out])
        known = held_out & torch.isin(y, y[~held_out])
        present = torch.isin(torch.arange(len(bias), device=y.device), y[~held_out])
        rows = x[known] @ weight.T + bias
        rows = rows - rows[:, present].mean(1, keepdim=True)
        # Finite, so that 0 probability times it is 0.
        logits.append(torch.where(present, rows, -1e30))
        labels.append(y[known])
    if not labels:
        return x.new_zeros(0, 1), y[:0]
    return torch.cat(logits), torch.cat(labels)


def _stratified_folds(y: Tensor, seed: int) -> Iterator[Tensor]:
    """Boolean masks `[n]` of the folds; every class is dealt out over them in turn."""
    folds = min(FOLDS, len(y))
    if folds < 2:
        return
    shuffled = np.random.default_rng(seed).permutation(len(y))
    order = shuffled[np.argsort(y.cpu().numpy()[shuffled], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % folds
    for index in range(folds):
        yield torch.from_numpy(fold == index).to(y.device)


def calibration_scale(logits: Tensor, labels: Tensor) -> float:
    """Inverse temperature that minimises the log-loss of `scale * logits`; 1 without rows.

    The loss is convex in the scale, so its slope is bisected. One pseudo-observation spread over
    all classes, whose logits have mean zero, keeps the scale finite where all rows are correct.
    """
    if not len(labels):
        return 1.0
    target = logits.gather(1, labels[:, None])[:, 0] * (1 - 1 / (len(labels) + 1))
    low, high = np.log(1e-9), np.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits * np.exp(middle)).softmax(1) * logits).sum(1)
        if float((expected - target).mean()) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp((low + high) / 2))


def _logistic(
    features: Tensor, y: Tensor, num_classes: int, strength: float
) -> tuple[Tensor, Tensor]:
    """Minimise `sum log-loss + |W|^2 / (2 C)` over standardised features; the bias is free."""
    z, mean, std = _standardise(features)
    present, y = torch.unique(y, return_inverse=True)
    parameters = z.new_zeros(len(present), z.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=100,
        history_size=10,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        penalty = weight.square().sum() / (2 * strength * len(z))
        loss = functional.cross_entropy(z @ weight.T + bias, y) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = parameters.detach()
    weight, bias = z.new_zeros(num_classes, z.shape[1]), z.new_zeros(num_classes)
    weight[present], bias[present] = _fold(fitted[:, :-1], fitted[:, -1], mean, std)
    is_present = torch.isin(torch.arange(num_classes, device=y.device), present)
    return _sink_absent(weight, bias, is_present)
