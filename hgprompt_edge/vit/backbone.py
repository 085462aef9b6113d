"""Frozen backbones: load one, refuse what the prompted forward pass does not cover, fingerprint it.

Covered is any plain timm `VisionTransformer`, recognised by its structure and not by its name: CLS
or average pooling, LayerScale, qk-norm, register tokens, a norm before the blocks, any GELU.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import safetensors
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from timm.data.config import resolve_model_data_config
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.errors import UserError
from hgprompt_edge.files import sha256_arrays
from hgprompt_edge.preprocess import RESAMPLING, Preprocessing
from hgprompt_edge.prompts import Normalization
from hgprompt_edge.vit.support import check_supported

__all__ = ["BUNDLED", "Backbone", "check_supported", "load_backbone", "wrap_backbone"]

BUNDLED = "bundled"
"""Name of the backbone that comes with the package."""

HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Backbone:
    """A frozen vision transformer without a head.

    Attributes
    ----------
    name
        timm id, or `bundled`.
    model
        timm `VisionTransformer`, float32, in evaluation mode, no parameter takes a gradient.
    sha256
        Fingerprint over the sorted names, shapes and float32 bytes of the weights.
    preprocessing
        How an image becomes its input.
    """

    name: str
    model: VisionTransformer
    sha256: str
    preprocessing: Preprocessing

    @property
    def depth(self) -> int:
        """Number of blocks, `L` of a deep prompt."""
        return len(self.model.blocks)

    @property
    def embed_dim(self) -> int:
        """Width of a token, `D`."""
        return int(self.model.embed_dim)

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

    def in_precision(self, name: str) -> Backbone:
        """Return the same backbone computing in `float32` or `bfloat16`; its fingerprint stays."""
        dtype: torch.dtype = getattr(torch, name)
        if next(self.model.parameters()).dtype == dtype:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(dtype))


def load_backbone(
    spec: str = BUNDLED, *, checkpoint: Path | None = None, image_size: int | None = None
) -> Backbone:
    """Load a frozen backbone.

    Parameters
    ----------
    spec
        `bundled`, or a timm id (with or without a tag), whose weights come from the hub.
    checkpoint
        Local safetensors file with the weights; `spec` then names the architecture alone. Weights
        under `head.` are ignored. With `bundled` the file may hold an architecture of its own, as
        those of `examples/pretrain_backbone.py` do.
    image_size
        Side of the input, where it is not the architecture's own; position embeddings are
        resampled to it.

    Raises
    ------
    UserError
        Unknown id, an architecture that is not supported, a hub that does not answer, or a
        checkpoint that is damaged or does not fit.
    """
    if spec == BUNDLED:
        path = Path(str(package_files("hgprompt_edge.bundled") / "backbone.safetensors"))
        weights, metadata = _read_weights(path)
        if checkpoint is not None:
            path, (weights, own) = checkpoint, _read_weights(checkpoint)
            # examples/pretrain_backbone.py writes the architecture beside the weights
            metadata = own if {"architecture", "data_config"} <= own.keys() else metadata
        model = _bundled_architecture(metadata, image_size)
        _load_weights(model, weights, path, resample=image_size is not None)
        return wrap_backbone(spec, model)
    _check_known(spec)
    model = _create(spec, image_size)
    if checkpoint is None:
        model = _pretrained(spec, image_size)
    else:
        weights, _ = _read_weights(checkpoint)
        _load_weights(model, weights, checkpoint, resample=image_size is not None)
    return wrap_backbone(spec, model)


def wrap_backbone(name: str, model: nn.Module) -> Backbone:
    """Check `model`, then freeze it and take off its head, in place.

    Raises
    ------
    UserError
        The model is not a plain vision transformer, or its preprocessing cannot be reproduced.
    """
    check_supported(model, name)
    vit = cast("VisionTransformer", model)
    vit.reset_classifier(0)
    vit.float().eval().requires_grad_(False)
    weights = {key: value.detach().cpu().numpy() for key, value in vit.state_dict().items()}
    return Backbone(name, vit, sha256_arrays(weights), _preprocessing(name, vit))


def _preprocessing(name: str, model: VisionTransformer) -> Preprocessing:
    # The model's own size, since it may have been built for another one than its weights.
    size = int(model.patch_embed.img_size[0])
    resolve: Any = resolve_model_data_config
    config = resolve(model, args={"input_size": (3, size, size)})
    crop_mode, interpolation = str(config["crop_mode"]), str(config["interpolation"])
    resize = math.floor(size / float(config["crop_pct"]))
    known = crop_mode == "center" or (crop_mode == "squash" and resize == size)
    if not known or interpolation not in RESAMPLING:
        raise UserError(
            f"--backbone {name}: its preprocessing (crop mode '{crop_mode}' of "
            f"{resize} pixels, interpolation '{interpolation}') is not supported; choose another"
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


def _check_known(spec: str) -> None:
    architecture, _, tag = spec.partition(".")
    if timm.is_model(architecture):
        try:
            timm.models.get_pretrained_cfg(spec)
            return
        except RuntimeError:  # the architecture exists, the tag does not
            names = [name for name in timm.list_pretrained() if name.startswith(f"{architecture}.")]
    else:
        names = timm.list_pretrained() if tag else timm.list_models()
    near = difflib.get_close_matches(spec, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
    raise UserError(f"--backbone {spec}: neither `{BUNDLED}` nor a timm id; {hint}")


def _create(spec: str, image_size: int | None, **options: Any) -> VisionTransformer:
    # Random weights are drawn and then replaced: keep the caller's random state.
    if image_size is not None:
        options["img_size"] = image_size
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(spec, **options)
    except TypeError as error:  # not every architecture takes `img_size`
        raise UserError(f"--backbone {spec}: cannot be built at another image size") from error
    check_supported(model, spec)
    vit = cast("VisionTransformer", model)
    # Built with its head until here, so that timm compares every name of published weights.
    vit.reset_classifier(0)
    _check_size(spec, vit, image_size)
    return vit


def _bundled_architecture(metadata: Mapping[str, str], image_size: int | None) -> VisionTransformer:
    options = json.loads(metadata["architecture"])
    if image_size is not None:
        options["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(num_classes=0, **options)
    model.pretrained_cfg = json.loads(metadata["data_config"])
    _check_size(BUNDLED, model, image_size)
    return model


def _check_size(spec: str, model: VisionTransformer, image_size: int | None) -> None:
    patch = int(model.patch_embed.patch_size[0])
    if image_size is not None and (image_size < patch or image_size % patch):
        raise UserError(
            f"--image-size {image_size}: {spec} cuts images into patches of {patch} pixels; "
            f"give a multiple of {patch}"
        )


def _pretrained(spec: str, image_size: int | None) -> VisionTransformer:
    """Build `spec` with its published weights, from the hub's cache where they are there."""
    config = timm.models.get_pretrained_cfg(spec)
    if config is None or not config.has_weights:
        raise UserError(
            f"--backbone {spec}: no weights are published for it; "
            "give a local safetensors file with --checkpoint"
        )
    options: dict[str, Any] = {"pretrained": True}
    # The architecture has been built before, so whatever fails from here on is the download.
    try:
        if config.hf_hub_id:
            cached = _cached_or_reachable(config.hf_hub_id, config.hf_hub_filename)
            if cached is not None:
                options["pretrained_cfg_overlay"] = {"file": str(cached)}
        return _create(spec, image_size, **options)
    except Exception as error:
        raise UserError(
            f"--backbone {spec}: its weights could not be downloaded from the hub "
            f"({_brief(error)}); download the safetensors file elsewhere and give it "
            "with --checkpoint"
        ) from error


def _cached_or_reachable(repository: str, filename: str | None) -> Path | None:
    # timm's own download tries again for most of a minute where there is no network, even for a
    # file that is in the cache. One question without a second try settles both.
    filename = filename or "model.safetensors"
    cached = huggingface_hub.try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    url = huggingface_hub.hf_hub_url(repository, filename)
    with suppress(EntryNotFoundError):  # the hub answers; timm knows other file names
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    return None


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"--checkpoint {path}: cannot be read as a safetensors file ({_brief(error)})"
        ) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"--checkpoint {path}: '{name}' holds NaN or inf; use another file")
    return weights, metadata


def _load_weights(
    model: VisionTransformer, weights: Mapping[str, Tensor], path: Path, *, resample: bool
) -> None:
    """Copy `weights` into `model`; every name and shape but the head's must fit."""
    weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    if resample and "pos_embed" in weights:
        weights["pos_embed"] = _resample_positions(model, weights["pos_embed"])
    expected = model.state_dict()
    for kind, keys in (
        ("misses", sorted(expected.keys() - weights.keys())),
        ("has an unexpected", sorted(weights.keys() - expected.keys())),
    ):
        if keys:
            raise UserError(
                f"--checkpoint {path}: {kind} '{keys[0]}'{_others(keys)}, so it does not belong "
                "to this architecture; name the right one with --backbone"
            )
    for key in sorted(expected):
        found, wanted = list(weights[key].shape), list(expected[key].shape)
        if found != wanted:
            raise UserError(
                f"--checkpoint {path}: '{key}' has shape {found}, this architecture takes "
                f"{wanted}; name the right one with --backbone"
            )
    model.load_state_dict(weights)


def _resample_positions(model: VisionTransformer, positions: Tensor) -> Tensor:
    """Bring position embeddings `[1, P, D]` of a square grid to the model's grid."""
    fixed = 0 if model.no_embed_class else int(model.num_prefix_tokens)
    side = math.isqrt(max(0, positions.shape[1] - fixed)) if positions.ndim == 3 else 0
    grid = list(model.patch_embed.grid_size)
    if side < 1 or side * side + fixed != positions.shape[1] or grid == [side, side]:
        return positions
    resampled = resample_abs_pos_embed(
        positions, new_size=grid, old_size=[side, side], num_prefix_tokens=fixed
    )
    return cast("Tensor", resampled)


def _others(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120].rstrip(". ") if lines else type(error).__name__
