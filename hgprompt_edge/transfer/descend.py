"""Second stage: exact descent on the log-loss, one weight for each prompt and layer (METHOD 5.2).

The log-loss is the cross-fitted one of the head, on the training images alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgprompt_edge.prompts import Floats, mix
from hgprompt_edge.transfer.features import FeatureStore, Pixels
from hgprompt_edge.transfer.log_loss import LogLoss

LEARNING_RATE = 0.15
"""About the change of a logit of the mix in a step. Eight steps take a source from an equal share
to at most eleven times that of another: few enough to leave the images no room to be fitted."""


@dataclass(frozen=True)
class Descent:
    """Where the second stage ended, and how it came there.

    Attributes
    ----------
    path
        Of the start and each step the weights `[M, L]` float64, whose columns sum to 1, the exact
        features `[n, D]` float32 and the log-loss in nats.
    """

    path: tuple[tuple[Tensor, Tensor, float], ...]

    @property
    def best(self) -> int:
        """The step with the lowest log-loss; the first of equal ones."""
        losses = [loss for _, _, loss in self.path]
        return losses.index(min(losses))

    @property
    def weights(self) -> Tensor:
        """Of the best step, `[M, L]`."""
        return self.path[self.best][0]

    @property
    def features(self) -> Tensor:
        """Of the training images under the best step's mix, `[n, D]`."""
        return self.path[self.best][1]


def descend(
    store: FeatureStore,
    pixels: Pixels,
    tokens: Floats,
    loss: LogLoss,
    steps: int,
    report: Callable[[int, int], None],
) -> Descent:
    """Adam on `theta [M, L]`, `a = softmax(theta)` over the prompts of each layer, from equal ones.

    Parameters
    ----------
    pixels
        Training images `[n, S, S, 3]`.
    tokens
        What is mixed, `[M, L, T, D]`.
    steps
        Each runs the images forward and back: features first, since the log-loss needs all of them,
        then the pull-back of its gradient in micro-batches.
    """
    basis = torch.from_numpy(tokens).double()
    theta = torch.zeros(tokens.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=LEARNING_RATE, betas=(0.9, 0.95))
    path = []
    for step in range(steps + 1):
        weights = theta.softmax(0)
        prompt = mix(tokens, weights.detach().numpy())
        if step < steps:
            features, pull_back = store.linearized(pixels, prompt)
        else:
            features = store.features(pixels, prompt)
        value, slope = loss.with_gradient(features)
        path.append((weights.detach(), features, value))
        if step < steps:
            pulled = pull_back(slope).double()
            optimizer.zero_grad()
            weights.backward(torch.einsum("mltd,ltd->ml", basis, pulled))  # type: ignore[no-untyped-call]
            optimizer.step()
        report(step, steps)
    return Descent(tuple(path))
