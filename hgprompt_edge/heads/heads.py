"""Heads on frozen features: what they are, closed-form LDA, how they are held out and calibrated.

Which head is best for given features is chosen in `best_head`. Everything is float64. A head is
linear in the raw features: standardisation and temperature are folded into its weight and bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.maths.head import Head

Labels: TypeAlias = Tensor | npt.NDArray[np.int64]

FOLDS = 5
ABSENT_MARGIN = 50.0
"""How far the logit of a class without examples stays below the best of the other classes."""


def logits_of(head: Head, features: Tensor) -> Tensor:
    """Features `[n, D]` to logits `[n, K]` of the head's dtype, differentiable in the features."""
    weight, bias = (torch.from_numpy(x).to(features.device) for x in (head.weight, head.bias))
    return features.to(weight) @ weight.T + bias


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
    x, y = features.double(), as_labels(labels, features)
    z, mean, std = standardise(x)
    onehot = functional.one_hot(y, num_classes).to(z)  # [n, K]
    counts = onehot.sum(0)
    means = onehot.T @ z / counts.clamp(min=1)[:, None]  # [K, D]
    residuals = z - means[y]
    covariance = residuals.T @ residuals / len(z)
    if shrinkage is None:
        fixed = covariance.detach()
        norms = fixed.diagonal().mean(), fixed.square().sum()
        shrinkage = ledoit_wolf_shrinkage(residuals, int((counts > 0).sum()), *norms)
    factor = torch.linalg.cholesky(_shrink(covariance, shrinkage))
    weight = torch.cholesky_solve(means.T, factor).T
    prior = counts.clamp(min=1).log() - np.log(len(z))
    bias = prior - 0.5 * (weight * means).sum(1)
    return sink_absent(*fold(weight, bias, mean, std), counts > 0)


def ledoit_wolf(residuals: Tensor) -> float:
    """Ledoit-Wolf's shrinkage in [0, 1] of the covariance of centred rows `[n, D]`.

    The closed form of Ledoit and Wolf (2004), as in `sklearn.covariance.ledoit_wolf_shrinkage`.
    """
    x = residuals.detach().double()
    covariance = x.T @ x / len(x)
    return _ledoit_wolf(x, covariance.diagonal().mean(), covariance.square().sum())


def ledoit_wolf_shrinkage(
    residuals: Tensor, classes: int, mean_variance: Tensor, squared_norm: Tensor
) -> float:
    """Shrinkage of the residuals `[n, D]` of so many classes, as `lda` takes it by default.

    `mean_variance` and `squared_norm` are the mean of the diagonal of their covariance, and the sum
    of its squares. With too few rows to fill the space, chance symmetries (two rows a class) can
    bring the estimate to zero and the covariance to a singular matrix, so it is 0.01 at least.
    """
    n, width = residuals.shape
    least = 0.01 if n - classes < width else 0.0
    return max(_ledoit_wolf(residuals.detach(), mean_variance, squared_norm), least)


def _ledoit_wolf(x: Tensor, mean_variance: Tensor, squared_norm: Tensor) -> float:
    n, width = x.shape
    distance = squared_norm / width - mean_variance**2
    noise = (x.square().sum(1).square().sum() / n - squared_norm) / (n * width)
    if distance <= 0 or noise <= 0:
        return 0.0
    return float(min(noise, distance) / distance)


def fit_lda(
    features: Tensor,
    labels: Labels,
    num_classes: int,
    seed: int = 0,
    shrinkage: float | None = None,
) -> Head:
    """Calibrated LDA head of one shrinkage on features `[n, D]` and labels `[n]` (METHOD 6).

    Uncalibrated LDA is overconfident where `n` is near `D`; one temperature, chosen by the
    cross-validated log-loss, mends that. `best_head.fit_head` chooses the shrinkage, too.
    """
    x, y = features.detach().double(), as_labels(labels, features)
    scale = calibration_scale(*cross_fitted_logits(x, y, num_classes, seed, shrinkage))
    return calibrated(*lda(x, y, num_classes, shrinkage), y, scale)


def calibrated(weight: Tensor, bias: Tensor, labels: Tensor, scale: float, name: str = "") -> Head:
    """Head with logits `scale` times as large; classes without a label stay out of reach."""
    present = present_classes(labels, len(bias))
    weight, bias = sink_absent(weight * scale, bias * scale, present)
    return Head(weight.cpu().numpy(), bias.cpu().numpy(), name)


def cross_fitted_logits(
    features: Tensor,
    labels: Labels,
    num_classes: int,
    seed: int = 0,
    shrinkage: float | None = None,
    folds: int = FOLDS,
) -> tuple[Tensor, Tensor]:
    """Logits `[m, K]` of the LDA, each fold of the features `[n, D]` scored by the others' head.

    With them the labels `[m]`, in the order of the folds; rows whose class has no row in another
    fold are left out. Float64, not calibrated, differentiable with respect to the features.
    """
    x, y = features.double(), as_labels(labels, features)
    logits, held_out = [], []
    for rows, fit in divide(y, seed, folds):
        weight, bias = lda(x[fit], y[fit], num_classes, shrinkage)
        present = present_classes(y[fit], num_classes)
        logits.append(known_logits(x[rows] @ weight.T + bias, present))
        held_out.append(y[rows])
    if not logits:
        return x.new_zeros(0, 1), y[:0]
    return torch.cat(logits), torch.cat(held_out)


def cross_fitted_log_loss(
    features: Tensor,
    labels: Labels,
    num_classes: int,
    seed: int = 0,
    shrinkage: float | None = None,
) -> float:
    """Log-loss in nats of `cross_fitted_logits`, at the temperature that is best for it."""
    logits, held_out = cross_fitted_logits(features.detach(), labels, num_classes, seed, shrinkage)
    return log_loss(logits * calibration_scale(logits, held_out), held_out)


def log_loss(logits: Tensor, labels: Labels) -> float:
    """Mean negative log-likelihood in nats of labels `[n]` under logits `[n, K]`."""
    return float(functional.cross_entropy(logits.detach().double(), as_labels(labels, logits)))


def accuracy(logits: Tensor, labels: Labels) -> float:
    """Share of rows, in [0, 1], whose largest of the logits `[n, K]` is that of the label."""
    return float((logits.argmax(1) == as_labels(labels, logits)).double().mean())


def as_labels(labels: Labels, like: Tensor) -> Tensor:
    """Labels `[n]` as int64, on the device of another tensor."""
    return torch.as_tensor(labels, device=like.device).long()


def standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(z, mean, std)`; a feature that does not vary gets the std of rounding noise, not zero."""
    mean = x.mean(0)
    variance = (x - mean).square().mean(0)
    floor = 1e-12 * variance.detach().mean() + 1e-24
    std = variance.clamp(min=float(floor)).sqrt()
    return (x - mean) / std, mean, std


def row_space(z: Tensor) -> Tensor:
    """Orthonormal basis `[D, R]` of the rows `[n, D]`; the identity where they may fill the space.

    Regularised heads on fewer rows than features lie in it, so all else can be done there.
    """
    if len(z) >= z.shape[1]:
        return torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    basis: Tensor = torch.linalg.qr(z.T)[0]
    return basis


def fold(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Head `[K, D]`, `[K]` on raw features from one on standardised features."""
    weight = weight / std
    return weight, bias - weight @ mean


def _shrink(covariance: Tensor, rho: float) -> Tensor:
    """`(1 - rho) S + rho (tr S / D) I`, of standardised features (METHOD 3)."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    target = covariance.diagonal().mean()
    if float(target.detach()) < 1e-12:
        return identity
    # The last term is rounding noise; it matters to a feature that is constant, at rho = 0.
    return (1 - rho) * covariance + (rho + 1e-14) * target * identity


def sink_absent(weight: Tensor, bias: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the logits of classes that are not `present [K]` below those of the others."""
    # The mean of the present classes' logits is at most their maximum, whatever the features, and
    # of their size, so that a bound relative to the largest logit keeps its meaning.
    if bool(present.all()):
        return weight, bias
    weight = torch.where(present[:, None], weight, weight[present].mean(0))
    bias = torch.where(present, bias, bias[present].mean() - ABSENT_MARGIN)
    return weight, bias


def divide(y: Tensor, seed: int, folds: int = FOLDS) -> Iterator[tuple[Tensor, Tensor]]:
    """Masks `[n]` of each fold: the rows that are held out, and those that a head is fitted on.

    Rows whose class has no row in the other folds say nothing about confidence and are left out.
    """
    for held_out in stratified_folds(y, seed, folds):
        yield held_out & torch.isin(y, y[~held_out]), ~held_out


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Which of the classes `[K]` have a row."""
    return functional.one_hot(labels, num_classes).any(0)


def known_logits(logits: Tensor, present: Tensor) -> Tensor:
    """Logits `[..., K]` with mean zero over the classes that are `present [K]`, the others out."""
    logits = logits - logits[..., present].mean(-1, keepdim=True)
    # Finite, so that 0 probability times it is 0.
    return torch.where(present, logits, -1e30)


def stratified_folds(y: Tensor, seed: int, folds: int = FOLDS) -> Iterator[Tensor]:
    """Boolean masks `[n]` of the folds; every class is dealt out over them in turn."""
    folds = min(folds, len(y))
    if folds < 2:
        return
    shuffled = np.random.default_rng(seed).permutation(len(y))
    order = shuffled[np.argsort(y.cpu().numpy()[shuffled], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % folds
    for index in range(folds):
        yield torch.from_numpy(fold == index).to(y.device)


def calibration_scale(logits: Tensor, labels: Tensor, start: float = 1.0) -> float:
    """Inverse temperature that minimises the log-loss of `scale * logits`; 1 without rows.

    The loss is convex in the scale: Newton's steps on its slope, from `start`, and bisection where
    a step leaves the bracket. One pseudo-observation spread over all classes, whose logits have
    mean zero, keeps the scale finite where all rows are correct.
    """
    if not len(labels):
        return 1.0
    target = float(logits.gather(1, labels[:, None]).mean()) * (1 - 1 / (len(labels) + 1))
    low, high, at = math.log(1e-9), math.log(1e3), math.log(start)
    for _ in range(60):
        probabilities = (logits * math.exp(at)).softmax(1)
        expected = (probabilities * logits).sum(1, keepdim=True)
        slope = float(expected.mean()) - target
        low, high = (low, at) if slope > 0 else (at, high)
        bend = float((probabilities * (logits - expected).square()).sum(1).mean()) * math.exp(at)
        after = at - slope / bend if bend > 0 else low
        if not low < after < high:
            after = (low + high) / 2
        if abs(after - at) < 1e-9:
            break
        at = after
    return math.exp(at)
