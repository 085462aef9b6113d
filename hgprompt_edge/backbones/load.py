"""Load a frozen backbone: bundled, from the hub, or from a checkpoint of others."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hgprompt_edge import models
from hgprompt_edge.backbones.backbone import Backbone, fingerprint, in_halves, wrap_backbone
from hgprompt_edge.backbones.checkpoints.checkpoint import Checkpoint, read_checkpoint
from hgprompt_edge.backbones.support import check_supported
from hgprompt_edge.errors import ParameterError, argument, first_line
from hgprompt_edge.paths import check_storable

HUB_TIMEOUT_S = 5.0


def load_backbone(
    backbone: str | None = None, *, checkpoint: Path | None = None, image_size: int | None = None
) -> Backbone:
    """Load a frozen backbone; its weights are rounded to float16 and computed with in float32.

    Parameters
    ----------
    backbone
        Name of a bundled backbone (`dinov2-small`, `tiny`), or a timm id, with or without a tag,
        whose weights come from the hub. None: `dinov2-small`, or what the checkpoint says it is.
    checkpoint
        Local file with the weights, in a layout that `read_checkpoint` knows. A timm id in
        `backbone` then names the architecture only. Without, the files say what it is, and
        `backbone` may be any name for it.
    image_size
        Side of the input in pixels, where it is not the backbone's own; position embeddings are
        resampled to it.

    Raises
    ------
    UserError
        Unknown id, an architecture that is not supported, a hub that does not answer, a checkpoint
        that is damaged or does not fit, or `hgprompt-edge-models` is not installed.
    """
    check_storable(backbone or "", argument("backbone"))
    if image_size is not None and image_size < 1:
        raise ParameterError(
            "image_size",
            image_size,
            "must be positive; give a multiple of the backbone's patch size",
        )
    if backbone in models.NAMES or (backbone is None and checkpoint is None):
        return _bundled(backbone or models.DEFAULT, checkpoint, image_size)
    if checkpoint is None:
        return _from_hub(cast("str", backbone), image_size)
    found = read_checkpoint(checkpoint)
    if backbone is None or not _is_timm_id(backbone):
        if backbone is not None and not (found.stated or found.architecture):
            _check_known(backbone)
        return _self_described(backbone or found.name, found, image_size)
    _check_known(backbone)
    model = _create(backbone, image_size)
    found.check_computes_as(model, backbone)
    if found.data_stated:
        pixels: Any = found.data_config
        model.pretrained_cfg = pixels
    return _filled(
        backbone,
        model,
        found.weights,
        checkpoint,
        resample=image_size is not None,
        facts=found.describe(backbone),
    )


def _bundled(name: str, checkpoint: Path | None, image_size: int | None) -> Backbone:
    found = read_checkpoint(models.backbone_file(name))
    if checkpoint is None:
        return replace(_self_described(name, found, image_size), checkpoint=None, facts=())
    own = read_checkpoint(checkpoint)
    return _self_described(name, replace(found, path=own.path, weights=own.weights), image_size)


def _from_hub(spec: str, image_size: int | None) -> Backbone:
    _check_known(spec)
    model = _create(spec, image_size)
    return _filled(spec, model, _pretrained(spec), None, resample=image_size is not None)


def _self_described(name: str, found: Checkpoint, image_size: int | None) -> Backbone:
    """Build the architecture that the files of a checkpoint describe and fill in its weights."""
    _check_size(name, found.patch_size, image_size)
    model = found.build(image_size)
    facts = found.describe(None)
    return _filled(name, model, found.weights, found.path, resample=True, facts=facts)


def _filled(
    name: str,
    model: VisionTransformer,
    weights: Mapping[str, Tensor],
    checkpoint: Path | None,
    *,
    resample: bool,
    facts: tuple[str, ...] = (),
) -> Backbone:
    """Fill weights into an architecture, rounded to float16.

    With `resample` position embeddings are brought to its image size; else they must have it.
    """
    source = checkpoint or Path(name)
    weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
    weights = in_halves(weights, "checkpoint", source)
    _load_weights(model, weights, source, resample=resample)
    backbone = wrap_backbone(name, model, sha256=fingerprint(weights), checkpoint=checkpoint)
    return replace(backbone, facts=facts)


def _is_timm_id(spec: str) -> bool:
    return bool(timm.is_model(spec.partition(".")[0]))


def _check_known(spec: str) -> None:
    architecture, _, tag = spec.partition(".")
    if _is_timm_id(spec):
        try:
            timm.models.get_pretrained_cfg(spec)
            return
        except RuntimeError:  # the architecture exists, the tag does not
            names = [name for name in timm.list_pretrained() if name.startswith(f"{architecture}.")]
    else:
        names = timm.list_pretrained() if tag else timm.list_models()
    near = difflib.get_close_matches(spec, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
    bundled = ", ".join(models.NAMES)
    raise ParameterError(
        "backbone", spec, f"neither a bundled backbone ({bundled}) nor a timm id; {hint}"
    )


def _create(spec: str, image_size: int | None, **options: Any) -> VisionTransformer:
    # The weights come later, so none are drawn; timm draws some for published ones: keep the
    # caller's random state.
    if image_size is not None:
        options["img_size"] = image_size
    device = "cpu" if options.get("pretrained") else "meta"
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            model = timm.create_model(spec, **options)
    except TypeError as error:  # not every architecture takes `img_size`
        raise ParameterError("backbone", spec, "cannot be built at another image size") from error
    check_supported(model, spec)
    vit = cast("VisionTransformer", model)
    # Built with its head until here, so that timm compares every name of published weights.
    vit.reset_classifier(0)
    _check_size(spec, int(vit.patch_embed.patch_size[0]), image_size)
    return vit


def _check_size(spec: str, patch: int, image_size: int | None) -> None:
    if image_size is not None and (image_size < patch or image_size % patch):
        raise ParameterError(
            "image_size",
            image_size,
            f"{spec} cuts images into patches of {patch} pixels; give a multiple of {patch}",
        )


def _pretrained(spec: str) -> dict[str, Tensor]:
    """Return the published weights of `spec` as they were trained, from the hub or its cache."""
    config = timm.models.get_pretrained_cfg(spec)
    if config is None or not config.has_weights:
        raise ParameterError(
            "backbone",
            spec,
            "no weights are published for it; give a local safetensors file with `checkpoint`",
        )
    options: dict[str, Any] = {"pretrained": True}
    # The architecture has been built before, so whatever fails from here on is the download.
    try:
        if config.hf_hub_id:
            cached = _cached_or_reachable(config.hf_hub_id, config.hf_hub_filename)
            if cached is not None:
                options["pretrained_cfg_overlay"] = {"file": str(cached)}
        return dict(_create(spec, None, **options).state_dict())
    except Exception as error:
        raise ParameterError(
            "backbone",
            spec,
            f"its weights could not be downloaded from the hub ({first_line(error)}); "
            f"{models.DEFAULT} is bundled, or download the safetensors file elsewhere and give it "
            "with `checkpoint`",
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


def _load_weights(
    model: VisionTransformer, weights: Mapping[str, Tensor], path: Path, *, resample: bool
) -> None:
    """Put `weights` into `model`, as float32; every name and shape must fit."""
    weights = {key: value.float() for key, value in weights.items()}
    if resample and "pos_embed" in weights:
        weights["pos_embed"] = _resample_positions(model, weights["pos_embed"])
    expected = model.state_dict()
    for kind, keys in (
        ("misses", sorted(expected.keys() - weights.keys())),
        ("has an unexpected", sorted(weights.keys() - expected.keys())),
    ):
        if keys:
            raise ParameterError(
                "checkpoint",
                path,
                f"{kind} '{keys[0]}'{_others(keys)}, so it does not belong to this architecture; "
                "name the right one with `backbone`",
            )
    for key in sorted(expected):
        found, wanted = list(weights[key].shape), list(expected[key].shape)
        if found != wanted:
            raise ParameterError(
                "checkpoint",
                path,
                f"'{key}' has shape {found}, this architecture takes {wanted}; name the right one "
                "with `backbone`",
            )
    model.load_state_dict(weights, assign=True)


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
