"""Second stage: exact descent on the log-loss, one weight for each prompt and layer (METHOD 5.2).

The log-loss is the cross-fitted one of the head, on the training images alone, of which each step
sees other views: without them, weights for each layer fit the images that they are learned on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgprompt_edge.prompts import Floats, mix
from hgprompt_edge.tasks import Images
from hgprompt_edge.transfer.features import FeatureStore, Pixels
from hgprompt_edge.transfer.log_loss import LogLoss
from hgprompt_edge.vit.augment import augmented

LEARNING_RATE = 0.15
"""About the change of a logit of the mix in a step. Eight steps take a source from an equal share
to at most eleven times that of another."""
MIN_AREA, JITTER = 0.6, 0.3
"""Of the views, as when a source prompt is trained."""


@dataclass(frozen=True)
class Descent:
    """How the second stage went.

    Attributes
    ----------
    path
        Before each step the weights `[M, L]` float64, whose columns sum to 1, and of the views that
        the step saw the exact features `[n, D]` float32 and the log-loss in nats. Where it ended,
        these of the images themselves.
    """

    path: tuple[tuple[Tensor, Tensor, float], ...]

    @property
    def weights(self) -> Tensor:
        """Where it ended, `[M, L]`."""
        return self.path[-1][0]

    @property
    def features(self) -> Tensor:
        """Of the training images under that mix, `[n, D]`."""
        return self.path[-1][1]


def descend(
    store: FeatureStore,
    images: Images,
    views: Callable[[], Pixels],
    tokens: Floats,
    loss: LogLoss,
    steps: int,
    report: Callable[[int, int], None],
) -> Descent:
    """Adam on `theta [M, L]`, `a = softmax(theta)` over the prompts of each layer, from equal ones.

    Parameters
    ----------
    images
        The training images.
    views
        Gives the images `[n, S, S, 3]` that the next step shall see.
    tokens
        What is mixed, `[M, L, T, D]`.
    steps
        Each runs the images forward, and forward and back once more: features first, since the
        log-loss needs all of them, then the pull-back of its gradient in micro-batches.
    """
    basis = torch.from_numpy(tokens).double()
    theta = torch.zeros(tokens.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=LEARNING_RATE, betas=(0.9, 0.95))
    path = []
    for step in range(steps):
        report(step, steps)
        weights, seen = theta.softmax(0), views()
        prompt = mix(tokens, weights.detach().numpy())
        features = store.features(seen, prompt)
        value, slope = loss.with_gradient(features)
        path.append((weights.detach(), features, value))
        pulled = store.pull_back(seen, prompt, slope).double()
        optimizer.zero_grad()
        weights.backward(torch.einsum("mltd,ltd->ml", basis, pulled))  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = theta.detach().softmax(0)
    features = store.features(images.pixels, mix(tokens, weights.numpy()))
    path.append((weights, features, loss.with_gradient(features)[0]))
    report(steps, steps)
    return Descent(tuple(path))


def random_views(images: Images, flips: bool, seed: int) -> Callable[[], Pixels]:
    """Return a function that gives other views of the images at each call.

    Parameters
    ----------
    flips
        Whether a mirror image is of the same class.
    """
    generator = torch.Generator().manual_seed(seed)

    def views() -> Pixels:
        return augmented(
            images.pixels, min_area=MIN_AREA, jitter=JITTER, flips=flips, generator=generator
        )

    return views
