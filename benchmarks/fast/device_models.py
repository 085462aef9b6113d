"""The models of `benchmarks/device.py`: `tiny`, and a ViT-S/16 at 224 with random weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fast.export_models import make_bundle
from hgprompt_edge.maths.head import Head

CLASSES, IMAGES = 4, 12
MODELS = ("tiny", "vit_small_patch16_224")


@dataclass(frozen=True)
class Site:
    """A folder with an exported model and images that a device has seen."""

    model: Path
    seen: Path
    image: Path


def make_site(name: str, folder: Path) -> Site:
    """Export a model with its bank and its gradient, and save images into class folders."""
    import torch

    from hgprompt_edge import export_onnx, load_backbone, read_bank
    from hgprompt_edge.backbones.backbone import wrap_backbone
    from hgprompt_edge.export.verify import reference_logits

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name == "tiny":
        backbone = load_backbone(name)
        tokens = read_bank(name).tokens
    else:
        import timm

        backbone = wrap_backbone(name, timm.create_model(name, num_classes=0))
        shape = (8, backbone.depth, 50, backbone.embed_dim)
        tokens = rng.normal(size=shape).astype(np.float32)
    side = backbone.image_size
    probe = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    first = np.eye(len(tokens), dtype=np.float32)[0]
    bundle = replace(
        make_bundle(backbone, "deep"),
        task=name,
        classes=tuple(f"class-{i}" for i in range(CLASSES)),
        choice="best_source",
        prompt=tokens[0],
        weights=first,
        learned_weights=first,
        head=Head(
            rng.normal(size=(CLASSES, backbone.embed_dim)).astype(np.float32),
            np.zeros(CLASSES, np.float32),
        ),
        sources=tuple({"name": f"source-{i}", "sha256": ""} for i in range(len(tokens))),
        probe_images=probe,
        source_tokens=tokens.astype(np.float16),
    )
    bundle = replace(bundle, probe_logits=reference_logits(bundle, backbone, probe))
    folder.mkdir()
    export_onnx(bundle, backbone, folder / "folded.onnx")
    export_onnx(bundle, backbone, folder / "m.onnx", runtime_weights=True, adapt=True)
    for index in range(IMAGES):
        place = folder / "seen" / f"class-{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return Site(folder / "m.onnx", folder / "seen", place / f"{index}.png")
