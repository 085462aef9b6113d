"""What a guard measures on logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hgprompt_edge.maths.softmax import log_softmax

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def log_loss(logits: Floats, labels: Labels) -> Doubles:
    """Log-loss of each image, `[n]`."""
    losses: Doubles = -log_softmax(logits)[np.arange(len(labels)), labels]
    return losses


def accuracy(logits: Floats, labels: Labels) -> float:
    """Share of images whose largest logit is their label's."""
    return float(right(logits, labels).mean())


def right(logits: Floats, labels: Labels) -> npt.NDArray[np.bool_]:
    """Which images' largest logit is their label's, `[n]`."""
    found: npt.NDArray[np.bool_] = logits.argmax(1) == labels
    return found


def standard_error(x: Doubles) -> float:
    """Of the mean of `x [n]`; infinite for a single number."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("inf")


def effective_classes(logits: Floats, expected: Sequence[int] | None = None) -> float:
    """Exponential of the entropy of the mean prediction `[K]`, among the `expected` classes."""
    among = logits if expected is None else logits[:, list(expected)]
    mean = np.exp(log_softmax(among)).mean(axis=0)
    return float(np.exp(-np.sum(mean * np.log(np.maximum(mean, 1e-30)))))


def mean_entropy(logits: Floats) -> float:
    """Mean entropy of the predictions, in nats."""
    log_p = log_softmax(logits)
    return float(-(np.exp(log_p) * log_p).sum(axis=1).mean())
