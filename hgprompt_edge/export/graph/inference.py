"""The inference graph of a prompted vision transformer, written node by node.

It computes the prefix form of METHOD 2. Everything that does not depend on the image is a constant:
the normalisation is folded into the patch projection, the attention scale into the queries,
LayerScale into the projection before it, and a deep prompt is its keys and values. A shallow
prompt's tokens stand in the sequence, since each image transforms them.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.forward import project_prefix
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.export.graph import rewrites
from hgprompt_edge.export.graph.attend import attend, attend_absorbed
from hgprompt_edge.export.graph.attention import CONTRIB, Given, Layer, can_absorb, prepare
from hgprompt_edge.export.graph.head import join_prompts, write_head
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.graph.tokens import embed_patches, fixed_tokens
from hgprompt_edge.export.graph.writer import Doubles, Writer, to_array
from hgprompt_edge.maths.head import Head

OPSET, PLAIN_OPSET = 23, 20
"""The first with Attention, and the first with Gelu, which older runtimes load."""
IR_VERSIONS = {OPSET: 11, PLAIN_OPSET: 10}
"""Pinned, so that a newer onnx here does not shut out a runtime there."""
INPUT, FEATURES = "image", "features"

Floats = npt.NDArray[np.float32]


def build_graph(
    bundle: Bundle, backbone: Backbone, on: Rewrites | None = None, bank: Bank | None = None
) -> ir.Model:
    """Write the model contract: `image` uint8 `[batch, S, S, 3]` to `logits` `[batch, K]`.

    `bundle.prompt` may be deep `[L, T, D]`, shallow `[1, T, D]` or None. The batch is dynamic.
    The `features [batch, D]` under the first folded prompt go out, too (`[batch, 2 D]` where both
    are pooled), before the last norm's scale and bias. With a `bank` the prompt comes in with the
    image, see `Bank.inputs`, and another head can be applied to the features.

    Several folded prompts, each deep or None, share patches and all products with weights: the
    batch is repeated for them, and attention alone is computed for each on its own. The logits
    are the logarithm of the mean of their probabilities, and with a `bank` so are the features.
    """
    backbone = as_fitted(bundle, backbone)
    model, size, on = backbone.model, backbone.image_size, on or Rewrites()
    image = image_input(size)
    w = Writer()
    inputs = prefix_inputs(bank) if bank else []
    features, norm = _features(w, model, bundle, image, inputs, on)
    heads = [folded_head(folded.head, norm, on) for folded in bundle.folded]
    joined = join_prompts(w, features, len(heads), backbone.feature_dim)
    outputs = [(write_head(w, joined, heads), len(bundle.classes))]
    width = backbone.feature_dim
    if bank and bundle.more:
        # Several heads end in no linear layer, so another one goes on top of what they end in.
        found, width = w.op("Identity", FEATURES, outputs[0][0]), bank.head.weight.shape[1]
    elif bundle.more:
        found = w.part(FEATURES, joined, 0, width)
    else:
        found = features
    found.name = FEATURES
    outputs.append((found, width))
    for value, width in outputs:
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["batch", width])
    return make_model(w, [image, *inputs], [value for value, _ in outputs], on)


def image_input(size: int) -> ir.Value:
    """Declare `image` uint8 `[batch, S, S, 3]`."""
    return ir.val(INPUT, ir.DataType.UINT8, ["batch", size, size, 3])


def make_model(
    w: Writer, inputs: list[ir.Value], outputs: list[ir.Value], on: Rewrites
) -> ir.Model:
    """Put what was written into a model of the opset that it needs."""
    opset = OPSET if on.attention in (Attention.STANDARD, Attention.PAST) else PLAIN_OPSET
    imports = {"": opset, **({CONTRIB: 1} if on.attention is Attention.FUSED else {})}
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=w.tape.nodes,
        initializers=w.tape.initializers,
        opset_imports=imports,
        name="hgprompt",
    )
    return ir.Model(graph, ir_version=IR_VERSIONS[opset], producer_name="hgprompt-edge")


def prefix_inputs(bank: Bank) -> list[ir.Value]:
    """Declare what `Bank.inputs` feeds."""
    arrays = bank.inputs(bank.initial)
    return [ir.val(name, ir.DataType.FLOAT, array.shape) for name, array in arrays.items()]


def folded_head(head: Head, norm: nn.Module, on: Rewrites) -> Head:
    """Take the affine part of the last norm into a head; float32."""
    if not (isinstance(norm, nn.LayerNorm) and on.affine):
        return head.as_float32()
    linear = head.weight.T.astype(np.float64), head.bias.astype(np.float64)
    weight, bias = rewrites.fold_affine(norm, linear)
    return replace(head, weight=weight.T, bias=cast("Doubles", bias)).as_float32()


def _features(
    w: Writer,
    model: VisionTransformer,
    bundle: Bundle,
    image: ir.Value,
    inputs: list[ir.Value],
    on: Rewrites,
) -> tuple[ir.Value, nn.Module]:
    """Pixels to pooled features, and the norm whose affine part they lack.

    The features are `[P batch, D or 2 D]`, the rows of a folded prompt together.
    """
    prompts = [None] if inputs else [folded.prompt for folded in bundle.folded]
    forms = [_prompt_forms(model, prompt) for prompt in prompts]
    batch = w.op("Shape", "batch", image, start=0, end=1)
    x = embed_patches(w, model, bundle.preprocessing, image)
    fixed = fixed_tokens(model, forms[0][1])
    if len(fixed):
        x = w.op("Concat", "tokens", w.repeat("tokens.fixed", fixed[None], batch), x, axis=1)
    given = _given_prefix(w, inputs, len(fixed) + int(model.patch_embed.num_patches))
    for index, block in enumerate(model.blocks):
        last = index == len(model.blocks) - 1 and model.global_pool == "token"
        pairs = [deep[index] if deep else None for deep, _ in forms]
        layer = prepare(block, on, pairs, given[index] if inputs else None)
        # Up to the first attention the folded prompts have all in common.
        place = Place(shared=index == 0, last=last)
        x = write_block(w, f"blocks.{index}", cast("Any", block), layer, x, batch, on, place)
    return pool(w, model, x, len(fixed), on)


def _given_prefix(w: Writer, inputs: list[ir.Value], image_tokens: int) -> list[Given]:
    """Cut the inputs into what each layer takes; `inputs` as `Bank.inputs` names them, or none."""
    if not inputs:
        return []
    keys, values = inputs[:2]
    layers, _, tokens, _ = cast("tuple[int, ...]", keys.shape)
    shape = ir.Shape((keys.shape or ())[1:])
    mask = _share_mask(w, inputs[2], tokens, image_tokens) if len(inputs) > 2 else None

    def part(x: ir.Value, layer: int) -> ir.Value:
        index = w.constant(f"layer.{layer}", np.array(layer))
        cut = w.op("Gather", f"{x.name}.{layer}", x, index)
        cut.shape, cut.dtype = shape, ir.DataType.FLOAT
        return cut

    return [Given(part(keys, i), part(values, i), mask) for i in range(layers)]


def _share_mask(w: Writer, log_share: ir.Value, tokens: int, image_tokens: int) -> ir.Value:
    """`[N, T + N]`: what is added to the scores of the prompt, and nothing to those of the image.

    Its rows are all the same, and the operator Attention wants one for each query.
    """
    bias = w.op("Expand", "prefix_bias.tokens", log_share, w.integers(tokens))
    rest = w.floats("prefix_bias.none", np.zeros(image_tokens))
    row = w.op("Concat", "prefix_bias.row", bias, rest, axis=0)
    shape = w.integers(image_tokens, tokens + image_tokens)
    return w.op("Expand", "prefix_bias.mask", row, shape)


def _prompt_forms(
    model: VisionTransformer, prompt: Floats | None
) -> tuple[list[tuple[Doubles, Doubles]], Tensor | None]:
    """Prefix pairs of a deep prompt (else none) and the tokens `[T, D]` of a shallow one."""
    if prompt is None:
        return [], None
    tokens = torch.tensor(prompt)
    if len(tokens) == len(model.blocks):
        return [(to_array(k), to_array(v)) for k, v in project_prefix(model, tokens)], None
    return [], tokens[0]


class Place(NamedTuple):
    """Where a block stands.

    Attributes
    ----------
    shared
        First: what comes in is the same for all folded prompts, and there once, `[batch, N, D]`.
    last
        No other token than the class token is needed.
    """

    shared: bool
    last: bool


def write_block(
    w: Writer,
    name: str,
    block: Any,
    layer: Layer,
    x: ir.Value,
    batch: ir.Value,
    on: Rewrites,
    place: Place,
) -> ir.Value:
    """One block on `x [P batch, N, D]`, see `Place`."""
    shared, last = place
    z = queries = w.norm(f"{name}.norm1", x, block.norm1, affine=not on.affine)
    if last and on.class_row:
        queries = w.part(f"{name}.norm1.class", z, 0, 1)
        x = w.part(f"{name}.class", x, 0, 1)
    if last and on.class_row and on.absorbed and can_absorb(layer):
        mixed = attend_absorbed(w, f"{name}.attn", layer, z, queries, shared=shared)
    else:
        mixed = attend(w, f"{name}.attn", layer, z, queries, batch, on, shared=shared)
    if shared and len(layer.prefixes) > 1:
        x = w.op("Concat", f"{name}.prompts", *[x] * len(layer.prefixes), axis=0)
    x = w.op("Add", f"{name}.residual1", x, mixed)
    z = w.norm(f"{name}.norm2", x, block.norm2, affine=not on.affine)
    fc1 = rewrites.linear_of(block.mlp.fc1)
    if on.affine:
        fc1 = rewrites.fold_affine(block.norm2, fc1)
    z = _gelu(w, f"{name}.mlp.act", w.linear(f"{name}.mlp.fc1", z, *fc1), block.mlp.act)
    fc2 = rewrites.fold_layer_scale(rewrites.linear_of(block.mlp.fc2), block.ls2)
    return w.op("Add", f"{name}.residual2", x, w.linear(f"{name}.mlp.fc2", z, *fc2))


def _gelu(w: Writer, name: str, x: ir.Value, act: nn.Module) -> ir.Value:
    if isinstance(act, QuickGELU):
        scaled = w.op("Mul", f"{name}.scaled", x, w.floats("quick_gelu", np.array(1.702)))
        return w.op("Mul", name, x, w.op("Sigmoid", f"{name}.sigmoid", scaled))
    tanh = isinstance(act, GELUTanh) or getattr(act, "approximate", "none") == "tanh"
    return w.op("Gelu", name, x, approximate="tanh" if tanh else "none")


def pool(
    w: Writer, model: VisionTransformer, x: ir.Value, first: int, on: Rewrites
) -> tuple[ir.Value, nn.Module]:
    """Features `[batch, D or 2 D]` before the affine part of the last norm, and that norm.

    The features are the class token, the average over the tokens from `first` on, or both.
    """
    last = last_norm(model) if on.affine else nn.Identity()

    def norm(name: str, x: ir.Value, module: nn.Module) -> ir.Value:
        return w.norm(name, x, module, affine=module is not last)

    if model.global_pool == "token":
        x = w.part("pool.class", x, 0, 1) if not on.class_row else x
        x = w.op("Squeeze", "pool", norm("norm", x, model.norm), w.integers(1))
        return norm("fc_norm", x, model.fc_norm), last
    both = str(model.global_pool) == "both"
    x = norm("norm", x, model.norm) if both else x  # the others spare the norm some tokens
    patches = int(model.patch_embed.num_patches)
    rest = w.part("pool.patches", x, first, first + patches) if first else x
    rest = rest if both else norm("norm", rest, model.norm)
    mean = w.op("ReduceMean", "pool" if not both else "pool.mean", rest, w.integers(1), keepdims=0)
    if not both:
        return norm("fc_norm", mean, model.fc_norm), last
    token = w.op("Squeeze", "pool.token", w.part("pool.class", x, 0, 1), w.integers(1))
    parts = norm("fc_norm.token", token, model.fc_norm), norm("fc_norm.mean", mean, model.fc_norm)
    return w.op("Concat", "pool", *parts, axis=1), last
