"""Tiny vision transformers with random weights, and bundles for them, for the export's tests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hgprompt_edge.artifacts.bundle import Bundle, Row
from hgprompt_edge.backbones.backbone import Backbone, wrap_backbone
from hgprompt_edge.backbones.forward import features_token, normalize
from hgprompt_edge.maths.head import Head
from hgprompt_edge.prompts.mixing import mix

# timm's own architectures, cut to two blocks and a small input.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 64}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "deit3": ("deit3_small_patch16_224", {"img_size": 64}),
    "clip quick-gelu": ("vit_base_patch16_clip_quickgelu_224", {"img_size": 48}),
    "qk-norm": ("vit_tiny_patch16_224", {"img_size": 64, "qk_norm": True, "qkv_bias": False}),
    "average": ("vit_base_patch16_siglip_gap_224", {"img_size": 48}),
    "average with registers": ("vit_wee_patch16_reg1_gap_256", {"img_size": 64}),
}
# What timm's constructor allows beyond them.
CUSTOM: dict[str, dict[str, Any]] = {
    "tanh gelu": {"act_layer": "gelu_tanh"},
    "average of a class-token model, no fc_norm": {"global_pool": "avg", "fc_norm": False},
    "average, fc_norm": {"global_pool": "avg", "fc_norm": True, "class_token": False},
    "class token, fc_norm": {"fc_norm": True, "final_norm": False},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "no positions, no biases": {"pos_embed": "none", "qkv_bias": False, "proj_bias": False},
    "layer scale, pre-norm, qk-norm": {"init_values": 0.1, "pre_norm": True, "qk_norm": True},
    "image larger than its patches": {"img_size": 29},
    "one block": {"depth": 1},
    # Epsilons that show: with the usual ones nobody notices a wrong one.
    "large epsilon": {"norm_layer": partial(nn.LayerNorm, eps=0.1), "qk_norm": True},
}
# Other features than the model's own.
POOLED = {
    "mean of the patches, registers": ("registers", "avg"),
    "class token and patches": ("tanh gelu", "both"),
    "class token and patches, fc_norm": ("class token, fc_norm", "both"),
}
FAMILIES = [*TIMM, *CUSTOM, *POOLED]
TOKENS = 5


def make_backbone(family: str = "tanh gelu", seed: int = 0) -> Backbone:
    if family in POOLED:
        family, pooling = POOLED[family]
        return make_backbone(family, seed).with_pooling(pooling)
    if family in TIMM:
        name, options = TIMM[family]
        model = timm.create_model(name, num_classes=0, depth=2, **options)
    else:
        base = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        model = VisionTransformer(num_classes=0, **{**base, **CUSTOM[family]})
    return wrap_backbone(family, randomize(model, seed))


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter away from its neutral start: LayerScale, biases and norms, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim >= 2 and name.endswith("weight"):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 * noise)
    return model


def make_bundle(backbone: Backbone, mode: str = "deep", seed: int = 0, classes: int = 4) -> Bundle:
    """Fit nothing: a random prompt and head, and PyTorch's true logits on random images."""
    rng = np.random.default_rng(seed)
    layers = {"deep": backbone.depth, "shallow": 1, "none": 0}[mode]
    prompt = rng.normal(size=(layers, TOKENS, backbone.embed_dim)).astype(np.float32)
    side = backbone.image_size
    bundle = Bundle(
        task="pets",
        classes=tuple(f"class {i}, ä" for i in range(classes)),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        preprocessing=backbone.preprocessing,
        mode="shallow" if mode == "shallow" else "deep",
        pooling=backbone.pooling,
        choice="none" if mode == "none" else "learned",
        prompt=None if mode == "none" else prompt,
        weights=np.array([0.25, 0.75], np.float32),
        learned_weights=np.array([0.25, 0.75], np.float32),
        head=Head(
            rng.normal(size=(classes, backbone.feature_dim)).astype(np.float32),
            rng.normal(size=classes).astype(np.float32),
        ),
        sources=({"name": "a", "sha256": "00", "family": ""}, {"name": "b", "sha256": "11"}),
        table=(Row("none", 0.5, 1.25), Row("learned", 0.75, 0.5, 0.7)),
        objective={"H": 3.5, "lambda": 0.1},
        probe_images=rng.integers(0, 256, (9, side, side, 3), dtype=np.uint8),
        probe_logits=np.zeros((9, classes), np.float32),
        versions={"torch": "2.0"},
    )
    return replace(bundle, probe_logits=token_logits(bundle, backbone, bundle.probe_images))


def token_logits(bundle: Bundle, backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """Logits by the definition, in float64 throughout."""
    features = token_features(bundle, backbone, images)
    return bundle.head.logits(features).astype(np.float32)


def token_features(bundle: Bundle, backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """Features `[n, D]` by the definition, in float64."""
    model = backbone.model.double()
    try:
        with torch.inference_mode():
            x = normalize(torch.tensor(images), bundle.preprocessing).double()
            prompt = None if bundle.prompt is None else torch.tensor(bundle.prompt).double()
            return features_token(model, x, prompt).numpy()
    finally:
        model.float()


def make_mixable(backbone: Backbone, choice: str = "learned", seed: int = 0) -> Bundle:
    """A bundle with two sources and one condition prompt for a device's bank.

    `layered` is the choice `learned` with a weight for each layer.
    """
    rng = np.random.default_rng(seed + 1)
    shape = (backbone.depth, TOKENS, backbone.embed_dim)
    bundle = make_bundle(backbone, "none" if choice == "none" else "deep", seed)
    mixable = replace(
        bundle,
        choice="learned" if choice == "layered" else choice,
        source_tokens=rng.normal(size=(2, *shape)).astype(np.float16),
        conditions=({"name": "dark"},),
        condition_tokens=rng.normal(size=(1, *shape)).astype(np.float16),
    )
    return with_layers(mixable, backbone) if choice == "layered" else mixable


def with_layers(bundle: Bundle, backbone: Backbone, seed: int = 0) -> Bundle:
    """The bundle with a mix of its two sources that differs from layer to layer."""
    first = np.random.default_rng(seed).uniform(size=backbone.depth)
    weights = np.stack([first, 1 - first]).astype(np.float32)
    assert bundle.source_tokens is not None
    prompt = mix(bundle.source_tokens.astype(np.float32), weights)
    layered = replace(bundle, prompt=prompt, weights=weights, learned_weights=weights)
    return replace(layered, probe_logits=token_logits(layered, backbone, bundle.probe_images))
