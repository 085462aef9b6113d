"""Pretrain a small ViT from scratch on any folder of class folders, on CPU cores.

The recipe is that of `tiny` (see its model card in models/), with Muon, which
torch has since 2.9, from the start: random resized crops, flips, colour jitter, label smoothing,
batches in micro-batches, part of the patches dropped at first, an average of the weights, bfloat16
where this CPU is faster in it. An interrupted run goes on where it stopped. The result is a
safetensors file that every command takes:

    python examples/pretrain_backbone.py ~/tiny-imagenet/train --out my-vit.safetensors
    hgedge prompt train --task cifar100 --checkpoint my-vit.safetensors
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from hgprompt_edge.backbones.fastest import product_seconds
from hgprompt_edge.files import atomic_path, write_bytes

PATCH_SHARES = ((0.5, 0.4), (0.8, 0.65), (1.0, 1.0))
"""Until this share of the training, this share of the patches is kept."""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path, help="folder of class folders")
    parser.add_argument("--out", type=Path, default=Path("backbone.safetensors"))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--embed-dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--num-heads", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not hasattr(torch.optim, "Muon"):
        parser.error(f"torch {torch.__version__} has no Muon; run `pip install 'torch>=2.9'`")
    return options


def make_loader(options: argparse.Namespace) -> tuple[DataLoader[tuple[Tensor, Tensor]], int]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(options.image_size, scale=(0.25, 1), ratio=(3 / 4, 4 / 3)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = datasets.ImageFolder(options.images, transform)
    loader = DataLoader(
        images,
        batch_size=min(options.batch_size, len(images)),
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        generator=torch.Generator().manual_seed(options.seed),
    )
    return loader, len(images.classes)


def make_optimizers(model: VisionTransformer) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=8e-4, betas=(0.9, 0.98), weight_decay=0.0)]


def logits_on_some_patches(model: VisionTransformer, images: Tensor, kept: float) -> Tensor:
    """Forward pass on a random `kept` share of the patches (the class token always stays)."""
    x = model._pos_embed(model.patch_embed(images))
    count = x.shape[1] - 1
    if kept < 1:
        order = torch.rand(len(x), count).argsort(dim=1)[:, : max(1, round(kept * count))]
        patches = x[:, 1:].gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1)
    for block in model.blocks:
        x = block(x)
    return model.forward_head(model.norm(x))


def train_step(
    model: VisionTransformer,
    images: Tensor,
    labels: Tensor,
    kept: float,
    micro_batch: int,
    precision: torch.dtype = torch.float32,
) -> float:
    """Accumulate gradients over micro-batches, which fit the cache; return the mean loss."""
    total = 0.0
    for part, target in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits = logits_on_some_patches(model, part, kept).float()
        loss = functional.cross_entropy(logits, target, label_smoothing=0.1, reduction="sum")
        (loss / len(images)).backward()
        total += float(loss.detach())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return total / len(images)


def save_backbone(model: VisionTransformer, options: argparse.Namespace) -> None:
    """Float16 weights without the head, with the architecture in the metadata."""
    weights = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }
    sizes = ("patch_size", "embed_dim", "depth", "num_heads")
    architecture = {"img_size": options.image_size, **{k: getattr(options, k) for k in sizes}}
    data_config = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "crop_mode": "center",
    }
    metadata = {
        "format": "hgprompt.backbone/1",
        "architecture": json.dumps(architecture),
        "data_config": json.dumps(data_config),
    }
    write_bytes(options.out, save(weights, metadata=metadata))


class State:
    """What an interrupted run goes on from: one file beside the result, gone at the end."""

    def __init__(self, options: argparse.Namespace, parts: dict[str, Any]) -> None:
        self.path = training_state(options.out)
        self.options = {key: str(value) for key, value in vars(options).items()}
        self.parts = parts

    def save(self, step: int) -> None:
        """Write the state of all parts after `step` steps."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_path(self.path) as temporary:
            torch.save({"options": self.options, "step": step, **states}, temporary)

    def load(self) -> int:
        """Return the steps that a run with the same options has done, its state in the parts."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        if state["options"] != self.options:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])


def training_state(out: Path) -> Path:
    """File that is there as long as the training of `out` is not at its end."""
    return out.with_name(f".{out.name}.training")


def fastest_precision() -> str:
    """Return `bfloat16` where this CPU multiplies matrices clearly faster in it, else `float32`.

    CPUs without bfloat16 units emulate it, at a loss, and the flags alone do not tell.
    """
    faster = product_seconds(torch.bfloat16) < 0.67 * product_seconds(torch.float32)
    return "bfloat16" if faster else "float32"


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002  (torchvision's workers)
    precision = getattr(torch, fastest_precision())
    loader, classes = make_loader(options)
    model = VisionTransformer(
        img_size=options.image_size,
        patch_size=options.patch_size,
        embed_dim=options.embed_dim,
        depth=options.depth,
        num_heads=options.num_heads,
        num_classes=classes,
    )
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps = max(1, round(options.epochs * len(loader)))
    state = State(
        options,
        {
            "model": model,
            "average": average,
            **{type(optimizer).__name__: optimizer for optimizer in optimizers},
        },
    )
    step = done = state.load()
    if step:
        torch.manual_seed(options.seed + step)
        print(f"goes on after step {step}", flush=True)
    began = time.perf_counter()
    while step < steps:
        for images, labels in loader:
            progress = step / steps
            kept = next(share for until, share in PATCH_SHARES if progress < until)
            factor = (
                min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * progress))
            )
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
            loss = train_step(model, images, labels, kept, options.micro_batch, precision)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            decay = min(0.999, (step + 1) / (step + 10))
            with torch.no_grad():
                for old, new in zip(average.parameters(), model.parameters(), strict=True):
                    old.lerp_(new, 1 - decay)
            if step % options.save_every == 0 or step == steps:
                left = (time.perf_counter() - began) / (step - done) * (steps - step)
                print(f"step {step}/{steps}: loss {loss:.3f}, {left / 60:.0f} min left", flush=True)
                state.save(step)
                save_backbone(average, options)
            if step == steps:
                break
    state.path.unlink(missing_ok=True)
    print(options.out)


if __name__ == "__main__":
    main()
