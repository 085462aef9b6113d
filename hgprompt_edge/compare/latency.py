"""How long one image takes through a backbone with folded prompts, on one thread of this CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import (
    Prefix,
    features_prefix,
    pool,
    prepare_tokens,
    project_prefix,
    run_blocks,
)
from hgprompt_edge.features.cached import Tokens

ROUNDS, COST_ROUNDS = 15, 40
"""More where the difference is a few percent."""


@dataclass(frozen=True)
class Deployed:
    """What runs on a device for one image.

    Attributes
    ----------
    backbone
        With the pooling that the heads need; its model in float32 is timed.
    prompts
        Each `[L, T, D]` float32, or None: a pass without a prompt.
    """

    backbone: Backbone
    prompts: tuple[Tokens | None, ...]


def milliseconds(deployed: Sequence[Deployed], rounds: int = ROUNDS) -> list[float]:
    """Time one image through each of them: the median over rounds in which all take turns.

    A deep prompt is constant keys and values, and several run as one batch, as in the exported
    graph. In the processor's time of one thread, since other processes on a shared machine would
    change the ratio of wall times by more than what is measured.
    """
    runs = [_run(each) for each in deployed]
    spent: list[list[float]] = [[] for _ in runs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs:  # the first pass allocates
            run()
        for _ in range(rounds):
            for run, times in zip(runs, spent, strict=True):
                began = time.thread_time()
                run()
                times.append(time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return [1000 * float(np.median(times)) for times in spent]


def extra_cost(backbone: Backbone) -> float:
    """Share of time that the backbone's pooling adds to the pass of one image.

    Against the first of its `poolings`.
    """
    ways = backbone.with_pooling(backbone.poolings[0]), backbone
    own, pooled = milliseconds([Deployed(way, (None,)) for way in ways], COST_ROUNDS)
    return pooled / own - 1


def _run(deployed: Deployed) -> Callable[[], Tensor]:
    """Return the pass of one image, with everything computed that does not depend on it."""
    model, size = deployed.backbone.model, deployed.backbone.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    prompts = [None if tokens is None else torch.from_numpy(tokens) for tokens in deployed.prompts]
    deep = [p for p in prompts if p is not None and len(p) == len(model.blocks)]
    others = [p for p in prompts if p is None or len(p) != len(model.blocks)]
    with torch.inference_mode():
        prefix = stack_prefixes(model, deep) if deep else None

    def run() -> Tensor:
        with torch.inference_mode():
            found = [features_prefix(model, image, tokens) for tokens in others]
            if prefix is not None:
                found.append(features_together(model, image, prefix))
            return torch.cat(found)

    return run


def stack_prefixes(model: VisionTransformer, prompts: Sequence[Tensor]) -> list[Prefix]:
    """Keys and values of `P` deep prompts `[L, T, D]`: per layer a pair, each `[P, H, T, d]`."""
    layers = zip(*(project_prefix(model, prompt) for prompt in prompts), strict=True)
    return [
        (torch.stack([k for k, _ in layer]), torch.stack([v for _, v in layer])) for layer in layers
    ]


def features_together(model: VisionTransformer, x: Tensor, prefixes: Sequence[Prefix]) -> Tensor:
    """Features `[P, D]` of one image `[1, 3, S, S]` under `P` prompts, in one batch."""
    x = prepare_tokens(model, x).expand(len(prefixes[0][0]), -1, -1)
    return pool(model, run_blocks(model, x, prefixes), 0)
