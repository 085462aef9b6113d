"""The architecture of a checkpoint: from the shapes of its weights and the `config.json` beside it.

Shapes give width, depth, patches and positions; the number of heads, the activation and the norms'
epsilon they do not. Where both say something, they must agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hgprompt_edge.backbones.checkpoints.layouts import DEIT3, TIMM
from hgprompt_edge.backbones.checkpoints.translate import Translated
from hgprompt_edge.errors import FileError, ParameterError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Names of transformers' activations to timm's."""

HEAD_WIDTH = 64
"""Of nearly all published vision transformers."""

CLIP_DEFAULTS = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
"""transformers leaves values that are the default out of the `vision_config` of a whole CLIP."""


class UnknownError(Exception):
    """The file does not say what architecture it is; the text says what is missing."""


@dataclass(frozen=True)
class Architecture:
    """Keyword arguments of timm's `VisionTransformer`.

    Attributes
    ----------
    options
        The arguments.
    facts
        Heads and activation, and who says so.
    stated
        Whether the `config.json` says both.
    """

    options: dict[str, Any]
    facts: tuple[str, ...]
    stated: bool


def vision_config(path: Path, found: Translated, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of transformers' `config.json` about the vision model; empty: not its.

    Raises
    ------
    UserError
        It belongs to a model of another kind than the weights.
    """
    model_type = config.get("model_type")
    if model_type is None:
        return {}
    if model_type not in found.layout.model_types:
        raise ParameterError(
            "checkpoint",
            path,
            f"the weights have the layout of {found.layout.name}, config.json beside them is of a "
            f"'{model_type}'; put the right config.json there, or none",
        )
    inner = config.get("vision_config", config)
    if not isinstance(inner, Mapping):
        raise FileError(path.parent / "config.json", "vision_config must be an object")
    return {**CLIP_DEFAULTS, **inner} if model_type.startswith("clip") else inner


def derive(path: Path, found: Translated, config: Mapping[str, Any]) -> Architecture:
    """Derive the architecture of `found`; `config` is what `vision_config` returned.

    Raises
    ------
    UserError
        Shapes that belong to no plain vision transformer, or that contradict the `config.json`.
    UnknownError
        The architecture cannot be told from weights and `config.json`.
    """
    _check_complete(path, found)
    _check_dimensions(path, found)
    shapes = _shapes(path, found)
    _check_agrees(path, shapes, config)
    heads, heads_from = _heads(path, shapes["hidden_size"], config)
    activation, activation_from = _activation(path, found, config)
    registers = shapes["num_register_tokens"]
    # What an image leaves over beyond its last full patch is cut off by the first convolution.
    options = {
        "img_size": _side(config.get("image_size", shapes["image_size"])),
        "patch_size": shapes["patch_size"],
        "embed_dim": shapes["hidden_size"],
        "depth": found.depth,
        "num_heads": heads,
        "mlp_ratio": _ratio(shapes["hidden_size"], shapes["intermediate_size"]),
        "qkv_bias": shapes["qkv_bias"],
        "qk_norm": "blocks.0.attn.q_norm.weight" in found.weights,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in found.weights else None,
        "reg_tokens": registers,
        "no_embed_class": shapes["no_embed_class"],
        "pre_norm": "norm_pre.weight" in found.weights,
        "global_pool": "token",
        "fc_norm": "fc_norm.weight" in found.weights,
        "act_layer": activation,
        "norm_layer": partial(
            nn.LayerNorm, eps=float(config.get("layer_norm_eps", found.layout.eps))
        ),
    }
    facts = (f"{heads} heads ({heads_from})", f"activation {activation} ({activation_from})")
    return Architecture(options, facts, {"num_attention_heads", "hidden_act"} <= config.keys())


def _check_complete(path: Path, found: Translated) -> None:
    """Refuse to guess what a file may lack by right.

    A weight that is missing must not turn a model into another one.
    """
    weights = found.weights
    if re.search(r"reg(ister|\d)", path.stem) and "reg_token" not in weights:
        raise UnknownError("its name speaks of register tokens and it has none")
    if found.layout is not TIMM:
        return
    norms = [norm for norm in ("norm.weight", "fc_norm.weight") if norm in weights]
    biased = ("blocks.0.attn.qkv.bias", "blocks.0.attn.proj.bias")
    for name in ("cls_token", "pos_embed", *biased):
        if name not in weights:
            raise UnknownError(f"it has no '{name}'")
    if len(norms) != 1:
        raise UnknownError("it has not exactly one of 'norm.weight' and 'fc_norm.weight'")
    if ("norm_pre.weight" in weights) == ("patch_embed.proj.bias" in weights):
        raise UnknownError(
            "it has not exactly one of 'norm_pre.weight' and 'patch_embed.proj.bias'"
        )


def _check_dimensions(path: Path, found: Translated) -> None:
    wanted = {"patch_embed.proj.weight": 4, "cls_token": 3, "pos_embed": 3, "reg_token": 3}
    wanted |= {"blocks.0.mlp.fc1.weight": 2, "blocks.0.attn.qkv.weight": 2}
    for name, dimensions in wanted.items():
        tensor = found.weights.get(name)
        if tensor is not None and (tensor.ndim != dimensions or 0 in tensor.shape):
            raise ParameterError(
                "checkpoint",
                path,
                f"'{found.names[name]}' has shape {list(tensor.shape)}, which is not that of a "
                "vision transformer; the file is damaged",
            )


def _shapes(path: Path, found: Translated) -> dict[str, Any]:
    """Collect what the shapes say, by the names of transformers' `config.json`."""
    weights = found.weights
    width = weights["cls_token"].shape[2]
    patch = weights["patch_embed.proj.weight"].shape[3]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    count = weights["pos_embed"].shape[1]
    fixed = _tokens_with_position(path, found, count, registers)
    return {
        "hidden_size": width,
        "num_hidden_layers": found.depth,
        "intermediate_size": weights["blocks.0.mlp.fc1.weight"].shape[0],
        "patch_size": patch,
        "image_size": _root(count - fixed) * patch,
        "num_channels": weights["patch_embed.proj.weight"].shape[1],
        "num_register_tokens": registers,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "use_swiglu_ffn": False,
        "no_embed_class": fixed == 0,
    }


def _tokens_with_position(path: Path, found: Translated, count: int, registers: int) -> int:
    """Return how many tokens before the patches have one of the `count` positions."""
    if found.layout is TIMM:
        candidates = [1 + registers, 0]
    elif found.layout is DEIT3 or registers:
        candidates = [0]
    else:
        candidates = [1]
    fitting = [fixed for fixed in candidates if _root(count - fixed)]
    if not fitting:
        raise ParameterError(
            "checkpoint",
            path,
            f"'{found.names['pos_embed']}' holds {count} positions, which is no square of patches "
            "and a class token; such models are not supported",
        )
    if len(fitting) > 1:
        raise UnknownError(f"its {count} positions fit images of two sizes")
    if found.layout is TIMM and fitting == [0] and not registers:
        raise UnknownError("its class token has no position and it has no register tokens")
    return fitting[0]


def _check_agrees(path: Path, shapes: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    for key, shape in shapes.items():
        said = _side(config.get(key, shape))
        if key == "image_size" and isinstance(said, int):
            said = said // shapes["patch_size"] * shapes["patch_size"]
        if said != shape:
            raise ParameterError(
                "checkpoint",
                path,
                f"config.json beside it says {key} {config[key]}, its weights say {shape}; put "
                "the config.json of this model there",
            )


def _heads(path: Path, width: int, config: Mapping[str, Any]) -> tuple[int, str]:
    if "num_attention_heads" not in config:
        if width % HEAD_WIDTH:
            raise UnknownError(
                f"its width {width} is no multiple of {HEAD_WIDTH}, the usual head's"
            )
        return width // HEAD_WIDTH, f"assumed: one for each {HEAD_WIDTH} of the width {width}"
    heads = config["num_attention_heads"]
    if not (isinstance(heads, int) and heads >= 1 and width % heads == 0):
        raise ParameterError(
            "checkpoint",
            path,
            f"config.json beside it says num_attention_heads {heads}, which does not divide the "
            f"width {width}; put the config.json of this model there",
        )
    return heads, "config.json"


def _activation(path: Path, found: Translated, config: Mapping[str, Any]) -> tuple[str, str]:
    if "hidden_act" in config:
        name = str(config["hidden_act"])
        if name not in ACTIVATIONS:
            raise ParameterError(
                "checkpoint",
                path,
                f"config.json beside it says hidden_act '{name}', which is not supported; models "
                f"with {', '.join(ACTIVATIONS)} are",
            )
        return ACTIVATIONS[name], "config.json"
    if found.layout.activation is None or "norm_pre.weight" in found.weights:
        raise UnknownError("models with a norm before the blocks differ in their activation")
    return found.layout.activation, f"assumed, as {found.layout.name} models have it"


def _ratio(width: int, hidden: int) -> float:
    """Return the ratio that timm, which cuts off the fraction, makes `hidden` of."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _root(count: int) -> int:
    """Return the side of a square of `count` patches; 0: it is none."""
    side = math.isqrt(max(count, 0))
    return side if side * side == count else 0


def _side(value: Any) -> Any:
    """Return the side where a `config.json` gives a square as `[side, side]`."""
    square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if square else value
