"""One graph for many tasks: prompt and head come in with the image, the backbone stays.

In comments, `L` layers, `P` folded prompts of a task, `T` tokens of a prompt, `N` of an image,
width `D`, features of width `W` (`D`, or `2 D` where both are pooled), `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from timm.models.vision_transformer import VisionTransformer

from hgprompt_edge.artifacts.folded import FoldedPrompt
from hgprompt_edge.artifacts.tasks.task_tensors import (
    BIAS,
    HEAD,
    KEYS,
    MASK,
    VALUES,
    Floats,
    TaskTensors,
    pad_tokens,
)
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.forward import project_prefix
from hgprompt_edge.backbones.last_norm import last_norm
from hgprompt_edge.export.graph.attention import Constant, Given, prepare
from hgprompt_edge.export.graph.head import OUTPUT
from hgprompt_edge.export.graph.inference import (
    FEATURES,
    Place,
    folded_head,
    image_input,
    make_model,
    pool,
    write_block,
)
from hgprompt_edge.export.graph.rewrites import Rewrites
from hgprompt_edge.export.graph.tokens import embed_patches, fixed_tokens
from hgprompt_edge.export.graph.writer import Doubles, Writer, to_array
from hgprompt_edge.maths.head import Head


def build_tasks_graph(backbone: Backbone, on: Rewrites | None = None) -> ir.Model:
    """Write the graph of a backbone whose prompt and head are required inputs.

    `image` uint8 `[batch, S, S, 3]` and `TaskTensors` to `logits [batch, K]` and the `features
    [batch, W]` under the first folded prompt. The logits are the logarithm of the mean of the
    folded prompts' probabilities. Numbers of images, folded prompts, tokens and classes are
    dynamic.
    """
    on, model = on or Rewrites(), backbone.model
    image, inputs = image_input(backbone.image_size), task_inputs(backbone)
    w = Writer()
    batch = w.op("Shape", "batch", image, start=0, end=1)
    prompts = w.op("Shape", "prompts", inputs[KEYS], start=1, end=2)
    x = embed_patches(w, model, backbone.preprocessing, image)
    fixed = fixed_tokens(model, None)
    if len(fixed):
        x = w.op("Concat", "tokens", w.repeat("tokens.fixed", fixed[None], batch), x, axis=1)
    count = len(fixed) + int(model.patch_embed.num_patches)
    x = _for_each(w, "tokens.prompts", x, prompts)
    given = _given(w, inputs, backbone.depth, count, batch)
    rows = w.op("Mul", "rows", batch, prompts)
    for index, block in enumerate(model.blocks):
        last = index == len(model.blocks) - 1 and model.global_pool == "token"
        layer = replace(prepare(block, on), prefixes=(given[index],))
        place = Place(shared=False, last=last)
        x = write_block(w, f"blocks.{index}", block, layer, x, rows, on, place)
    pooled, _ = pool(w, model, x, len(fixed), on)
    outputs = _outputs(w, pooled, inputs, backbone.feature_dim)
    return make_model(w, [image, *inputs.values()], outputs, on)


def task_inputs(backbone: Backbone) -> dict[str, ir.Value]:
    """Declare what `TaskTensors.inputs` feeds."""
    layers, width = backbone.depth, backbone.embed_dim
    shapes: dict[str, list[int | str]] = {
        KEYS: [layers, "prompts", "tokens", width],
        VALUES: [layers, "prompts", "tokens", width],
        MASK: ["prompts", "tokens"],
        HEAD: ["prompts", backbone.feature_dim, "classes"],
        BIAS: ["prompts", "classes"],
    }
    return {name: ir.val(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}


def task_tensors(folded: tuple[FoldedPrompt, ...], backbone: Backbone) -> TaskTensors:
    """Project the folded prompts of a task, and bring its heads to the backbone's features.

    A head on the class token alone gets zeros for the mean of the patch tokens, where both are
    pooled.
    """
    norm, on = last_norm(backbone.model), Rewrites()
    head = head_tensors([folded_head(each.head, norm, on) for each in folded], backbone.feature_dim)
    pairs = [_keys_values(backbone.model, each.prompt, on) for each in folded]
    keys, values, mask = pad_tokens(pairs, backbone.depth, backbone.embed_dim)
    return TaskTensors(keys, values, mask, *head)


def head_tensors(heads: Sequence[Head], width: int) -> tuple[Floats, Floats]:
    """`TaskTensors.head_weight` and `head_bias` of heads for the graph's features of some width."""
    weight = np.stack([head.weight.T for head in heads])  # [P, W, K], as the graph takes it
    missing = width - weight.shape[1]
    weight = np.pad(weight, ((0, 0), (0, missing), (0, 0)))
    return weight, np.stack([head.bias for head in heads])


def _keys_values(
    model: VisionTransformer, prompt: Floats | None, on: Rewrites
) -> tuple[Floats, Floats] | None:
    """Keys and values `[L, T, D]` of a deep prompt after the rewrites."""
    if prompt is None:
        return None
    keys, values = [], []
    projected = project_prefix(model, torch.tensor(prompt))
    for block, pair in zip(model.blocks, projected, strict=True):
        found = prepare(block, on, [(to_array(pair[0]), to_array(pair[1]))]).prefix
        assert isinstance(found, Constant)
        keys.append(_heads_joined(found.keys))
        values.append(_heads_joined(found.values))
    return np.stack(keys), np.stack(values)


def _heads_joined(array: Doubles) -> Floats:
    """`[H, T, d]` to `[T, H d]`."""
    return cast("Floats", array.transpose(1, 0, 2).reshape(array.shape[1], -1).astype(np.float32))


def _for_each(w: Writer, name: str, x: ir.Value, prompts: ir.Value) -> ir.Value:
    """Repeat `x [batch, N, D]` for each folded prompt: `[P batch, N, D]`, one behind the other."""
    shape = w.op("Shape", f"{name}.shape", x)
    shape = w.op("Concat", f"{name}.each", prompts, shape, axis=0)
    x = w.op("Expand", f"{name}.expand", x, shape)
    end = w.op("Shape", f"{name}.rest", x, start=2)
    return w.op("Reshape", name, x, w.op("Concat", f"{name}.flat", w.integers(-1), end, axis=0))


def _given(
    w: Writer,
    inputs: dict[str, ir.Value],
    layers: int,
    count: int,
    batch: ir.Value,
) -> list[Given]:
    """Cut the inputs into what each layer takes, for each image its rows."""
    each = [
        w.split(f"{name}.layers", _for_each_image(w, name, inputs[name], 2, batch), layers, axis=0)
        for name in (KEYS, VALUES)
    ]
    mask = _mask(w, inputs[MASK], count, batch)
    return [
        Given(keys, values, mask, rows=True, image_tokens=count)
        for keys, values in zip(*each, strict=True)
    ]


def _for_each_image(w: Writer, name: str, x: ir.Value, axis: int, batch: ir.Value) -> ir.Value:
    """Repeat entries of `x [..., P, ...]`, before `axis`, for each image: `[... P batch, ...]`."""
    before = w.op("Shape", f"{name}.before", x, start=0, end=axis)
    after = w.op("Shape", f"{name}.after", x, start=axis)
    shape = w.op("Concat", f"{name}.wide", before, batch, after, axis=0)
    x = w.op("Unsqueeze", f"{name}.apart", x, w.integers(axis))
    x = w.op("Expand", f"{name}.images", x, shape)
    flat = w.op("Concat", f"{name}.flat", w.integers(-1), after, axis=0)
    return w.op("Reshape", f"{name}.rows", x, flat)


def _mask(w: Writer, mask: ir.Value, count: int, batch: ir.Value) -> ir.Value:
    """`[P, T]` as what is added to the scores of each image, `[P batch, 1, N, T + N]`."""
    rows = w.op("Unsqueeze", "prefix_bias.row", mask, w.integers(1))
    zeros = w.floats("prefix_bias.none", np.zeros((1, 1, count)))
    shape = w.op("Shape", "prefix_bias.shape", rows, start=0, end=2)
    shape = w.op("Concat", "prefix_bias.rest", shape, w.integers(count), axis=0)
    both = w.op(
        "Concat",
        "prefix_bias.both",
        rows,
        w.op("Expand", "prefix_bias.zeros", zeros, shape),
        axis=2,
    )
    both = _for_each_image(w, "prefix_bias.each", both, 1, batch)  # [P batch, 1, T + N]
    first = w.op("Shape", "prefix_bias.first", both, start=0, end=1)
    last = w.op("Shape", "prefix_bias.last", both, start=2)
    both = w.op("Unsqueeze", "prefix_bias.heads", both, w.integers(1))
    whole = w.op("Concat", "prefix_bias.whole", first, w.integers(1, count), last, axis=0)
    return w.op("Expand", "prefix_bias.mask", both, whole)


def _outputs(
    w: Writer, pooled: ir.Value, inputs: dict[str, ir.Value], width: int
) -> list[ir.Value]:
    """Logits `[batch, K]` of `pooled [P batch, W]`, and the first prompt's features."""
    prompts = w.op("Shape", "head.prompts", inputs[HEAD], start=0, end=1)
    shape = w.op("Concat", "head.shape", prompts, w.integers(-1, width), axis=0)
    x = w.op("Reshape", "head.rows", pooled, shape)  # [P, batch, W]
    first = w.op("Gather", FEATURES, x, w.constant("first", np.array(0)), axis=0)
    x = w.op("MatMul", "head.products", x, inputs[HEAD])
    x = w.op("Add", "head.each", x, w.op("Unsqueeze", "head.bias", inputs[BIAS], w.integers(1)))
    x = w.op("LogSoftmax", "head.log_p", x, axis=-1)
    x = w.op("ReduceLogSumExp", "head.log_sum", x, w.integers(0), keepdims=0)
    number = w.op("Cast", "head.number", prompts, to=ir.DataType.FLOAT)
    logits = w.op("Sub", OUTPUT, x, w.op("Log", "head.log_count", number))
    for value, last in ((logits, "classes"), (first, width)):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["batch", last])
    return [logits, first]
