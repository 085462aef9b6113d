"""The best head for given features: which kind, how much regularisation, which temperature.

LDA over a path of shrinkages and logistic regression of three strengths; the cross-fitted log-loss
decides (METHOD 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.vit.heads import (
    Head,
    Labels,
    as_labels,
    calibrated,
    calibration_scale,
    divide,
    known_logits,
    lda,
    present_classes,
)
from hgprompt_edge.vit.lda_path import LdaPath
from hgprompt_edge.vit.logistic import logistic_path

HeadKind = Literal["auto", "lda", "logistic"]

SHRINKAGES: tuple[float | None, ...] = (
    None,
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9),
)
"""Of the LDA; None is Ledoit-Wolf's, which is near zero where there are many rows."""
STRENGTHS = (1e-2, 1e-1, 1.0)
"""`C` of the logistic regression, from strong to weak regularisation."""
_Part = tuple[Tensor, Tensor]
"""Mask `[n]` of rows that are held out, and their logits `[m, K]`."""
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
    """

    kind: str
    strength: float | None
    scale: float
    losses: Tensor

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
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0, kind: HeadKind = "auto"
) -> Head:
    """Best calibrated head for features `[n, D]` and labels `[n]`, see `choose_head`."""
    choice = choose_head(features, labels, num_classes, seed, kind)
    return choice.fit(features, labels, num_classes)


def choose_head(
    features: Tensor, labels: Labels, num_classes: int, seed: int = 0, kind: HeadKind = "auto"
) -> HeadChoice:
    """Choose the head with the lowest cross-fitted log-loss on features `[n, D]`.

    Parameters
    ----------
    kind
        `lda` or `logistic`: only these; `auto`: of both. Where no row can be held out it is the
        first of each: Ledoit-Wolf's shrinkage, the strongest regularisation.
    seed
        Of the folds.
    """
    x, y = features.detach().double(), as_labels(labels, features)
    seeds = range(seed, seed + min(MAX_DIVISIONS, max(1, round(HELD_OUT / max(1, len(y))))))
    if kind == "logistic":
        return _best(_logistic_choices(x, y, num_classes, seed))
    best = _best(lda_choices(x, y, num_classes, seeds=seeds))
    if kind == "lda":
        return best
    # It takes much longer, so one division has to do: its gain there over the LDA on the same
    # folds, image by image, is what it gains over all of them.
    same = best
    if len(seeds) > 1:
        (same,) = lda_choices(x, y, num_classes, (best.strength,), seeds[:1])
    found = _logistic_choices(x, y, num_classes, seed, same.losses)
    return _best([best, *(replace(c, losses=best.losses - same.losses + c.losses) for c in found)])


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
    projected = [path.project(x[rows]) for rows, path, _ in parts]
    choices, scale = [], 1.0
    for rho in shrinkages:
        logits = [
            (rows, known_logits(path.logits(z, rho), present))
            for (rows, path, present), z in zip(parts, projected, strict=True)
        ]
        scale, losses = _score(logits, y, scale)
        choices.append(HeadChoice("lda", rho, scale, losses))
    return choices


def _logistic_choices(
    x: Tensor, y: Tensor, num_classes: int, seed: int, rival: Tensor | None = None
) -> list[HeadChoice]:
    """Logistic heads of all strengths, with what they hold out in one division into folds.

    None of them where the first fold says that the losses `[n]` of a `rival` are out of reach.
    """
    parts: list[list[_Part]] = [[] for _ in STRENGTHS]
    for rows, fit in divide(y, seed):
        heads = logistic_path(x[fit], y[fit], num_classes, STRENGTHS)
        present = present_classes(y[fit], num_classes)
        for part, (weight, bias) in zip(parts, heads, strict=True):
            part.append((rows, known_logits(x[rows] @ weight.T + bias, present)))
        if rival is not None and len(parts[0]) == 1 and int(rows.sum()) > 1:
            gains = max((rival - _score(part, y)[1] for part in parts), key=Tensor.nanmean)[rows]
            if float(gains.mean()) < -2 * float(gains.std()) / len(gains) ** 0.5:
                return []
    scored = [_score(part, y) for part in parts]
    return [
        HeadChoice("logistic", strength, *found)
        for strength, found in zip(STRENGTHS, scored, strict=True)
    ]


def _score(parts: Sequence[_Part], y: Tensor, start: float = 1.0) -> tuple[float, Tensor]:
    """Best inverse temperature of held-out logits, and the loss of each row at it, `[n]`."""
    total, times = torch.zeros(len(y), dtype=torch.float64), torch.zeros(len(y))
    if not parts:
        return 1.0, total / times
    labels = torch.cat([y[rows] for rows, _ in parts])
    scale = calibration_scale(torch.cat([logits for _, logits in parts]), labels, start)
    for rows, logits in parts:
        total[rows] += functional.cross_entropy(scale * logits, y[rows], reduction="none")
        times[rows] += 1
    return scale, total / times


def _best(choices: Sequence[HeadChoice]) -> HeadChoice:
    """Take the lowest log-loss, the first of equal ones; the first where there is none."""
    losses = [choice.log_loss for choice in choices]
    return choices[losses.index(min(losses))] if np.isfinite(losses).all() else choices[0]
