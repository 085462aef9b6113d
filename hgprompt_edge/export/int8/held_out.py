"""The images that judge an int8 model, under heads that have not seen them.

A bundle's head has seen all images that it was fitted on, which would flatter any model. So, as in
`fit`, each of the training and validation images is judged by a head that was fitted on the other
folds. A tuned prompt has itself seen the training images: there validation alone judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.data.task import Images, Task
from hgprompt_edge.export.graph.head import head_logits
from hgprompt_edge.export.graph.inference import folded_head
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.verify import reference_features
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.heads.best_head import choose_head, fit_head
from hgprompt_edge.heads.heads import divide, logits_of
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.softmax import log_mean_softmax

Floats = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


class Fold(NamedTuple):
    """Rows `[m]` of the images, and heads for the graph's features that have not seen them."""

    rows: Rows
    heads: Sequence[Head]


@dataclass(frozen=True)
class HeldOut:
    """Images with the heads that judge them.

    Attributes
    ----------
    images
        `n` of them, each in one fold.
    floating
        Which of them are right in float32, `[n]`.
    """

    images: Images
    folds: tuple[Fold, ...]
    floating: Right

    @property
    def accuracy(self) -> float:
        """In float32."""
        return float(self.floating.mean()) if len(self.floating) else 0.0

    def right(self, features: Floats) -> Right:
        """Which images are right `[n]`, from the features `[n, D]` that a body gives."""
        found = np.zeros(len(self.images), bool)
        for rows, heads in self.folds:
            found[rows] = head_logits(features[rows], heads).argmax(1) == self.images.labels[rows]
        return found


Features = Callable[[Images, Floats | None], Tensor]


def features_of(bundle: Bundle, backbone: Backbone, share: float = 1.0) -> Features:
    """Features `[n, D]` of images under a prompt that has a `share` beside the model alone."""
    store = FeatureStore(as_fitted(bundle, backbone))

    def features(images: Images, prompt: Floats | None) -> Tensor:
        if share == 1 or prompt is None:
            return store.features(images.pixels, prompt)
        return reference_features(bundle, backbone, images.pixels, prompt, share)

    return features


def hold_out(
    bundle: Bundle, backbone: Backbone, task: Task, features: Features, on: Rewrites
) -> HeldOut:
    """Judge by all images that `fit` may choose by; rows that no head can hold out are left out.

    Parameters
    ----------
    features
        Of images under a prompt, `features_of`.
    on
        How the graph is written whose features are judged.
    """
    kind: Any = bundle.objective.get("head", "lda")
    classes = len(task.classes)
    both = _join(task.train, task.validation)
    labels = torch.from_numpy(both.labels)
    x = [
        torch.cat([features(task.train, one.prompt), features(task.validation, one.prompt)])
        for one in bundle.folded
    ]
    if bundle.choice == TUNED:
        seen = torch.arange(len(both)) < len(task.train)
        heads = [fit_head(part[seen], labels[seen], classes, bundle.seed, kind) for part in x]
        divisions = [(~seen, heads)]
    else:
        choices = [choose_head(part, labels, classes, bundle.seed, kind) for part in x]
        divisions = [
            (
                rows,
                [
                    choice.fit(part[fit], labels[fit], classes)
                    for choice, part in zip(choices, x, strict=True)
                ],
            )
            for rows, fit in divide(labels, bundle.seed)
        ]
    judged = np.flatnonzero(np.any([rows.numpy() for rows, _ in divisions], axis=0))
    images, place = both.subset(judged), np.cumsum(np.isin(np.arange(len(both)), judged)) - 1
    floating, folds = np.zeros(len(images), bool), []
    for rows, heads in divisions:
        here = place[rows.numpy()]
        logits = [logits_of(head, part[rows]).numpy() for head, part in zip(heads, x, strict=True)]
        found = log_mean_softmax(np.stack(logits)) if len(logits) > 1 else logits[0]
        floating[here] = found.argmax(1) == images.labels[here]
        folds.append(Fold(here, graph_heads(bundle, backbone, heads, on)))
    return HeldOut(images, tuple(folds), floating)


def graph_heads(
    bundle: Bundle, backbone: Backbone, heads: Sequence[Head], on: Rewrites
) -> list[Head]:
    """Fitted heads, one for each folded prompt, for the features of a bundle's graph."""
    norm = last_norm(as_fitted(bundle, backbone).model)
    return [folded_head(head.as_float32(), norm, on) for head in heads]


def _join(first: Images, second: Images) -> Images:
    return Images(
        np.concatenate([first.pixels, second.pixels]),
        np.concatenate([first.labels, second.labels]),
        first.names + second.names,
    )
