"""The best head for given features: how much regularisation, which temperature.

LDA over a path of shrinkages or, where asked for, logistic regression of three strengths; the
cross-fitted log-loss decides (METHOD 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.heads.heads import (
    Labels,
    as_labels,
    calibrated,
    calibration_scale,
    divide,
    known_logits,
    lda,
    present_classes,
)
from hgprompt_edge.heads.lda_path import LdaPath
from hgprompt_edge.heads.logistic import logistic_path
from hgprompt_edge.maths.head import Head

HeadKind = Literal["lda", "logistic"]
_Part = tuple[Tensor, Tensor]
"""Mask `[n]` of rows that are held out, and their logits `[m, K]`."""

SHRINKAGES: tuple[float | None, ...] = (
    None,
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9),
)
"""Of the LDA; None is Ledoit-Wolf's, which is near zero where there are many rows."""
STRENGTHS = (1e-2, 1e-1, 1.0)
"""`C` of the logistic regression, from strong to weak regularisation."""
HELD_OUT, MAX_DIVISIONS = 1000, 8
"""That of the LDA is averaged over as many divisions into folds as give about so many held-out
rows: with a few images a class that of one division depends on who is in which fold."""


@dataclass(frozen=True)
class HeadChoice:
    """A kind of head, how it is regularised, and what it holds out.

    Attributes
    ----------
    kind
        `lda` or `logistic`.
    strength
        Shrinkage of the LDA, None for Ledoit-Wolf's; `C` of the logistic regression.
    scale
        Inverse temperature.
    losses
        Of each row, `[n]` float64, in nats: under heads that have not seen it, the mean over the
        divisions into folds. NaN where its class has no other row.
    held_out
        For each fold of each division the mask `[n]` of its rows and their logits `[m, K]`, before
        the temperature.
    """

    kind: str
    strength: float | None
    scale: float
    losses: Tensor
    held_out: tuple[_Part, ...] = ()

    @property
    def name(self) -> str:
        """For tables: `LDA 0.10`, `LDA Ledoit-Wolf`, `logistic 0.01`."""
        if self.kind == "lda":
            return "LDA Ledoit-Wolf" if self.strength is None else f"LDA {self.strength:.2f}"
        return f"logistic {self.strength:g}"

    @property
    def log_loss(self) -> float:
        """Mean of the losses; NaN where no row can be held out."""
        return float(self.losses.nanmean())

    def fit(self, features: Tensor, labels: Labels, num_classes: int) -> Head:
        """Fit the chosen head on features `[n, D]`, those that it was chosen on."""
        y = as_labels(labels, features)
        if self.kind == "lda":
            weight, bias = lda(features.detach(), y, num_classes, self.strength)
        else:
            wanted = STRENGTHS[: STRENGTHS.index(self.strength or 0) + 1]
            *_, (weight, bias) = logistic_path(features, y, num_classes, wanted)
        return calibrated(weight, bias, y, self.scale, self.name)


def fit_head(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0, kind: HeadKind = "lda"
) -> Head:
    """Best calibrated head for features `[n, D]` and labels `[n]`, see `choose_head`."""
    choice = choose_head(features, labels, num_classes, seed, kind)
    return choice.fit(features, labels, num_classes)


def choose_head(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0, kind: HeadKind = "lda"
) -> HeadChoice:
    """Choose the head with the lowest cross-fitted log-loss on features `[n, D]`.

    Parameters
    ----------
    kind
        Where no row can be held out it is the first of the kind: Ledoit-Wolf's shrinkage of `lda`,
        the strongest regularisation of `logistic`.
    seed
        Of the folds.
    """
    x, y = features.detach().double(), as_labels(labels, features)
    if kind == "logistic":
        return _best(_logistic_choices(x, y, num_classes, seed))
    seeds = range(seed, seed + min(MAX_DIVISIONS, max(1, round(HELD_OUT / max(1, len(y))))))
    return _best(lda_choices(x, y, num_classes, seeds=seeds))


def averaged_losses(choices: Sequence[HeadChoice], labels: Labels) -> Tensor:
    """Held-out loss of each row `[n]` float64, in nats, of the heads' averaged probabilities.

    The heads must have been chosen with the same labels, kind and seed, so that their folds agree.
    """
    y = torch.as_tensor(labels).long()
    total, times = torch.zeros(len(y), dtype=torch.float64), torch.zeros(len(y))
    for parts in zip(*(choice.held_out for choice in choices), strict=True):
        rows = parts[0][0]
        found = [
            (choice.scale * logits).log_softmax(1)
            for choice, (_, logits) in zip(choices, parts, strict=True)
        ]
        average = torch.logsumexp(torch.stack(found), 0) - np.log(len(found))
        total[rows] += functional.nll_loss(average, y[rows], reduction="none")
        times[rows] += 1
    return total / times


def lda_choices(
    features: Tensor,
    labels: Labels,
    num_classes: int,
    shrinkages: Sequence[float | None] = SHRINKAGES,
    seeds: Sequence[int] = (0,),
) -> list[HeadChoice]:
    """LDA heads of all shrinkages, with what they hold out; one division into folds a seed."""
    x, y = features.detach().double(), as_labels(labels, features)
    parts = [
        (rows, LdaPath(x[fit], y[fit], num_classes), present_classes(y[fit], num_classes))
        for seed in seeds
        for rows, fit in divide(y, seed)
    ]
    held_out = [
        (rows, known_logits(path.logits(path.project(x[rows]), shrinkages), present))
        for rows, path, present in parts
    ]
    choices, scale = [], 1.0
    for place, rho in enumerate(shrinkages):
        logits = [(rows, of_all[place]) for rows, of_all in held_out]
        scale, losses = _score(logits, y, scale)
        choices.append(HeadChoice("lda", rho, scale, losses, tuple(logits)))
    return choices


def _logistic_choices(x: Tensor, y: Tensor, num_classes: int, seed: int) -> list[HeadChoice]:
    """Logistic heads of all strengths, with what they hold out in one division into folds."""
    parts: list[list[_Part]] = [[] for _ in STRENGTHS]
    for rows, fit in divide(y, seed):
        heads = logistic_path(x[fit], y[fit], num_classes, STRENGTHS)
        present = present_classes(y[fit], num_classes)
        for part, (weight, bias) in zip(parts, heads, strict=True):
            part.append((rows, known_logits(x[rows] @ weight.T + bias, present)))
    return [
        HeadChoice("logistic", strength, *_score(part, y), tuple(part))
        for strength, part in zip(STRENGTHS, parts, strict=True)
    ]


def _score(parts: Sequence[_Part], y: Tensor, start: float = 1.0) -> tuple[float, Tensor]:
    """Best inverse temperature of held-out logits, and the loss of each row at it, `[n]`."""
    total = torch.zeros(len(y), dtype=torch.float64)
    if not parts:
        return 1.0, total / 0
    rows = torch.cat([rows.nonzero()[:, 0] for rows, _ in parts])
    logits = torch.cat([logits for _, logits in parts])
    scale = calibration_scale(logits, y[rows], start)
    total.index_add_(0, rows, functional.cross_entropy(scale * logits, y[rows], reduction="none"))
    return scale, total / rows.bincount(minlength=len(y))


def _best(choices: Sequence[HeadChoice]) -> HeadChoice:
    """Take the lowest log-loss, the first of equal ones; the first where there is none."""
    losses = [choice.log_loss for choice in choices]
    return choices[losses.index(min(losses))] if np.isfinite(losses).all() else choices[0]
