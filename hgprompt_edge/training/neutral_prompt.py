"""Where all prompts of a bank start: one deterministic initialisation that changes nothing yet.

VPT's uniform start costs a small backbone up to 4 points before training begins, since every
random token draws attention. Two steps mend that, and neither needs a data set: an offset turns
all tokens away from the mean query of each block, then a short optimisation on seeded noise
images brings the prompted features back to the unprompted ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import features_prefix, prepare_tokens
from hgprompt_edge.backbones.linearize import Linearized
from hgprompt_edge.backbones.passes import in_parts
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import cache_folder, read_safetensors, sha256_arrays, write_safetensors
from hgprompt_edge.prompts.prompt import DEEP
from hgprompt_edge.training.resume import load_state, save_state

NOISE_CELLS = (2, 4, 8, 16, 32)
"""Cells a side of the noise of each scale; their sum looks like a blurred photograph."""
NEUTRAL_STEPS, NEUTRAL_BATCH, NEUTRAL_RATE = 200, 64, 1e-2
STATE_STEPS = 20
"""After so many steps an interrupted run could go on from."""


def initial_tokens(backbone: Backbone, num_tokens: int, mode: str, init_seed: int) -> Tensor:
    """VPT's uniform tokens plus the offset that few queries attend to: `[L, T, D]` float32.

    Uniform in +-sqrt(6 / (3 p^2 + D)) with `p` the patch size (Jia et al. 2022). The same seed
    and backbone give the same tokens.
    """
    generator = torch.Generator().manual_seed(init_seed)
    layers = backbone.depth if mode == DEEP else 1
    bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
    shape = (layers, num_tokens, backbone.embed_dim)
    tokens = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    length = bound / math.sqrt(3) * math.sqrt(backbone.embed_dim)  # expected norm of a token
    with torch.no_grad():
        x = prepare_tokens(backbone.model, noise_images(64, backbone.image_size, generator))
        for layer, block in zip(range(layers), backbone.model.blocks, strict=False):
            tokens[layer] += length * _away_from_queries(block, x)
            x = block(x)
    return tokens


def neutral_tokens(
    backbone: Backbone,
    num_tokens: int,
    mode: str,
    init_seed: int,
    *,
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`initial_tokens`, then optimised until the prompt hardly changes a feature: `[L, T, D]`.

    Minimises the squared distance of prompted and unprompted features, in units of their standard
    deviation, on fresh noise images. Kept in the cache: all prompts of a bank share it.
    """
    start = initial_tokens(backbone, num_tokens, mode, init_seed)
    key = sha256_arrays(
        {f"{backbone.sha256} torch.{backbone.compute.precision} {NEUTRAL_STEPS}": start.numpy()}
    )
    path = cache_folder() / "starts" / f"{key}.safetensors"
    try:
        found = torch.from_numpy(read_safetensors(path)[0]["prompt"])
        with suppress(OSError):  # the least recently used entry goes first, and this one is used
            os.utime(path)
        return found
    except (UserError, KeyError):
        state = path.with_suffix(".state")
        tokens = _neutralise(backbone, start, init_seed, report, state)
    with suppress(OSError, UserError):  # it is computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"prompt": tokens.numpy()}, {})
        state.unlink(missing_ok=True)
    return tokens


def noise_images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth colour noise `[count, 3, size, size]` in [-1, 1] with structure at every scale."""
    total = torch.zeros(count, 3, size, size)
    for octave, cells in enumerate(NOISE_CELLS):
        colour = 0.7 * torch.randn(count, 3, cells, cells, generator=generator)
        grey = torch.randn(count, 1, cells, cells, generator=generator)
        share = torch.rand(count, 1, 1, 1, generator=generator) / (1 + 0.3 * octave)
        total += share * functional.interpolate(colour + grey, size=size, mode="bicubic")
    contrast = total.flatten(1).std(1)[:, None, None, None]
    tint = 0.3 * torch.randn(count, 3, 1, 1, generator=generator)
    return (0.5 * total / contrast + tint).clamp(-1, 1)


def _neutralise(
    backbone: Backbone,
    start: Tensor,
    init_seed: int,
    report: Callable[[int, int], None] | None,
    path: Path,
) -> Tensor:
    """Take the steps, from the state at `path` on where an interrupted run has left one."""
    generator = torch.Generator().manual_seed(init_seed)
    prompt, size = start.clone(), backbone.image_size
    optimizer = torch.optim.AdamW([prompt], lr=NEUTRAL_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    spread = _unprompted(backbone, noise_images(256, size, generator)).std(0)
    first = _resume(path, prompt, optimizer, generator)
    for step in range(first, NEUTRAL_STEPS):
        warm = min(1.0, (step + 1) / 10)
        cosine = 0.5 * (1 + math.cos(math.pi * step / NEUTRAL_STEPS))
        optimizer.param_groups[0]["lr"] = NEUTRAL_RATE * warm * cosine
        prompt.grad = _slope(backbone, noise_images(NEUTRAL_BATCH, size, generator), prompt, spread)
        optimizer.step()
        if report:
            report(step + 1, NEUTRAL_STEPS)
        if (step + 1) % STATE_STEPS == 0:
            _keep(path, step + 1, prompt, optimizer, generator)
    return prompt


def _keep(
    path: Path, step: int, prompt: Tensor, optimizer: torch.optim.AdamW, generator: torch.Generator
) -> None:
    state = {"step": step, "prompt": prompt, "optimizer": optimizer.state_dict()}
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(path, {**state, "generator": generator.get_state()})


def _resume(
    path: Path, prompt: Tensor, optimizer: torch.optim.AdamW, generator: torch.Generator
) -> int:
    """Take over a state, whose name says what it is of; return the steps that it has taken."""
    state = load_state(path)
    if state is None:
        return 0
    prompt.copy_(state["prompt"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return int(state["step"])


def _slope(backbone: Backbone, images: Tensor, prompt: Tensor, spread: Tensor) -> Tensor:
    """Gradient of the mean squared distance of prompted and unprompted features."""
    wanted = _unprompted(backbone, images)
    batch = Linearized(backbone, lambda part: images[part], len(images), prompt)
    return batch.pull(2 * (batch.features - wanted) / spread.square() / wanted.numel())


def _unprompted(backbone: Backbone, images: Tensor) -> Tensor:
    def features(model: VisionTransformer, part: slice) -> Tensor:
        with torch.inference_mode():
            x = images[part].to(next(model.parameters()))
            return features_prefix(model, x, None).float().cpu()

    return torch.cat(in_parts(backbone, len(images), features))


def _away_from_queries(block: Any, x: Tensor) -> Tensor:
    """Return the unit direction `[D]` whose key scores lowest with the heads' mean queries."""
    attention, norm = block.attn, block.norm1
    width = x.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    normed = norm(x).mean((0, 1))
    query = weight[:width] @ normed + (bias[:width] if bias is not None else 0)  # [D], all heads
    per_head = query.reshape(attention.num_heads, -1)
    keys = weight[width : 2 * width].reshape(attention.num_heads, -1, width)
    scale = norm.weight if getattr(norm, "weight", None) is not None else 1.0
    toward = torch.einsum("hd,hdw->hw", per_head, keys) * scale  # [H, D]
    direction = -functional.normalize(toward, dim=1).sum(0)
    return functional.normalize(direction - direction.mean(), dim=0)
