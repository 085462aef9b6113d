"""A frozen backbone: its weights, its fingerprint, how images become its input and its features.

Covered is any plain timm `VisionTransformer`, recognised by its structure and not by its name: CLS
or average pooling, LayerScale, qk-norm, register tokens, a norm before the blocks, any GELU.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.data.config import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.artifacts.bundle import POOLINGS
from hgprompt_edge.backbones.compute import Compute
from hgprompt_edge.backbones.support import check_supported
from hgprompt_edge.errors import ParameterError, UserError
from hgprompt_edge.files import sha256_arrays
from hgprompt_edge.images.preprocess import RESAMPLING, Preprocessing
from hgprompt_edge.prompts.prompt import Normalization

POSITIONS = "timm.resample_abs_pos_embed, bicubic, antialiased, on the CPU"
"""How position embeddings come to another image size. Part of every fingerprint: other libraries
resize otherwise, and a prompt trained on their features does not fit ours."""


@dataclass(frozen=True)
class Backbone:
    """A frozen vision transformer without a head.

    Attributes
    ----------
    name
        timm id, name of a bundled backbone, or that of a checkpoint that says what it is.
    model
        timm `VisionTransformer`, float32, in evaluation mode, no parameter takes a gradient.
    sha256
        Fingerprint of the weights, see `fingerprint`.
    preprocessing
        How an image becomes its input.
    poolings
        What its features may be, of `POOLINGS`: its own, and all where that is the class token.
    checkpoint
        File that the weights came from; None: bundled, or the hub.
    facts
        What was taken from that file and what was assumed, to be printed.
    computed_by
        Where and how images run through it; None: on the CPU, in the model's own precision.
    """

    name: str
    model: VisionTransformer
    sha256: str
    preprocessing: Preprocessing
    poolings: tuple[str, ...]
    checkpoint: Path | None = None
    facts: tuple[str, ...] = ()
    computed_by: Compute | None = None

    @property
    def compute(self) -> Compute:
        """Where and how images run through it."""
        if self.computed_by is not None:
            return self.computed_by
        precision = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return Compute(precision=precision, threads=torch.get_num_threads())

    @property
    def depth(self) -> int:
        """Number of blocks, `L` of a deep prompt."""
        return len(self.model.blocks)

    @property
    def embed_dim(self) -> int:
        """Width of a token, `D`."""
        return int(self.model.embed_dim)

    @property
    def pooling(self) -> str:
        """What its features are, of `poolings`."""
        return str(self.model.global_pool)

    @property
    def feature_dim(self) -> int:
        """Width of the features: `D`, or `2 D` for `both`."""
        return self.embed_dim * (2 if self.pooling == "both" else 1)

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        block: Any = self.model.blocks[0]
        return int(block.attn.num_heads)

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return int(self.model.patch_embed.img_size[0])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation that its input is normalised by."""
        return Normalization(self.preprocessing.mean, self.preprocessing.std)

    def normalized(self, normalization: Normalization | None) -> Backbone:
        """Return the same backbone for input that is normalised otherwise; None: as it is."""
        if normalization is None:
            return self
        mean, std = normalization
        return replace(self, preprocessing=replace(self.preprocessing, mean=mean, std=std))

    def with_rule(self, name: str | None) -> Backbone:
        """Return the same backbone for pictures made square in another way; None: as it is.

        `name` is a key of `preprocess.RULES`.
        """
        if name is None:
            return self
        return replace(self, preprocessing=self.preprocessing.with_rule(name))

    def with_pooling(self, name: str) -> Backbone:
        """Return the same backbone with other features, one of `poolings`; its fingerprint stays.

        Raises
        ------
        UserError
            It has no such features.
        """
        if name == self.pooling:
            return self
        if name not in self.poolings:
            raise UserError(
                f"the backbone {self.name} cannot be pooled by '{name}', only by "
                f"{', '.join(self.poolings)}; give the backbone that the bundle was fitted on"
            )
        model = copy.copy(self.model)  # the weights are shared
        model.global_pool = name  # type: ignore[assignment]  # timm knows no `both`
        return replace(self, model=model)

    def in_precision(self, name: str) -> Backbone:
        """Return the same backbone computing in `float32` or `bfloat16`; its fingerprint stays."""
        if self.compute.precision == name:
            return self
        return self.with_compute(replace(self.compute, precision=name))

    def with_compute(self, compute: Compute) -> Backbone:
        """Return the same backbone for images to run through as `compute` says."""
        return replace(self, computed_by=compute)


def wrap_backbone(
    name: str, model: nn.Module, *, sha256: str | None = None, checkpoint: Path | None = None
) -> Backbone:
    """Check `model`, freeze it and take off its head, in place.

    Parameters
    ----------
    sha256
        Fingerprint of the weights before anything was resampled; None: of the model's, which are
        then rounded to float16.

    Raises
    ------
    UserError
        The model is not a plain vision transformer, its preprocessing cannot be reproduced, or
        float16 does not hold its weights.
    """
    check_supported(model, name)
    vit = cast("VisionTransformer", model)
    vit.reset_classifier(0)
    vit.float().eval().requires_grad_(False)
    if sha256 is None:
        weights = in_halves(vit.state_dict(), "backbone", name)
        vit.load_state_dict(weights)
        sha256 = fingerprint(weights)
    own = str(vit.global_pool)
    poolings = POOLINGS if own == "token" else (own,)
    return Backbone(name, vit, sha256, _preprocessing(name, vit), poolings, checkpoint)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hexadecimal sha256 over names, shapes and float16 values of weights, and `POSITIONS`.

    Over weights rounded to float16, so that a float32 file of the hub and a float16 file with the
    same numbers are one backbone; over position embeddings as they were trained, so that it does
    not depend on the image size.
    """
    halves = {key: value.detach().cpu().half().numpy() for key, value in weights.items()}
    return hashlib.sha256(f"{POSITIONS}|{sha256_arrays(halves)}".encode()).hexdigest()


def in_halves(weights: Mapping[str, Tensor], parameter: str, given: object) -> dict[str, Tensor]:
    """Weights in float16, which are computed with: those that share a fingerprint are equal.

    `parameter` and what was `given` for it are where they come from, for messages.
    """
    halves = {key: value.detach().cpu().half() for key, value in weights.items()}
    for key, value in halves.items():
        if value.dtype != weights[key].dtype and not torch.isfinite(value).all():
            raise ParameterError(
                parameter, given, f"'{key}' holds values beyond float16 (65504); use other weights"
            )
    return halves


def _preprocessing(name: str, model: VisionTransformer) -> Preprocessing:
    # The model's own size, since it may have been built for another one than its weights.
    size = int(model.patch_embed.img_size[0])
    resolve: Any = resolve_model_data_config
    config = resolve(model, args={"input_size": (3, size, size)})
    crop_mode, interpolation = str(config["crop_mode"]), str(config["interpolation"])
    resize = math.floor(size / float(config["crop_pct"]))
    known = crop_mode == "center" or (crop_mode == "squash" and resize == size)
    if not known or interpolation not in RESAMPLING:
        raise ParameterError(
            "backbone",
            name,
            f"its preprocessing (crop mode '{crop_mode}' of {resize} pixels, interpolation "
            f"'{interpolation}') is not supported; choose another",
        )
    return Preprocessing(
        image_size=size,
        resize=resize,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )


def _triple(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
