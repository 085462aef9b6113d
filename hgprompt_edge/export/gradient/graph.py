"""The gradient of the mix in one ONNX graph, with a backward pass written by hand (METHOD 7).

Inputs: `image` uint8 `[batch, S, S, 3]`, `label [batch, K]`, `mix [M]`, `head.weight [K, D]`,
`head.bias [K]`, `d_features [batch or 1, D]`, `backward` bool. Outputs: `loss [batch]`, the
cross-entropy `-sum_k label_k log p_k`; `logits [batch, K]`; `features [batch, D]`; and gradients of
the summed loss `d_mix [M]`, `d_head.weight [K, D]`, `d_head.bias [K]`. Where `backward` is false,
`d_mix` is empty: the way back is a branch, so that features alone cost a forward pass.

`label` is a one-hot row or any other. A row that sums to zero gives `dL/dlogits = -label`, so every
other loss on logits is one more pass: its gradient goes in, negated. `d_features` is added to what
the features receive from the logits, for losses on features.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from timm.models.vision_transformer import VisionTransformer

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.export.gradient.absorbed import AbsorbedBlock
from hgprompt_edge.export.gradient.adjoint import Back, norm
from hgprompt_edge.export.gradient.block import Block
from hgprompt_edge.export.gradient.mix import Mix, Mixed, of_bank, of_inputs
from hgprompt_edge.export.graph.attention import can_absorb, prepare
from hgprompt_edge.export.graph.inference import IR_VERSIONS, PLAIN_OPSET
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.graph.tokens import embed_patches, fixed_tokens
from hgprompt_edge.export.graph.writer import Writer
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.maths.mixing import BankKeysValues


def build_adapt_graph(bundle: Bundle, backbone: Backbone, bank: Bank) -> ir.Model:
    """Write the graph for a bank of the same backbone; the batch is dynamic."""
    backbone, w = as_fitted(bundle, backbone), Writer()
    return _build(w, backbone, of_bank(w, bank), [], len(bank.names), len(bank.head.bias))


def build_tasks_adapt_graph(backbone: Backbone, mixer: BankKeysValues) -> ir.Model:
    """Write the graph for all tasks of a device folder.

    It also takes what is mixed: `keys`, `values [P, L, T, E]` and `gram [L, T, P, P]`. The first
    entry of `mix` is the share of the model alone, 0 where a task has none. Numbers of prompts,
    tokens and classes are dynamic.

    Parameters
    ----------
    backbone
        With the features of the folder.
    mixer
        Of any task; its constants are those of the backbone.
    """
    w, layers, width = Writer(), *mixer.key_bias.shape
    given = {
        name: ir.val(name, ir.DataType.FLOAT, shape)
        for name, shape in (
            ("keys", ["prompts", layers, "tokens", width]),
            ("values", ["prompts", layers, "tokens", width]),
            ("gram", [layers, "tokens", "prompts", "prompts"]),
        )
    }
    mixed = of_inputs(w, given, mixer)
    return _build(w, backbone, mixed, list(given.values()), "entries", "classes")


def _build(
    w: Writer,
    backbone: Backbone,
    given: Mixed,
    more: list[ir.Value],
    entries: int | str,
    classes: int | str,
) -> ir.Model:
    """Write the graph; with `more` inputs behind the common ones, its weights can be shared."""
    model, size, width = backbone.model, backbone.image_size, backbone.feature_dim
    image = ir.val("image", ir.DataType.UINT8, ["batch", size, size, 3])
    label = ir.val("label", ir.DataType.FLOAT, ["batch", classes])
    mix = ir.val("mix", ir.DataType.FLOAT, [entries])
    head_weight = ir.val("head.weight", ir.DataType.FLOAT, [classes, width])
    head_bias = ir.val("head.bias", ir.DataType.FLOAT, [classes])
    d_extra = ir.val("d_features", ir.DataType.FLOAT, ["rows", width])
    backward = ir.val("backward", ir.DataType.BOOL, [])
    mixed = Mix(w, given, mix)
    features, back = _features(w, model, backbone.preprocessing, image, mixed, plain=bool(more))
    logits = w.op("Gemm", "logits", features, head_weight, head_bias, transB=1)
    loss, d_logits = _cross_entropy(w, logits, label)
    with w.apart() as branch:
        d_features = w.op("Gemm", "features.back.head", d_logits, head_weight)
        found = back(w.op("Add", "features.back", d_features, d_extra))
    d_mix = _gradient_if(w, backward, branch, found, mix)
    outputs: dict[str, tuple[ir.Value, list[int | str]]] = {
        "loss": (loss, ["batch"]),
        "logits": (logits, ["batch", classes]),
        "features": (features, ["batch", width]),
        "d_mix": (d_mix, ["M or 0"]),
        "d_head.weight": (
            w.op("Gemm", "d_head.weight", d_logits, features, transA=1),
            [classes, width],
        ),
        "d_head.bias": (
            w.op("ReduceSum", "d_head.bias", d_logits, w.integers(0), keepdims=0),
            [classes],
        ),
    }
    for name, (value, shape) in outputs.items():
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(shape)
    graph = ir.Graph(
        [image, label, mix, head_weight, head_bias, d_extra, backward, *more],
        [value for value, _ in outputs.values()],
        nodes=w.tape.nodes,
        initializers=w.tape.initializers,
        opset_imports={"": PLAIN_OPSET},
        name="hgprompt-adapt",
    )
    return ir.Model(graph, ir_version=IR_VERSIONS[PLAIN_OPSET], producer_name="hgprompt-edge")


def _gradient_if(
    w: Writer, condition: ir.Value, branch: Tape, found: ir.Value, x: ir.Value
) -> ir.Value:
    """Give the gradient of `x` that a branch finds where the condition holds, else an empty one."""
    with w.apart() as otherwise:
        nothing = w.part(f"{x.name}.none", x, 0, 0, axis=0)
    found.dtype = nothing.dtype = ir.DataType.FLOAT
    then = ir.Graph([], [found], nodes=branch.nodes, name="backward")
    without = ir.Graph([], [nothing], nodes=otherwise.nodes, name="forward alone")
    return w.op("If", f"d_{x.name}", condition, then_branch=then, else_branch=without)


def _cross_entropy(w: Writer, logits: ir.Value, label: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Loss `[batch]` and its gradient `softmax * sum(label) - label`, `[batch, K]`."""
    log_p = w.op("LogSoftmax", "log_p", logits, axis=-1)
    products = w.op("Mul", "loss.products", label, log_p)
    negative = w.op("ReduceSum", "loss.negative", products, w.integers(1), keepdims=0)
    loss = w.op("Neg", "loss", negative)
    total = w.op("ReduceSum", "label.total", label, w.integers(1))
    expected = w.op("Mul", "logits.expected", w.op("Exp", "p", log_p), total)
    return loss, w.op("Sub", "logits.back", expected, label)


def _features(
    w: Writer,
    model: VisionTransformer,
    preprocessing: Preprocessing,
    image: ir.Value,
    mixed: Mix,
    *,
    plain: bool,
) -> tuple[ir.Value, Any]:
    """Pixels to features `[batch, D or 2 D]`; back, to the gradient of the mix."""
    batch = w.op("Shape", "batch", image, start=0, end=1)
    x = embed_patches(w, model, preprocessing, image)
    fixed = fixed_tokens(model, None)
    if len(fixed):
        x = w.op("Concat", "tokens", w.repeat("tokens.fixed", fixed[None], batch), x, axis=1)
    count = len(fixed) + int(model.patch_embed.num_patches)
    x = w.reshape("tokens.flat", x, -1, model.embed_dim)
    mask = _mask(w, mixed, count)
    blocks: list[Block] = []
    for index, block in enumerate(model.blocks):
        last = index == len(model.blocks) - 1 and model.global_pool == "token"
        kind = AbsorbedBlock if last and can_absorb(prepare(block, Rewrites())) else Block
        place = {"first": index == 0, "last": last, "plain": plain}
        step = kind(w, f"blocks.{index}", block, count, mixed.tokens, **place)
        x = step.forward(x, mixed.prefix[index], mask, batch)
        blocks.append(step)
    features, pool_back = _pool(w, model, x, len(fixed), count)

    def back(d_features: ir.Value) -> ir.Value:
        dx: ir.Value | None = pool_back(d_features)
        for step in reversed(blocks):
            assert dx is not None  # only the first block returns none
            dx = step.back(dx)
        return mixed.back(
            [step.d_prefix for step in blocks], [step.d_bias for step in blocks if step.d_bias]
        )

    return features, back


def _mask(w: Writer, mixed: Mix, count: int) -> ir.Value | None:
    """`[T + N]`: what the scores get where "no prompt" has a share."""
    if mixed.bias is None:
        return None
    bias = w.op("Expand", "mix.bias.tokens", mixed.bias, w.sizes("tokens", mixed.tokens))
    rest = w.floats("mix.bias.none", np.zeros(count))
    return w.op("Concat", "mix.bias.mask", bias, rest, axis=0)


def _pool(
    w: Writer, model: VisionTransformer, x: ir.Value, first: int, count: int
) -> tuple[ir.Value, Back]:
    """Features `[batch, D]`: the class tokens, or the average over the tokens from `first` on.

    For both `[batch, 2 D]`, one behind the other.
    """
    last, width = last_norm(model), model.embed_dim
    x, norm_back = norm(w, "norm", x, model.norm, affine=model.norm is not last)
    shares = _pool_shares(model.global_pool, first, count)
    parts = 1 if shares is None else shares.shape[1]
    if shares is not None:
        x = w.reshape("pool.images", x, -1, count, width)
        x = w.op("MatMul", "pool", w.floats("pool.shares", shares.T), x)
        x = w.reshape("pool.rows", x, -1, width)
    x, fc_norm_back = norm(w, "fc_norm", x, model.fc_norm, affine=model.fc_norm is not last)
    if parts > 1:
        x = w.reshape("pool.joined", x, -1, parts * width)

    def back(dy: ir.Value) -> ir.Value:
        dy = fc_norm_back(w.reshape("pool.back.parts", dy, -1, width) if parts > 1 else dy)
        if shares is not None:
            dy = w.reshape("pool.back.images", dy, -1, parts, width)
            dy = w.op("MatMul", "pool.back.tokens", w.floats("pool.back.shares", shares), dy)
            dy = w.reshape("pool.back", dy, -1, width)
        return norm_back(dy)

    return x, back


def _pool_shares(pooling: str, first: int, count: int) -> npt.NDArray[np.float64] | None:
    """How much each of `count` tokens counts in each part of the features: `[N, 1 or 2]`.

    None where the last block leaves the class tokens alone.
    """
    mean = np.zeros(count)
    mean[first:] = 1 / (count - first)
    token = np.zeros(count)
    token[0] = 1
    return {"avg": mean[:, None], "both": np.stack([token, mean], 1)}.get(pooling)
