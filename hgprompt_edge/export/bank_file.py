"""Bundle to the bank that a device mixes: prompts projected as the graph projects its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from hgprompt_edge.artifacts.bank_entries import bank_sha256, bank_tokens, initial_mix
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank, adapt_path, bank_path, write_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.gradient.file import export_adapt
from hgprompt_edge.export.graph.attention import prepare
from hgprompt_edge.export.graph.inference import folded_head
from hgprompt_edge.export.graph.rewrites import Rewrites, affine_part
from hgprompt_edge.export.graph.writer import to_array
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.mixing import BankKeysValues, BlockWeights, Norm, project_bank

Floats = np.ndarray[Any, np.dtype[np.float32]]


def make_bank(bundle: Bundle, backbone: Backbone) -> Bank:
    """Project sources and condition prompts for every block.

    The graph has dropped or moved the biases of keys and values (`Rewrites.biases`), so the bank's
    keys and values lack them, too.

    Raises
    ------
    UserError
        The bundle does not hold its sources, has shallow ones, or one prompt alone.
    """
    names, tokens = bank_tokens(bundle)
    if len(names) < 2 and len(tokens):
        raise UserError(
            f"the bundle of {bundle.task} holds only one prompt, so there is nothing to mix; fit "
            "more sources, or add condition prompts with `hgedge condition`"
        )
    blocks = [_block_weights(block) for block in backbone.model.blocks]
    norm = last_norm(backbone.model)
    head = folded_head(bundle.head, norm, Rewrites())
    if bundle.more:  # what goes out is the logarithm of the averaged probabilities
        classes = len(bundle.classes)
        head, norm = Head(np.eye(classes), np.zeros(classes)), nn.Identity()
    return Bank(
        names=names,
        mixer=project_bank(tokens, blocks, backbone.num_heads) if len(tokens) else None,
        initial=initial_mix(bundle),
        head=head.as_float32(),
        sha256=bank_sha256(bundle),
        clean=clean_before_affine(bundle.clean, norm),
    )


def constants_of(backbone: Backbone) -> BankKeysValues:
    """Return what all banks of a backbone have in common: a mixer without a prompt."""
    blocks = [_block_weights(block) for block in backbone.model.blocks]
    none = np.zeros((0, len(blocks), 1, backbone.embed_dim), np.float32)
    return project_bank(none, blocks, backbone.num_heads)


def clean_before_affine(
    clean: FeatureStatistics | None, norm: nn.Module
) -> FeatureStatistics | None:
    """Statistics of features without the last norm's scale and bias, which the head has taken."""
    if clean is None or not isinstance(norm, nn.LayerNorm):
        return clean
    means = clean.class_means
    return replace(
        clean,
        mean=_before_affine(clean.mean, norm, 1),
        variance=_before_affine(clean.variance, norm, 2),
        class_means=None if means is None else _before_affine(means, norm, 1),
    )


def _before_affine(moment: Floats, norm: nn.LayerNorm, power: int) -> Floats:
    """Means (`power` 1) or variances (2) `[..., D]` without the norm's scale and bias."""
    width = moment.shape[-1]
    bias = 0 if norm.bias is None or power == 2 else affine_part(norm.bias, width)
    scale = 1 if norm.weight is None else affine_part(norm.weight, width)
    return cast("Floats", ((moment - bias) / scale**power).astype(np.float32))


def beside(path: Path, bank: Bank | None, adapt: bool) -> list[Path]:
    """Name the files that belong to a model: its bank, and the graph of its gradient.

    Where there are no prompts only the head moves, whose gradient needs no graph.
    """
    if bank is None:
        return []
    return [bank_path(path)] + ([adapt_path(path)] if adapt and bank.mixer else [])


def write_beside(bundle: Bundle, backbone: Backbone, bank: Bank, paths: Sequence[Path]) -> None:
    """Write what `beside` named.

    Raises
    ------
    CheckError
        The gradient is not that of PyTorch.
    """
    write_bank(paths[0], bank)
    for path in paths[1:]:
        export_adapt(bundle, backbone, bank, path)


def _block_weights(block: Any) -> BlockWeights:
    """Projections of one block after the rewrites; the affine part of its norm is in them."""
    layer, width = prepare(block, Rewrites()), block.norm1.normalized_shape[-1]
    zeros = np.zeros(len(layer.k[0]), np.float32)
    return BlockWeights(
        norm=Norm(np.ones(width, np.float32), np.zeros(width, np.float32), block.norm1.eps),
        weight_k=cast("Floats", layer.k[0]),
        bias_k=zeros if layer.k[1] is None else cast("Floats", layer.k[1]),
        weight_v=cast("Floats", layer.v[0]),
        bias_v=zeros if layer.v[1] is None else cast("Floats", layer.v[1]),
        key_norm=_key_norm(layer.k_norm),
    )


def _key_norm(norm: nn.Module) -> Norm | None:
    if not isinstance(norm, nn.LayerNorm):
        return None
    width = norm.normalized_shape[-1]
    scale = np.ones(width) if norm.weight is None else to_array(norm.weight)
    bias = np.zeros(width) if norm.bias is None else to_array(norm.bias)
    return Norm(cast("Floats", scale), cast("Floats", bias), norm.eps)
