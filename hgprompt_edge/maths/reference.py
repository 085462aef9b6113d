"""What a task's own images look like to its model, and how foreign another image looks.

Features are scaled to length 1 (Mahalanobis++, Mueller and Hein 2025). In the space of their first
principal components, and of what is left beside these, an image has a Mahalanobis distance to each
class, `D_k`, under one covariance for all, and one to the mean of all images under the total
covariance, `D_0`. The score of an image is

    u = (min D_k - D_0) + (min D_k - mean D_k)

the relative Mahalanobis distance (Ren et al. 2021), and how little nearer the nearest class is
than the others. Large is foreign. No head is asked: its softmax knows nothing of foreign images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PREFIX = "reference."
SHRINKAGE = 0.2
"""Share of the identity in both covariances, relative to their trace. The same for every task: one
that is estimated follows the number of images more than the images."""
COMPONENTS = 96
FOLDS = 10
FEWEST = 30
"""Held-out images below which no share of 5 % can be told."""
MOST = 400
"""Held-out images that are kept, drawn at random where there are more: each takes 200 bytes."""
STATISTICS = ("score", "distance", "total", "rest", "beside")


@dataclass(frozen=True)
class Seen:
    """What is kept of images: a few numbers each.

    Attributes
    ----------
    values
        `[n, 5]` float32: the score `u`, the distance to the nearest class `min D_k`, that to the
        mean of all `D_0`, the squared length of what the components leave, and that part of the
        distances which is the same to every class.
    nearest
        `[n]` int64, the nearest class.
    """

    values: Floats
    nearest: Integers

    @property
    def scores(self) -> Floats:
        """How foreign each image looks, `[n]`."""
        return self.values[:, 0]


@dataclass(frozen=True)
class Reference:
    """Statistics of a task's own images, in features of width `W`.

    Attributes
    ----------
    centre
        `[W]`, the mean of the scaled features.
    basis
        `[r, W]`, their principal components, of float16 precision.
    means
        `[K, r]`, of the classes; NaN for one without images, which is no image's nearest.
    within
        `[r, r]`: a difference to a class's mean times this has the length of the distance.
    total
        `[r]`: the variances along the components, shrunk.
    rest
        `[2]`: the variance within classes, and the total one, of what the components leave.
    held_out
        Of the task's own images, under statistics that have not seen them.
    inside
        `[n, r]`, where these images lie along the components, of float16 precision.
    """

    centre: Floats
    basis: Floats
    means: Floats
    within: Floats
    total: Floats
    rest: Floats
    held_out: Seen
    inside: Floats

    @cached_property
    def across(self) -> Doubles:
        """Orthonormal directions `[c, r]`, whitened, in which the means of classes differ most.

        All of them, but half of the `r` at most, where there are many classes.
        """
        means = self.whitened_means
        _, scales, rows = np.linalg.svd(means - means.mean(0), full_matrices=False)
        count = int((scales > 1e-6 * max(float(scales[0]), 1e-12)).sum())
        return rows[: min(count, rows.shape[1] // 2)]

    @cached_property
    def known(self) -> Integers:
        """Places of the classes that have images."""
        return np.flatnonzero(np.isfinite(self.means).all(1)).astype(np.int64)

    @cached_property
    def whitened_means(self) -> Doubles:
        """Means of these, `[c, r]`, as of `whiten`."""
        return self.means[self.known].astype(np.float64) @ self.within.astype(np.float64)

    def beside(self, whitened: Doubles) -> Doubles:
        """Take from `whitened [n, r]` what lies across classes, and their common mean."""
        left = whitened - self.whitened_means.mean(0)
        return cast("Doubles", left - left @ self.across.T @ self.across)

    def see(self, features: Floats) -> Seen:
        """Reduce features `[n, W]` to what is compared."""
        return _see(self, features)

    def whiten(self, features: Floats) -> Doubles:
        """Where images with features `[n, W]` lie, `[n, r]`, so that classes vary by 1 each way."""
        inside = (_scaled(features) - self.centre) @ self.basis.T.astype(np.float64)
        return cast("Doubles", inside @ self.within.astype(np.float64))

    def whitened_held_out(self) -> Doubles:
        """Return the same of the held-out images."""
        return self.inside.astype(np.float64) @ self.within.astype(np.float64)

    def share_beyond(self, scores: Floats) -> Doubles:
        """Share of the task's own images that look as foreign as these, `[n]` of `scores [n]`.

        Counted with the image itself, `(1 + c) / (1 + n)`, so that a threshold at 5 % marks 5 % of
        the task's own images at most, on average (conformal p-values).
        """
        known = np.sort(self.held_out.scores)
        beyond = len(known) - np.searchsorted(known, scores, side="left")
        return cast("Doubles", (1.0 + beyond) / (1.0 + len(known)))

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a bundle, a model or a task file holds of it."""
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "centre": self.centre,
            "basis": self.basis.astype(np.float16),
            "means": self.means,
            "within": self.within,
            "total": self.total,
            "rest": self.rest,
            "held_out": self.held_out.values,
            "nearest": self.held_out.nearest,
            "inside": self.inside.astype(np.float16),
        }
        # safetensors writes memory as it lies, whatever the order of the axes.
        return {f"{PREFIX}{name}": np.ascontiguousarray(x) for name, x in arrays.items()}


def fit_reference(
    features: Floats,
    labels: Integers,
    classes: int,
    seed: int = 0,
    groups: Integers | None = None,
) -> Reference | None:
    """Learn what the images with these features `[n, W]` and labels `[n]` look like.

    The held-out values are cross-fitted: each fold is seen under the statistics of the others.

    Parameters
    ----------
    groups
        `[n]`, a number for each image. Those of one number, such as copies of a picture, come into
        one fold: else a held-out image looks nearer than a new one. Where that would bring half of
        the images into one fold, they are dealt singly. None: there are no groups.

    Returns
    -------
    None where there are fewer than `FEWEST` images, or no class has two.
    """
    counts = np.bincount(labels, minlength=classes)
    if len(features) < FEWEST or counts.max() < 2:
        return None
    fold = _folds(labels, seed, groups)
    values, nearest = (
        np.zeros((len(features), len(STATISTICS)), np.float32),
        np.zeros(len(features), np.int64),
    )
    for held in range(FOLDS):
        mask = fold == held
        part = _statistics(features[~mask], labels[~mask], classes)
        found = _see(part, features[mask])
        values[mask], nearest[mask] = found.values, found.nearest
    whole = _statistics(features, labels, classes)
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:MOST])
    inside = (_scaled(features[kept]) - whole.centre) @ whole.basis.T.astype(np.float64)
    held_out = Seen(values[kept], nearest[kept])
    return replace(whole, held_out=held_out, inside=_as_stored(inside))


def _statistics(features: Floats, labels: Integers, classes: int) -> Reference:
    """Statistics of these images, with nothing held out."""
    x = _scaled(features)
    centre = x.mean(0)
    x = x - centre
    width = x.shape[1]
    _, scales, rows = np.linalg.svd(x, full_matrices=False)
    rank = min(COMPONENTS, int((scales > 1e-9 * scales[0]).sum()))
    # Rounded before it is used: a file holds it so.
    basis = rows[:rank].astype(np.float16).astype(np.float64)
    inside = x @ basis.T
    means = np.full((classes, rank), np.nan)
    residuals, left = np.empty_like(inside), np.empty(len(x))
    own = x - inside @ basis
    for label in np.unique(labels):
        mask = labels == label
        means[label] = inside[mask].mean(0)
        residuals[mask] = inside[mask] - means[label]
        left[mask] = np.square(own[mask]).sum(1)
    total = np.square(scales) / len(x)
    squares = np.square(residuals).sum() + left.sum(), np.square(scales).sum()
    iso = np.array(squares) / (len(x) * width)
    rest = (1 - SHRINKAGE) * left.mean() / max(1, width - rank) + SHRINKAGE * iso
    covariance = residuals.T @ residuals / len(x)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * iso[0] * np.eye(rank)
    within = np.linalg.inv(np.linalg.cholesky(covariance)).T
    shrunk = (1 - SHRINKAGE) * total[:rank] + SHRINKAGE * iso[1]
    return Reference(
        centre.astype(np.float32),
        basis.astype(np.float32),
        means.astype(np.float32),
        within.astype(np.float32),
        shrunk.astype(np.float32),
        rest.astype(np.float32),
        Seen(np.zeros((0, len(STATISTICS)), np.float32), np.zeros(0, np.int64)),
        np.zeros((0, rank), np.float32),
    )


def _see(reference: Reference, features: Floats) -> Seen:
    """Reduce features `[n, W]`, in float64."""
    x = _scaled(features) - reference.centre
    basis = reference.basis.astype(np.float64)
    inside = x @ basis.T
    left = np.square(x - inside @ basis).sum(1)
    whitened = inside @ reference.within.astype(np.float64)
    means = reference.whitened_means
    lengths = np.square(whitened).sum(1)[:, None] + np.square(means).sum(1)
    distances = np.maximum(lengths - 2 * whitened @ means.T, 0)
    distances += (left / reference.rest[0])[:, None]
    total = (np.square(inside) / reference.total).sum(1) + left / reference.rest[1]
    least = distances.min(1)
    score = 2 * least - total - distances.mean(1)
    beside = np.square(reference.beside(whitened)).sum(1) + left / reference.rest[0]
    values = np.stack([score, least, total, left, beside], axis=1)
    return Seen(values.astype(np.float32), reference.known[distances.argmin(1)])


def _as_stored(inside: Doubles) -> Floats:
    """Round as a file holds it."""
    return inside.astype(np.float16).astype(np.float32)


def _scaled(features: Floats) -> Doubles:
    x = features.astype(np.float64)
    return cast("Doubles", x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _folds(labels: Integers, seed: int, groups: Integers | None = None) -> Integers:
    """Deal the images `[n]` to folds, group by group, classes as even as they are."""
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        order = np.argsort(first)  # numbered as they come
        first, member = first[order], np.argsort(order)[member.reshape(-1)]
        fold = _folds(labels[first], seed)[member]
        if 2 * np.bincount(fold).max() <= len(labels):
            return fold
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold
