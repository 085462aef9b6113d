"""The inference graph of a prompted vision transformer, written node by node.

It computes the prefix form of METHOD 2. Everything that does not depend on the image is a constant:
the normalisation is folded into the patch projection, the attention scale into the queries,
LayerScale into the projection before it, and a deep prompt is its keys and values. A shallow
prompt's tokens stand in the sequence, since each image transforms them.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.export.writer import Doubles, Writer, to_array
from hgprompt_edge.preprocess import Preprocessing
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.forward import project_prefix

OPSET = 20
"""The first with Gelu. Pinned, as the IR version, so that older runtimes load the file."""
IR_VERSION = 10
INPUT, OUTPUT = "image", "logits"

Floats = npt.NDArray[np.float32]


def build_graph(bundle: Bundle, backbone: Backbone) -> ir.Model:
    """Write the model contract: `image` uint8 `[batch, S, S, 3]` to `logits` `[batch, K]`.

    `bundle.prompt` may be deep `[L, T, D]`, shallow `[1, T, D]` or None. The batch is dynamic.
    """
    model, size = backbone.model, backbone.image_size
    image = ir.val(INPUT, ir.DataType.UINT8, ["batch", size, size, 3])
    w = Writer()
    logits = w.op(
        "Gemm",
        OUTPUT,
        _features(w, model, bundle, image),
        w.floats("head.weight", bundle.head_weight),
        w.floats("head.bias", bundle.head_bias),
        transB=1,
    )
    logits.dtype, logits.shape = ir.DataType.FLOAT, ir.Shape(["batch", len(bundle.head_bias)])
    graph = ir.Graph(
        [image],
        [logits],
        nodes=w.tape.nodes,
        initializers=w.tape.initializers,
        opset_imports={"": OPSET},
        name="hgprompt",
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="hgprompt-edge")


def _features(w: Writer, model: VisionTransformer, bundle: Bundle, image: ir.Value) -> ir.Value:
    """Pixels to pooled features `[batch, D]`."""
    deep, shallow = _prompt_forms(model, bundle.prompt)
    batch = w.op("Shape", "batch", image, start=0, end=1)
    x = _embed_patches(w, model, bundle.preprocessing, image)
    fixed = _fixed_tokens(model, shallow)
    if len(fixed):
        x = w.op("Concat", "tokens", _repeat(w, "tokens.fixed", fixed[None], batch), x, axis=1)
    for layer, block in enumerate(model.blocks):
        class_only = layer == len(model.blocks) - 1 and model.global_pool == "token"
        prefix = _prefix(w, f"blocks.{layer}.attn", deep[layer], batch) if deep else None
        x = _block(w, f"blocks.{layer}", cast("Any", block), x, prefix, class_only)
    return _pool(w, model, x, len(fixed))


def _prompt_forms(
    model: VisionTransformer, prompt: Floats | None
) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """Prefix pairs of a deep prompt (else none) and the tokens `[T, D]` of a shallow one."""
    if prompt is None:
        return [], None
    tokens = torch.tensor(prompt)
    if len(tokens) == len(model.blocks):
        return project_prefix(model, tokens), None
    return [], tokens[0]


def _embed_patches(
    w: Writer, model: VisionTransformer, preprocessing: Preprocessing, image: ir.Value
) -> ir.Value:
    """Pixels to patch tokens with positions, `[batch, patches, D]`.

    Patches don't overlap and nothing is padded, so the convolution is one matrix product over the
    pixels of each patch, and the normalisation folds into it exactly.
    """
    embed = model.patch_embed
    (rows, columns), patch = embed.grid_size, embed.patch_size[0]
    weight = to_array(embed.proj.weight).transpose(2, 3, 1, 0)  # [p, p, 3, D]
    mean, std = (np.array(v)[:, None] for v in (preprocessing.mean, preprocessing.std))
    bias = -(weight * (mean / std)).sum((0, 1, 2))
    if embed.proj.bias is not None:
        bias = bias + to_array(embed.proj.bias)
    weight = (weight / (255 * std)).reshape(patch * patch * 3, -1)
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


def _fixed_tokens(model: VisionTransformer, shallow: Tensor | None) -> Doubles:
    """Tokens before the patches that no image changes: class token, registers, shallow prompt."""
    parts = [tokens[0] for tokens in (model.cls_token, model.reg_token) if tokens is not None]
    if parts:
        positions = torch.from_numpy(_positions(model)[0]).to(parts[0])
        with torch.inference_mode():
            parts = [model.norm_pre(torch.cat(parts) + positions)]
    if shallow is not None:
        parts.append(shallow)
    return np.concatenate([to_array(part) for part in parts] or [np.zeros((0, model.embed_dim))])


def _repeat(w: Writer, name: str, array: npt.NDArray[Any], batch: ir.Value) -> ir.Value:
    """Repeat a constant `[1, ...]` for each image of the batch."""
    shape = w.op("Concat", f"{name}.shape", batch, w.integers(*array.shape[1:]), axis=0)
    return w.op("Expand", f"{name}.batch", w.floats(name, array), shape)


def _prefix(
    w: Writer, name: str, pair: tuple[Tensor, Tensor], batch: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Constant keys `[batch, H, d, T]` (transposed) and values `[batch, H, T, d]`."""
    k, v = (to_array(t)[None] for t in pair)
    keys = _repeat(w, f"{name}.prefix_k", k.transpose(0, 1, 3, 2), batch)
    return keys, _repeat(w, f"{name}.prefix_v", v, batch)


def _block(
    w: Writer,
    name: str,
    block: Any,
    x: ir.Value,
    prefix: tuple[ir.Value, ir.Value] | None,
    class_only: bool,
) -> ir.Value:
    """One block on `x [batch, N, D]`; `class_only`: no other token is needed after it."""
    z = queries = w.norm(f"{name}.norm1", x, block.norm1)
    if class_only:
        queries = w.tokens(f"{name}.norm1.class", z, 0, 1)
        x = w.tokens(f"{name}.class", x, 0, 1)
    mixed = _attention(w, f"{name}.attn", block.attn, z, queries, prefix)
    mixed = w.linear(f"{name}.attn.proj", mixed, *_scaled(block.attn.proj, block.ls1))
    x = w.op("Add", f"{name}.residual1", x, mixed)
    z = w.norm(f"{name}.norm2", x, block.norm2)
    z = w.linear(f"{name}.mlp.fc1", z, *_scaled(block.mlp.fc1))
    z = _gelu(w, f"{name}.mlp.act", z, block.mlp.act)
    z = w.linear(f"{name}.mlp.fc2", z, *_scaled(block.mlp.fc2, block.ls2))
    return w.op("Add", f"{name}.residual2", x, z)


def _attention(
    w: Writer,
    name: str,
    attn: Any,
    z: ir.Value,
    queries: ir.Value,
    prefix: tuple[ir.Value, ir.Value] | None,
) -> ir.Value:
    """Attention of `queries [batch, rows, D]` over `z [batch, N, D]` and the prefix."""
    heads, scale = int(attn.num_heads), float(attn.scale)
    normed = isinstance(attn.q_norm, nn.LayerNorm)
    projections = _split_qkv(attn, 1.0 if normed else scale)

    def project(which: str, source: ir.Value) -> ir.Value:
        x = w.linear(f"{name}.{which}", source, *projections[which])
        return w.reshape(f"{name}.{which}.split", x, 0, 0, heads, -1)

    q = w.norm(f"{name}.q_norm", project("q", queries), attn.q_norm, scale)
    k = w.norm(f"{name}.k_norm", project("k", z), attn.k_norm)
    v = project("v", z)
    q = w.op("Transpose", f"{name}.q.heads", q, perm=[0, 2, 1, 3])  # [batch, H, rows, d]
    k = w.op("Transpose", f"{name}.k.heads", k, perm=[0, 2, 3, 1])  # [batch, H, d, N]
    v = w.op("Transpose", f"{name}.v.heads", v, perm=[0, 2, 1, 3])  # [batch, H, N, d]
    # One softmax over joined keys is 1 to 2 % faster than joining the scores of two products.
    if prefix is not None:
        k = w.op("Concat", f"{name}.k.prefixed", prefix[0], k, axis=3)
        v = w.op("Concat", f"{name}.v.prefixed", prefix[1], v, axis=2)
    shares = w.op("Softmax", f"{name}.softmax", w.op("MatMul", f"{name}.scores", q, k), axis=-1)
    mixed = w.op("MatMul", f"{name}.mixed", shares, v)
    mixed = w.op("Transpose", f"{name}.mixed.tokens", mixed, perm=[0, 2, 1, 3])
    return w.reshape(f"{name}.mixed.merge", mixed, 0, 0, -1)


def _split_qkv(attn: Any, scale: float) -> dict[str, tuple[Doubles, Doubles | None]]:
    """Weight `[D, D]` and bias of queries (times `scale`), keys and values."""
    weight, bias = _scaled(attn.qkv)
    projections: dict[str, tuple[Doubles, Doubles | None]] = {}
    for index, (which, factor) in enumerate((("q", scale), ("k", 1.0), ("v", 1.0))):
        part = slice(index * weight.shape[1] // 3, (index + 1) * weight.shape[1] // 3)
        part_bias = None if bias is None else bias[part] * factor
        projections[which] = weight[:, part] * factor, part_bias
    return projections


def _gelu(w: Writer, name: str, x: ir.Value, act: nn.Module) -> ir.Value:
    if isinstance(act, QuickGELU):
        scaled = w.op("Mul", f"{name}.scaled", x, w.floats("quick_gelu", np.array(1.702)))
        return w.op("Mul", name, x, w.op("Sigmoid", f"{name}.sigmoid", scaled))
    tanh = isinstance(act, GELUTanh) or getattr(act, "approximate", "none") == "tanh"
    return w.op("Gelu", name, x, approximate="tanh" if tanh else "none")


def _pool(w: Writer, model: VisionTransformer, x: ir.Value, first: int) -> ir.Value:
    """Features `[batch, D]`: the class token, or the average over the tokens from `first` on."""
    if model.global_pool == "token":
        x = w.op("Squeeze", "pool", w.norm("norm", x, model.norm), w.integers(1))
    else:
        patches = int(model.patch_embed.num_patches)
        x = w.tokens("pool.patches", x, first, first + patches) if first else x
        x = w.op("ReduceMean", "pool", w.norm("norm", x, model.norm), w.integers(1), keepdims=0)
    return w.norm("fc_norm", x, model.fc_norm)


def _scaled(linear: nn.Linear, scale: Any = None) -> tuple[Doubles, Doubles | None]:
    """Weight `[D, E]` and bias of a linear layer with the LayerScale behind it folded in."""
    gamma = getattr(scale, "gamma", None)
    factor = np.ones(1) if gamma is None else to_array(gamma)
    bias = None if linear.bias is None else to_array(linear.bias) * factor
    return to_array(linear.weight).T * factor, bias
