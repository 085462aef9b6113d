"""Which models the prompted forward pass covers, and a sentence for each that it does not."""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers import GELU, GELUTanh, QuickGELU
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import (  # type: ignore[attr-defined]
    Attention,
    Block,
    LayerScale,
    VisionTransformer,
)
from torch import nn

from hgprompt_edge.errors import ParameterError, UserError

ACTIVATIONS = (nn.GELU, GELU, GELUTanh, QuickGELU)
FORWARD_METHODS = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")


def check_supported(model: nn.Module, name: str = "") -> None:
    """Refuse a model that is not a plain timm `VisionTransformer`.

    The check looks at the modules that the model is built from; `name` is only for the message.

    Raises
    ------
    UserError
        One sentence that says what in the model is in the way.
    """
    for reason in _reasons(model):
        problem = (
            f"{type(model).__name__} {reason}; choose a plain timm VisionTransformer, such as "
            "vit_small_patch16_224"
        )
        raise ParameterError("backbone", name, problem) if name else UserError(problem)


def _reasons(model: nn.Module) -> Iterator[str]:
    if not isinstance(model, VisionTransformer):
        yield _foreign(model)
        return
    if hasattr(model, "dist_token"):
        yield "has more than one class token (a distillation token)"
    yield from _outside_blocks(model)
    for block in model.blocks:
        yield from _in_block(block)
    for name in FORWARD_METHODS:
        if getattr(type(model), name) is not getattr(VisionTransformer, name):
            yield f"computes its features in its own way (it redefines `{name}`)"


def _foreign(model: nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    names |= {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    if names & {"rope", "rope_mixed", "freqs"}:
        return "uses rotary position embeddings, which give a prompt token no place"
    if names & {"relative_position_bias_table", "rel_pos", "shared_rel_pos", "cpb_mlp"}:
        return "uses relative position biases or windows, which do not work with prompt tokens"
    return "is not a vision transformer of timm's class VisionTransformer"


def _outside_blocks(model: VisionTransformer) -> Iterator[str]:
    embed = model.patch_embed
    if type(embed) is not PatchEmbed or not isinstance(embed.norm, nn.Identity):
        yield f"does not cut images into patches by one convolution ({type(embed).__name__})"
        return
    if embed.proj.in_channels != 3:
        yield f"takes {embed.proj.in_channels} channels, not the 3 of an RGB image"
    if model.dynamic_img_size or embed.dynamic_img_pad:
        yield "takes images of any size (build it with `dynamic_img_size=False`)"
    if len(set(embed.img_size)) > 1 or len(set(embed.patch_size)) > 1:
        yield "has an input or patches that are not square"
    if model.attn_pool is not None:
        yield f"pools its tokens by attention (global_pool '{model.global_pool}')"
    elif model.global_pool not in ("token", "avg"):
        yield f"pools its tokens by '{model.global_pool}', neither the class token nor an average"
    elif model.global_pool == "avg" and model.pool_include_prefix:
        yield "averages its class token together with the patches"
    for norm in (model.norm_pre, model.norm, model.fc_norm):
        if not isinstance(norm, nn.LayerNorm | nn.Identity):
            yield f"normalises by {type(norm).__name__}, not LayerNorm"
    if len(model.blocks) == 0:
        yield "has no blocks"


def _in_block(block: nn.Module) -> Iterator[str]:
    if type(block) is not Block:
        yield (
            f"is built from {type(block).__name__}, not from blocks that normalise, attend, "
            "normalise and apply an MLP, one after the other"
        )
        return
    attn, mlp = block.attn, block.mlp
    gated = getattr(attn, "gate", None) is not None
    normed = not isinstance(getattr(attn, "norm", None), nn.Identity | None)
    if type(attn) is not Attention or gated or normed:
        kind = "gated " if gated else "normalised " if normed else ""
        yield f"does not use plain softmax attention ({kind}{type(attn).__name__})"
        return
    if type(mlp) is not Mlp or not isinstance(getattr(mlp, "norm", None), nn.Identity | None):
        yield f"has an MLP of another kind than two linear layers ({type(mlp).__name__})"
    elif not isinstance(mlp.act, ACTIVATIONS):
        yield f"uses the activation {type(mlp.act).__name__}, not a GELU"
    for norm in (block.norm1, block.norm2):
        if not isinstance(norm, nn.LayerNorm):
            yield f"normalises by {type(norm).__name__}, not LayerNorm"
    for norm in (attn.q_norm, attn.k_norm):
        if not isinstance(norm, nn.LayerNorm | nn.Identity):
            yield f"normalises queries and keys by {type(norm).__name__}, not LayerNorm"
    for scale in (block.ls1, block.ls2):
        if not isinstance(scale, LayerScale | nn.Identity):
            yield f"scales its branches by {type(scale).__name__}, not LayerScale"
