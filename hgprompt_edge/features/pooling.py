"""Which tokens the head sees: the class token, the mean of the patch tokens, or both (METHOD 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgprompt_edge.data import Task
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.heads.best_head import choose_head
from hgprompt_edge.heads.heads import Labels


@dataclass(frozen=True)
class Pooling:
    """What was chosen for a task, and why.

    Attributes
    ----------
    name
        One of the backbone's `poolings`.
    gain, error
        Nats of log-loss an image that it gains over the backbone's own pooling, and the standard
        error of that; 0 where that is it.
    """

    name: str
    gain: float = 0.0
    error: float = 0.0


def choose_pooling(store: FeatureStore, task: Task, seed: int = 0) -> Pooling:
    """Choose by the features of the training images without a prompt, see `best_pooling`.

    Without a prompt, so that the row "no prompt", against which all others are claimed, has its
    own best.
    """
    names = store.backbone.poolings
    if len(names) == 1:
        return Pooling(names[0])
    pixels = task.train.pixels
    features = {name: store.with_pooling(name).features(pixels, None) for name in names}
    return best_pooling(features, task.train.labels, len(task.classes), seed)


def best_pooling(
    features: Mapping[str, Tensor], labels: Labels, num_classes: int, seed: int = 0
) -> Pooling:
    """Choose by the cross-fitted log-loss of the best LDA on features `[n, D or 2 D]`.

    Another pooling than the first has to gain more than one standard error of the paired
    difference, since the last block must then compute all tokens.
    """
    losses = {
        name: choose_head(found, labels, num_classes, seed, "lda").losses
        for name, found in features.items()
    }
    own, *others = losses
    best = Pooling(own)
    for name in others:
        gains = (losses[own] - losses[name]).numpy()
        gains = gains[np.isfinite(gains)]
        if len(gains) < 2:
            continue
        gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
        if gain > max(error, best.gain):
            best = Pooling(name, gain, error)
    return best
