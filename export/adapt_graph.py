"""The gradient of the mix in one ONNX graph, with a backward pass written by hand (METHOD 7).

Inputs: `image` uint8 `[batch, S, S, 3]`, `label [batch, K]`, `mix [M]`, `head.weight [K, D]`,
`head.bias [K]`, `d_features [batch or 1, D]`. Outputs: `loss [batch]`, the cross-entropy `-sum_k
label_k log p_k`; `logits [batch, K]`; `features [batch, D]`; and the gradients of the summed loss
`d_mix [M]`, `d_head.weight [K, D]`, `d_head.bias [K]`.

`label` is a one-hot row or any other. A row that sums to zero gives `dL/dlogits = -label`, so every
other loss on logits is one more pass: its gradient goes in, negated. `d_features` is added to what
the features receive from the logits, for losses on features.

In comments, `N` tokens of an image, `T` of a prompt, `H` heads of width `d`, width `D`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.device.bank import TINY, Bank
from hgprompt_edge.export import rewrites
from hgprompt_edge.export.adjoint import Back, linear, mlp, norm, scalar
from hgprompt_edge.export.attention import END, Layer, prepare
from hgprompt_edge.export.graph import (
    IR_VERSIONS,
    PLAIN_OPSET,
    embed_patches,
    fixed_tokens,
    last_norm,
)
from hgprompt_edge.export.rewrites import Rewrites
from hgprompt_edge.export.writer import Writer
from hgprompt_edge.vit.backbone import Backbone

REWRITES = Rewrites()


def build_adapt_graph(bundle: Bundle, backbone: Backbone, bank: Bank) -> ir.Model:
    """Write the graph for a bank of the same backbone; the batch is dynamic."""
    model, size, width = backbone.model, backbone.image_size, backbone.embed_dim
    classes = len(bank.head_bias)
    image = ir.val("image", ir.DataType.UINT8, ["batch", size, size, 3])
    label = ir.val("label", ir.DataType.FLOAT, ["batch", classes])
    mix = ir.val("mix", ir.DataType.FLOAT, [len(bank.names)])
    head_weight = ir.val("head.weight", ir.DataType.FLOAT, [classes, width])
    head_bias = ir.val("head.bias", ir.DataType.FLOAT, [classes])
    d_extra = ir.val("d_features", ir.DataType.FLOAT, ["rows", width])
    w = Writer()
    mixed = _Mix(w, bank, mix)
    features, back = _features(w, model, bundle, image, mixed)
    logits = w.op("Gemm", "logits", features, head_weight, head_bias, transB=1)
    loss, d_logits = _cross_entropy(w, logits, label)
    d_features = w.op("Gemm", "features.back.head", d_logits, head_weight)
    d_mix = back(w.op("Add", "features.back", d_features, d_extra))
    outputs: dict[str, tuple[ir.Value, list[int | str]]] = {
        "loss": (loss, ["batch"]),
        "logits": (logits, ["batch", classes]),
        "features": (features, ["batch", width]),
        "d_mix": (d_mix, [len(bank.names)]),
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
        [image, label, mix, head_weight, head_bias, d_extra],
        [value for value, _ in outputs.values()],
        nodes=w.tape.nodes,
        initializers=w.tape.initializers,
        opset_imports={"": PLAIN_OPSET},
        name="hgprompt-adapt",
    )
    return ir.Model(graph, ir_version=IR_VERSIONS[PLAIN_OPSET], producer_name="hgprompt-edge")


def _cross_entropy(w: Writer, logits: ir.Value, label: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Loss `[batch]` and its gradient `softmax * sum(label) - label`, `[batch, K]`."""
    log_p = w.op("LogSoftmax", "log_p", logits, axis=-1)
    products = w.op("Mul", "loss.products", label, log_p)
    negative = w.op("ReduceSum", "loss.negative", products, w.integers(1), keepdims=0)
    loss = w.op("Neg", "loss", negative)
    total = w.op("ReduceSum", "label.total", label, w.integers(1))
    expected = w.op("Mul", "logits.expected", w.op("Exp", "p", log_p), total)
    return loss, w.op("Sub", "logits.back", expected, label)


class _Mix:
    """Prefix of every layer from the mix by METHOD eq. 2, and back."""

    def __init__(self, w: Writer, bank: Bank, mix: ir.Value) -> None:
        self.w, self.mixer, self.gated = w, bank.mixer, bank.gated
        keys = bank.mixer.keys
        self.sources, self.layers, self.tokens, self.width = keys.shape
        self.mix = mix
        self.bias: ir.Value | None = None
        self.flat: dict[str, ir.Value] = {}
        if bank.gated:
            self.mix = self._share_of_prompts(mix)
        row = w.reshape("mix.row", self.mix, 1, -1)
        column = w.reshape("mix.column", self.mix, -1, 1)
        self.inverse, self.pull = self._spread(column)
        self.raw_keys = self._sum("keys", keys, row)
        self.raw_values = self._sum("values", bank.mixer.values, row)
        k = self._shift("keys", self.raw_keys, bank.mixer.key_bias)
        v = self._shift("values", self.raw_values, bank.mixer.value_bias)
        k, v = self._heads("keys", k), self._heads("values", v)
        k, self.key_back = self._norm_keys(k)
        self.prefix = [
            (self._layer("keys", k, i), self._layer("values", v, i)) for i in range(self.layers)
        ]

    def _share_of_prompts(self, mix: ir.Value) -> ir.Value:
        """Split off "no prompt": its rest is the share, whose logarithm the scores get."""
        w = self.w
        rest = w.op("Slice", "mix.prompts", mix, w.integers(1), w.integers(END), w.integers(0))
        share = w.op("ReduceSum", "mix.share", rest, w.integers(0))  # [1]
        self.share = w.op("Max", "mix.share.positive", share, w.floats("tiny", np.array([TINY])))
        self.bias = w.op("Log", "mix.bias", self.share)
        return w.op("Div", "mix.normalised", rest, self.share)

    def _spread(self, column: ir.Value) -> tuple[ir.Value, ir.Value]:
        """`1 / s(a)` as `[L, T, 1]`, and `G a` as `[L T, P]`, which is half of `d (a^T G a)`."""
        w, mixer = self.w, self.mixer
        gram = mixer.gram.reshape(-1, self.sources)
        pull = w.op("MatMul", "mix.gram.a", w.floats("mix.gram", gram), column)
        pull = w.reshape("mix.pull", pull, -1, self.sources)
        variance = w.op("MatMul", "mix.a.gram.a", pull, column)
        variance = w.op("Max", "mix.variance.positive", variance, scalar(w, 0.0))
        variance = w.op("Div", "mix.variance", variance, scalar(w, float(mixer.width)))
        variance = w.reshape("mix.variance.tokens", variance, self.layers, self.tokens, 1)
        variance = w.op(
            "Add", "mix.variance.eps", variance, w.floats("mix.eps", mixer.eps[:, None, None])
        )
        inverse = w.op("Reciprocal", "mix.inverse", w.op("Sqrt", "mix.s", variance))
        return inverse, pull

    def _sum(self, name: str, projected: Any, row: ir.Value) -> ir.Value:
        """`sum_i a_i A_i`, `[L, T, E]`."""
        self.flat[name] = self.w.floats(f"mix.{name}", projected.reshape(self.sources, -1))
        mixed = self.w.op("MatMul", f"mix.{name}.flat", row, self.flat[name])
        return self.w.reshape(f"mix.{name}.raw", mixed, self.layers, self.tokens, self.width)

    def _shift(self, name: str, raw: ir.Value, bias: Any) -> ir.Value:
        scaled = self.w.op("Mul", f"mix.{name}.scaled", raw, self.inverse)
        if not bias.any():
            return scaled
        return self.w.op(
            "Add", f"mix.{name}.shifted", scaled, self.w.floats(f"mix.{name}.bias", bias[:, None])
        )

    def _heads(self, name: str, x: ir.Value) -> ir.Value:
        """`[L, T, E]` to `[L, H, T, d]`."""
        x = self.w.reshape(f"mix.{name}.split", x, 0, 0, self.mixer.heads, -1)
        return self.w.op("Transpose", f"mix.{name}.heads", x, perm=[0, 2, 1, 3])

    def _norm_keys(self, k: ir.Value) -> tuple[ir.Value, Back]:
        if self.mixer.key_norm is None:
            return k, lambda dy: dy
        scale, bias, eps = self.mixer.key_norm
        w = self.w
        layer = nn.LayerNorm(scale.shape[1], eps=float(eps[0]), elementwise_affine=False)
        z, back = norm(w, "mix.keys.norm", k, layer, affine=False)
        factor = w.floats("mix.keys.norm.scale", scale[:, None, None])
        y = w.op("Mul", "mix.keys.norm.scaled", z, factor)
        y = w.op("Add", "mix.keys.normed", y, w.floats("mix.keys.norm.bias", bias[:, None, None]))
        return y, lambda dy: back(w.op("Mul", "mix.keys.norm.back.scaled", dy, factor))

    def _layer(self, name: str, x: ir.Value, layer: int) -> ir.Value:
        """`[1, H, T, d]` of one layer."""
        return self.w.part(f"mix.{name}.{layer}", x, layer, layer + 1, axis=0)

    def back(self, d_prefix: list[tuple[ir.Value, ir.Value]], d_bias: list[ir.Value]) -> ir.Value:
        """Gradient `[M]` of the mix from those of all prefixes, each `[1, H, T, d]`."""
        w = self.w
        d_keys, d_values = (
            w.op("Concat", f"mix.back.{name}", *parts, axis=0)
            for name, parts in zip(("keys", "values"), zip(*d_prefix, strict=True), strict=True)
        )
        d_keys = self._merge("keys", self.key_back(d_keys))
        d_values = self._merge("values", d_values)
        d_inverse = w.op(
            "Add",
            "mix.back.inverse",
            w.op("Mul", "mix.back.keys.along", d_keys, self.raw_keys),
            w.op("Mul", "mix.back.values.along", d_values, self.raw_values),
        )
        d_inverse = w.op("ReduceSum", "mix.back.inverse.sum", d_inverse, w.integers(2))  # [L, T, 1]
        cube = w.op("Mul", "mix.inverse.2", self.inverse, self.inverse)
        cube = w.op("Mul", "mix.inverse.3", cube, self.inverse)
        # d (1 / s) = -s^-3 / 2 d s^2, and d s^2 = 2 / D a^T G da.
        d_square = w.op("Mul", "mix.back.cube", d_inverse, cube)
        d_square = w.op("Mul", "mix.back.square", d_square, scalar(w, -1 / self.mixer.width))
        d_square = w.reshape("mix.back.square.row", d_square, 1, -1)
        total = w.op("MatMul", "mix.back.spread", d_square, self.pull)  # [1, P]
        for name, d in (("keys", d_keys), ("values", d_values)):
            scaled = w.op("Mul", f"mix.back.{name}.scaled", d, self.inverse)
            flat = w.reshape(f"mix.back.{name}.flat", scaled, 1, -1)
            part = w.op("Gemm", f"mix.back.{name}.sources", flat, self.flat[name], transB=1)
            total = w.op("Add", f"mix.back.{name}.total", total, part)
        total = w.reshape("mix.back.prompts", total, -1)
        return self._with_no_prompt(total, d_bias) if self.gated else total

    def _merge(self, name: str, x: ir.Value) -> ir.Value:
        """`[L, H, T, d]` to `[L, T, E]`."""
        x = self.w.op("Transpose", f"mix.back.{name}.tokens", x, perm=[0, 2, 1, 3])
        return self.w.reshape(f"mix.back.{name}.merged", x, 0, 0, -1)

    def _with_no_prompt(self, d_normalised: ir.Value, d_bias: list[ir.Value]) -> ir.Value:
        """From `b = r / sum(r)` and `log sum(r)` to `r`; "no prompt" itself enters no formula."""
        w = self.w
        along = w.op("Mul", "mix.back.along", d_normalised, self.mix)
        along = w.op("ReduceSum", "mix.back.along.sum", along, w.integers(0))
        rest = w.op("Sub", "mix.back.tangent", d_normalised, along)
        bias = w.op("Sum", "mix.back.bias", *d_bias)
        rest = w.op("Add", "mix.back.with_bias", rest, bias)
        rest = w.op("Div", "mix.back.share", rest, self.share)
        return w.op("Concat", "d_mix", w.floats("zero", np.zeros(1)), rest, axis=0)


def _features(
    w: Writer, model: VisionTransformer, bundle: Bundle, image: ir.Value, mixed: _Mix
) -> tuple[ir.Value, Any]:
    """Pixels to features `[batch, D]`; back, to the gradient of the mix."""
    batch = w.op("Shape", "batch", image, start=0, end=1)
    x = embed_patches(w, model, bundle.preprocessing, image)
    fixed = fixed_tokens(model, None)
    if len(fixed):
        x = w.op("Concat", "tokens", w.repeat("tokens.fixed", fixed[None], batch), x, axis=1)
    count = len(fixed) + int(model.patch_embed.num_patches)
    x = w.reshape("tokens.flat", x, -1, model.embed_dim)
    mask = _mask(w, mixed, count)
    blocks = []
    for index, block in enumerate(model.blocks):
        last = index == len(model.blocks) - 1 and model.global_pool == "token"
        step = _Block(w, f"blocks.{index}", block, count, mixed.tokens, first=index == 0, last=last)
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


def _mask(w: Writer, mixed: _Mix, count: int) -> ir.Value | None:
    """`[T + N]`: what the scores get where "no prompt" has a share."""
    if mixed.bias is None:
        return None
    bias = w.op("Expand", "mix.bias.tokens", mixed.bias, w.integers(mixed.tokens))
    rest = w.floats("mix.bias.none", np.zeros(count))
    return w.op("Concat", "mix.bias.mask", bias, rest, axis=0)


class _Block:
    """One block on `x [batch N, D]`: forward, and back to its input and its prefix."""

    d_prefix: tuple[ir.Value, ir.Value]
    d_bias: ir.Value | None = None

    def __init__(
        self,
        w: Writer,
        name: str,
        block: Any,
        count: int,
        tokens: int,
        *,
        first: bool,
        last: bool,
    ) -> None:
        self.w, self.name, self.block, self.count, self.tokens = w, name, block, count, tokens
        self.first, self.last = first, last
        self.layer: Layer = prepare(block, None, REWRITES)
        self.fc1 = rewrites.fold_affine(block.norm2, rewrites.linear_of(block.mlp.fc1))
        self.fc2 = rewrites.fold_layer_scale(rewrites.linear_of(block.mlp.fc2), block.ls2)

    def forward(
        self,
        x: ir.Value,
        prefix: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        batch: ir.Value,
    ) -> ir.Value:
        """Tokens to tokens, or to the class tokens `[batch, D]` alone in the last block."""
        w, name = self.w, self.name
        z, self.norm1_back = norm(w, f"{name}.norm1", x, self.block.norm1, affine=False)
        attended, self.attention_back = self._attend(z, prefix, mask, batch)
        if self.last:
            x = self._class_rows("class", x)
        x = w.op("Add", f"{name}.residual1", x, attended)
        z, self.norm2_back = norm(w, f"{name}.norm2", x, self.block.norm2, affine=False)
        z, self.mlp_back = mlp(w, f"{name}.mlp", z, self.fc1, self.block.mlp.act, self.fc2)
        return w.op("Add", f"{name}.residual2", x, z)

    def back(self, dy: ir.Value) -> ir.Value | None:
        """Gradient of the input; None in the first block, below which nothing is learned."""
        w, name = self.w, self.name
        d_mlp = self.norm2_back(self.mlp_back(dy))
        dx = w.op("Add", f"{name}.residual2.back", dy, d_mlp)
        dz = self.attention_back(dx)
        if dz is None:
            return None
        dz = self.norm1_back(dz)
        if self.last:
            return self._add_to_class_rows("residual1.back", dz, dx)
        return w.op("Add", f"{name}.residual1.back", dx, dz)

    def _class_rows(self, what: str, x: ir.Value) -> ir.Value:
        """`[batch N, D]` to the class tokens `[batch, D]`."""
        w, name = self.w, f"{self.name}.{what}"
        x = w.reshape(f"{name}.images", x, -1, self.count, self._width())
        return w.reshape(f"{name}.rows", w.part(f"{name}.part", x, 0, 1), -1, self._width())

    def _add_to_class_rows(self, what: str, x: ir.Value, rows: ir.Value) -> ir.Value:
        """Add `[batch, D]` to the class tokens among `x [batch N, D]`."""
        w, name, width = self.w, f"{self.name}.{what}", self._width()
        x = w.reshape(f"{name}.images", x, -1, self.count, width)
        first, others = w.part(f"{name}.first", x, 0, 1), w.part(f"{name}.others", x, 1, END)
        rows = w.reshape(f"{name}.class", rows, -1, 1, width)
        first = w.op("Add", f"{name}.sum", first, rows)
        joined = w.op("Concat", f"{name}.joined", first, others, axis=1)
        return w.reshape(name, joined, -1, width)

    def _width(self) -> int:
        return len(self.layer.k[0])

    def _attend(
        self,
        z: ir.Value,
        prefix: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        batch: ir.Value,
    ) -> tuple[ir.Value, Any]:
        """Attention of all tokens, or of the class tokens, over prefix and image."""
        w, name, layer = self.w, f"{self.name}.attn", self.layer
        (q, k, v), project_back = self._project(z)
        q, q_back = norm(w, f"{name}.q_norm", q, layer.q_norm, affine=True, factor=layer.scale)
        k, k_back = norm(w, f"{name}.k_norm", k, layer.k_norm, affine=True)
        k = self._join("k", prefix[0], k, batch)
        v = self._join("v", prefix[1], v, batch)
        scores = w.op("MatMul", f"{name}.scores", q, self._turn("k", k))
        if mask is not None:
            scores = w.op("Add", f"{name}.scores.masked", scores, mask)
        shares = w.op("Softmax", f"{name}.softmax", scores, axis=-1)  # [batch, H, rows, T + N]
        mixed = w.op("MatMul", f"{name}.mixed", shares, v)
        merged = w.op("Transpose", f"{name}.mixed.tokens", mixed, perm=[0, 2, 1, 3])
        merged = w.reshape(f"{name}.mixed.merge", merged, -1, self._width())
        y, projection_back = linear(w, f"{name}.proj", merged, layer.projection)

        def back(dy: ir.Value) -> ir.Value | None:
            d_mixed = projection_back(dy)
            rows = 1 if self.last else self.count
            d_mixed = w.reshape(
                f"{name}.back.split", d_mixed, -1, rows, layer.heads, self._width() // layer.heads
            )
            d_mixed = w.op("Transpose", f"{name}.back.heads", d_mixed, perm=[0, 2, 1, 3])
            # sum_j p_j dp_j = <d mixed, mixed>: one row sum of width d in place of one of T + N.
            along = w.op("Mul", f"{name}.back.product", d_mixed, mixed)
            along = w.op("ReduceSum", f"{name}.back.along", along, w.integers(-1))
            d_shares = w.op("MatMul", f"{name}.back.shares", d_mixed, self._turn("back.v", v))
            d_scores = w.op("Sub", f"{name}.back.centred", d_shares, along)
            d_scores = w.op("Mul", f"{name}.back.scores", d_scores, shares)
            if mask is not None:
                self.d_bias = self._sum_prefix(d_scores)
            if self.first:
                self.d_prefix = self._prefix_only(d_scores, shares, q, d_mixed)
                return None
            d_k = w.op("MatMul", f"{name}.back.k", self._turn("back.scores", d_scores), q)
            d_v = w.op("MatMul", f"{name}.back.v", self._turn("back.softmax", shares), d_mixed)
            d_q = w.op("MatMul", f"{name}.back.q", d_scores, k)
            d_prefix_k, d_k = self._cut("k", d_k)
            d_prefix_v, d_v = self._cut("v", d_v)
            self.d_prefix = d_prefix_k, d_prefix_v
            return cast("ir.Value", project_back(q_back(d_q), k_back(d_k), d_v))

        return y, back

    def _project(self, z: ir.Value) -> tuple[list[ir.Value], Any]:
        """Form queries, keys and values, each `[batch, H, *, d]`."""
        w, name, layer = self.w, f"{self.name}.attn", self.layer
        if not self.last:
            joined, back = linear(w, f"{name}.qkv", z, rewrites.join(layer.q, layer.k, layer.v))
            parts = self._split_heads("qkv", joined, 3, self.count)
            return parts, lambda *d: back(self._join_heads("qkv.back", *d))
        q, q_back = linear(w, f"{name}.q", self._class_rows("attn.q.class", z), layer.q)
        joined, back = linear(w, f"{name}.kv", z, rewrites.join(layer.k, layer.v))
        parts = self._split_heads("q", q, 1, 1) + self._split_heads("kv", joined, 2, self.count)

        def both(d_q: ir.Value, d_k: ir.Value, d_v: ir.Value) -> ir.Value:
            dz = back(self._join_heads("kv.back", d_k, d_v))
            return self._add_to_class_rows(
                "attn.z.back", dz, q_back(self._join_heads("q.back", d_q))
            )

        return parts, both

    def _split_heads(self, what: str, x: ir.Value, parts: int, rows: int) -> list[ir.Value]:
        """`[batch rows, parts D]` to so many of `[batch, H, rows, d]`."""
        w, name, heads = self.w, f"{self.name}.attn.{what}", self.layer.heads
        x = w.reshape(f"{name}.split", x, -1, rows, parts, heads, self._width() // heads)
        x = w.op("Transpose", f"{name}.heads", x, perm=[2, 0, 3, 1, 4])
        return [
            w.op("Gather", f"{name}.{i}", x, w.constant(f"index.{i}", np.array(i)))
            for i in range(parts)
        ]

    def _join_heads(self, what: str, *parts: ir.Value) -> ir.Value:
        """Undo `_split_heads`."""
        w, name = self.w, f"{self.name}.attn.{what}"
        raised = [w.op("Unsqueeze", f"{name}.{i}", x, w.integers(0)) for i, x in enumerate(parts)]
        x = w.op("Concat", f"{name}.joined", *raised, axis=0) if len(raised) > 1 else raised[0]
        x = w.op("Transpose", f"{name}.tokens", x, perm=[1, 3, 0, 2, 4])
        return w.reshape(f"{name}.merged", x, -1, len(parts) * self._width())

    def _join(self, which: str, prefix: ir.Value, x: ir.Value, batch: ir.Value) -> ir.Value:
        """Prefix `[1, H, T, d]` before the keys or values `[batch, H, N, d]`."""
        w, name = self.w, f"{self.name}.attn.prefix_{which}"
        heads, width = self.layer.heads, self._width()
        shape = w.integers(heads, self.tokens, width // heads)
        shape = w.op("Concat", f"{name}.shape", batch, shape, axis=0)
        repeated = w.op("Expand", f"{name}.batch", prefix, shape)
        return w.op("Concat", f"{name}.joined", repeated, x, axis=2)

    def _turn(self, what: str, x: ir.Value) -> ir.Value:
        return self.w.op("Transpose", f"{self.name}.attn.{what}.turned", x, perm=[0, 1, 3, 2])

    def _cut(self, which: str, d: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Gradient `[batch, H, T + N, d]`: what is the prefix's, summed, and the image's."""
        w, name = self.w, f"{self.name}.attn.back.{which}"
        count = self.tokens
        mine = w.op(
            "ReduceSum",
            f"{name}.prefix.sum",
            w.part(f"{name}.prefix", d, 0, count, axis=2),
            w.integers(0),
        )
        return mine, w.part(f"{name}.image", d, count, END, axis=2)

    def _prefix_only(
        self, d_scores: ir.Value, shares: ir.Value, q: ir.Value, d_mixed: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Gradients of the prefix alone, for the block below which nothing is learned."""
        w, name, count = self.w, f"{self.name}.attn.back", self.tokens
        found = []
        for which, x, y in (("k", d_scores, q), ("v", shares, d_mixed)):
            mine = w.part(f"{name}.{which}.prefix.rows", x, 0, count, axis=3)
            d = w.op("MatMul", f"{name}.{which}", self._turn(f"back.{which}.prefix", mine), y)
            found.append(w.op("ReduceSum", f"{name}.{which}.sum", d, w.integers(0)))
        return found[0], found[1]

    def _sum_prefix(self, d_scores: ir.Value) -> ir.Value:
        """Gradient `[1]` of what all scores of the prefix get."""
        w, name = self.w, f"{self.name}.attn.back.bias"
        mine = w.part(f"{name}.scores", d_scores, 0, self.tokens, axis=3)
        total = w.op("ReduceSum", f"{name}.sum", mine, keepdims=0)
        return w.reshape(name, total, 1)


def _pool(
    w: Writer, model: VisionTransformer, x: ir.Value, first: int, count: int
) -> tuple[ir.Value, Back]:
    """Features `[batch, D]`: the class tokens, or the average over the tokens from `first` on."""
    last, width = last_norm(model), model.embed_dim
    x, norm_back = norm(w, "norm", x, model.norm, affine=model.norm is not last)
    if model.global_pool == "avg":
        x = w.reshape("pool.images", x, -1, count, width)
        x = w.part("pool.patches", x, first, count)
        x = w.op("ReduceMean", "pool", x, w.integers(1), keepdims=0)
    x, fc_norm_back = norm(w, "fc_norm", x, model.fc_norm, affine=model.fc_norm is not last)

    def back(dy: ir.Value) -> ir.Value:
        dy = fc_norm_back(dy)
        if model.global_pool == "avg":
            share = np.zeros((count, 1))
            share[first:] = 1 / (count - first)
            dy = w.reshape("pool.back.images", dy, -1, 1, width)
            dy = w.op("Mul", "pool.back.tokens", dy, w.floats("pool.share", share))
            dy = w.reshape("pool.back", dy, -1, width)
        return norm_back(dy)

    return x, back
