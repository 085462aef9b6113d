"""The tokens that go into the first block: patches with positions, and what no image changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.writer import Doubles, Writer, to_array
from hgprompt_edge.images.preprocess import Preprocessing


def embed_patches(
    w: Writer, model: VisionTransformer, preprocessing: Preprocessing, image: ir.Value
) -> ir.Value:
    """Pixels to patch tokens with positions, `[batch, patches, D]`.

    Patches don't overlap and nothing is padded, so the convolution is one matrix product over the
    pixels of each patch, and the normalisation folds into it exactly.
    """
    embed = model.patch_embed
    (rows, columns), patch = embed.grid_size, embed.patch_size[0]
    kernel = to_array(embed.proj.weight).transpose(2, 3, 1, 0)  # [p, p, 3, D]
    given = None if embed.proj.bias is None else to_array(embed.proj.bias)
    weight, bias = rewrites.fold_normalization(kernel, given, preprocessing.mean, preprocessing.std)
    if (rows * patch, columns * patch) != tuple(embed.img_size):  # the convolution drops the rest
        ends = w.integers(rows * patch, columns * patch)
        image = w.op("Slice", "image.crop", image, w.integers(0, 0), ends, w.integers(1, 2))
    x = w.reshape("patches.grid", image, -1, rows, patch, columns, patch * 3)
    x = w.op("Transpose", "patches.pixels", x, perm=[0, 1, 3, 2, 4])
    x = w.reshape("patches.flat", x, -1, rows * columns, patch * patch * 3)
    x = w.op("Cast", "patches.float", x, to=ir.DataType.FLOAT)
    x = w.linear("patch_embed", x, weight, bias + _positions(model)[1])
    return w.norm("norm_pre", x, model.norm_pre)


def _positions(model: VisionTransformer) -> tuple[Doubles, Doubles]:
    """Position embeddings of the class token and registers, and of the patches."""
    fixed = int(model.num_prefix_tokens)
    if model.pos_embed is None:
        return np.zeros((fixed, model.embed_dim)), np.zeros((1, model.embed_dim))
    positions = to_array(model.pos_embed)[0]
    if model.no_embed_class:
        return np.zeros((fixed, model.embed_dim)), positions
    return positions[:fixed], positions[fixed:]


def fixed_tokens(model: VisionTransformer, shallow: Tensor | None) -> Doubles:
    """Tokens before the patches that no image changes: class token, registers, shallow prompt."""
    parts = [tokens[0] for tokens in (model.cls_token, model.reg_token) if tokens is not None]
    if parts:
        positions = torch.from_numpy(_positions(model)[0]).to(parts[0])
        with torch.inference_mode():
            parts = [model.norm_pre(torch.cat(parts) + positions)]
    if shallow is not None:
        parts.append(shallow)
    return np.concatenate([to_array(part) for part in parts] or [np.zeros((0, model.embed_dim))])
