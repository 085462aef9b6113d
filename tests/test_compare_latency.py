"""Latency of several prompts in one batch: the features are right, every way is timed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from small_vits import TOKENS, make_backbone
from toys import noise_tokens

from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.forward import features_token
from hgprompt_edge.compare.latency import (
    Deployed,
    extra_cost,
    features_together,
    milliseconds,
    stack_prefixes,
)


@pytest.mark.parametrize("family", ["tanh gelu", "registers", "class token and patches"])
def test_prompts_in_one_batch_give_the_features_of_each(family: str) -> None:
    backbone = make_backbone(family)
    size, rng = backbone.image_size, np.random.default_rng(0)
    shape = (3, backbone.depth, TOKENS, backbone.embed_dim)
    prompts = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    image = torch.from_numpy(rng.normal(size=(1, 3, size, size)).astype(np.float32))
    with torch.inference_mode():
        stacked = stack_prefixes(backbone.model, list(prompts))
        found = features_together(backbone.model, image, stacked)
        expected = [features_token(backbone.model, image, prompt)[0] for prompt in prompts]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_every_mixture_of_passes_is_timed() -> None:
    backbone = make_backbone()
    deep, shallow = noise_tokens(1)[0], noise_tokens(1, layers=1)[0]
    ways = [
        Deployed(backbone, prompts)
        for prompts in ((None,), (deep,), (deep, None), (deep, deep, deep), (shallow,))
    ]
    threads = torch.get_num_threads()
    times = milliseconds(ways, rounds=3)
    assert len(times) == len(ways)
    assert min(times) > 0
    assert torch.get_num_threads() == threads


def test_what_a_pooling_costs_is_timed_as_a_device_runs_it() -> None:
    backbone = make_backbone().with_compute(Compute(precision="bfloat16", workers=2))
    seen = set()

    def note(_block: object, inputs: Any) -> None:
        seen.add((inputs[0].dtype, inputs[0].shape[0], threading.get_ident()))

    # The clock is that of the calling thread: what workers compute would cost nothing.
    hook = backbone.model.blocks[0].norm1.register_forward_pre_hook(note)
    try:
        assert np.isfinite(extra_cost(backbone.with_pooling("both")))
    finally:
        hook.remove()
    assert seen == {(torch.float32, 1, threading.get_ident())}
