"""Multinomial logistic regression with an L2 penalty, fast enough to be refitted on every fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.heads import Labels, as_labels, fold, row_space, sink_absent, standardise

TOLERANCE = 1e-4
"""Largest entry of the preconditioned gradient of the mean loss at which the descent stops."""
MAX_STEPS = 200


def logistic_path(
    features: Tensor, labels: Labels, num_classes: int, strengths: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimise `sum log-loss + |W|^2 / (2 C)` for each `C`: pairs `(weight [K, D], bias [K])`.

    On standardised features, with a free bias; float64, not calibrated, but the descent computes in
    float32. Each strength starts where
    the one before it ended, so give them from strong regularisation to weak.

    Notes
    -----
    The descent (L-BFGS) runs in the principal axes of the features, each scaled by the curvature
    that the loss has along it where all classes are equally likely. It needs some 20 steps there
    and hundreds in the features themselves.
    A class without rows gets the mean of the other logits less a margin, so it never wins.
    """
    x, all_labels = features.detach().double(), as_labels(labels, features)
    z, mean, std = standardise(x)
    present, y = torch.unique(all_labels, return_inverse=True)
    basis = row_space(z)
    z = z @ basis
    variance, axes = torch.linalg.eigh(z.T @ z / len(z))
    z, basis = (z @ axes).float(), basis @ axes
    curvature = variance.clamp(min=0).float() / len(present)
    fitted = z.new_zeros(len(present), z.shape[1] + 1)
    is_present = torch.isin(torch.arange(num_classes, device=y.device), present)
    for strength in strengths:
        fitted = _descend(z, y, fitted, curvature, 1 / (strength * len(z)))
        weight, bias = basis.new_zeros(num_classes, len(basis)), basis.new_zeros(num_classes)
        rows = fitted.double()
        weight[present], bias[present] = fold(rows[:, :-1] @ basis.T, rows[:, -1], mean, std)
        yield sink_absent(weight, bias, is_present)


def _descend(z: Tensor, y: Tensor, start: Tensor, curvature: Tensor, penalty: float) -> Tensor:
    """Minimise mean log-loss + `penalty |W|^2 / 2` from weights and biases `start [K, R + 1]`."""
    # One column more for the bias, whose curvature is that of a feature of variance 1.
    scale = torch.cat([curvature + penalty, curvature.new_full((1,), 1 / len(start))]).rsqrt()
    rows = torch.cat([z, z.new_ones(len(z), 1)], 1) * scale
    price = penalty * scale.square()
    price[-1] = 0
    parameters = (start / scale).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=MAX_STEPS,
        history_size=10,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows @ parameters.T, y)
        loss = loss + 0.5 * (price * parameters.square()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach() * scale
