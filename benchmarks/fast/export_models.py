"""The models of `benchmarks/export.py`: random weights, what others export, and our forms."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hgprompt_edge.maths.head import Head

TOKENS, CLASSES = 50, 10
NAMES = {"ti": "vit_tiny_patch16_224", "s": "vit_small_patch16_224", "b": "vit_base_patch16_224"}
CHOICES = {"deep": "learned", "shallow": "learned", "none": "none"}


def make_backbone(name: str) -> Any:
    import timm
    import torch

    from hgprompt_edge.backbones.backbone import wrap_backbone

    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=224)
    with torch.no_grad():  # away from the neutral start, so that a wrong folding shows
        for key, parameter in vit.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return wrap_backbone(name, vit)


def make_bundle(backbone: Any, mode: str) -> Any:
    """Random prompt and head for a backbone; `mode` is `deep`, `shallow` or `none`."""
    from hgprompt_edge.artifacts.bundle import Bundle

    rng = np.random.default_rng(0)
    layers = {"deep": backbone.depth, "shallow": 1, "none": 0}[mode]
    prompt = rng.normal(size=(layers, TOKENS, backbone.embed_dim)).astype(np.float32)
    head = rng.normal(size=(CLASSES, backbone.embed_dim)).astype(np.float32)
    size = backbone.image_size
    return Bundle(
        task="bench",
        classes=tuple(str(i) for i in range(CLASSES)),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        preprocessing=backbone.preprocessing,
        mode="shallow" if mode == "shallow" else "deep",
        pooling=backbone.pooling,
        choice=CHOICES[mode],
        prompt=prompt if layers else None,
        weights=np.ones(1, np.float32),
        learned_weights=np.ones(1, np.float32),
        head=Head(head, np.zeros(CLASSES, np.float32)),
        sources=(),
        table=(),
        objective={},
        probe_images=np.zeros((0, size, size, 3), np.uint8),
        probe_logits=np.zeros((0, CLASSES), np.float32),
    )


def steps(full: bool) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Forms of ours: the rewrites one after the other, then other ways to write attention.

    With each the runtimes that it is for. Not `full`: the first and the last alone.
    """
    from hgprompt_edge.export.graph.rewrites import NO_REWRITES, Attention, Rewrites

    both = ("onnxruntime", "openvino")
    on = NO_REWRITES
    yield "folded", on, both
    if full:
        for name in ("class_row", "affine", "biases", "absorbed"):
            on = replace(on, **{name: True})
            yield f"+{name}", on, both
        yield "+joined", replace(on, joined=True), both
        yield "+fused", replace(on, attention=Attention.FUSED), ("onnxruntime",)
        yield "+standard", replace(on, attention=Attention.STANDARD), ("openvino",)
    yield "hgedge", Rewrites(attention=Attention.STANDARD), ("onnxruntime",)
    yield "hgedge", Rewrites(attention=Attention.PAST), ("openvino",)


def trace(backbone: Any, bundle: Any, path: Path) -> None:
    """Write what a user exports today: PyTorch's own exporter on the token form."""
    import torch

    size = backbone.image_size
    with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        program = torch.onnx.export(
            token_module(backbone, bundle),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    program.save(path)


def token_module(backbone: Any, bundle: Any) -> Any:
    """Make the token form a module, written so that tracing keeps the batch dynamic."""
    import torch

    from hgprompt_edge.backbones.forward import normalize, prepare_tokens

    model, start = backbone.model, int(backbone.model.num_prefix_tokens)
    prompt = None if bundle.prompt is None else torch.tensor(bundle.prompt)
    head = torch.tensor(bundle.head.weight).T.contiguous()

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = model

        def forward(self, image: Any) -> Any:
            x = prepare_tokens(self.vit, normalize(image, bundle.preprocessing))
            taken = start
            for layer, block in enumerate(self.vit.blocks):
                if prompt is not None and layer < len(prompt):
                    given = prompt[layer].unsqueeze(0).expand(image.shape[0], -1, -1)
                    x = torch.cat([x[:, :start], given, x[:, taken:]], dim=1)
                    taken = start + prompt.shape[1]
                x = block(x)
            if prompt is not None:
                x = torch.cat([x[:, :start], x[:, taken:]], dim=1)
            return self.vit.forward_head(self.vit.norm(x), pre_logits=True) @ head

    return Tokens().eval()


def products(backbone: Any, prompt: str, path: Path) -> float:
    """Write the products with constant matrices of our graph and nothing else: the roofline.

    One after the other, of the same shapes and with weights of their own, the last block on one
    row. It takes the image and does not look at it. Returns its floating-point operations.
    """
    import onnx_ir as ir

    from hgprompt_edge.export.graph.writer import Writer

    width, depth = backbone.embed_dim, backbone.depth
    patch = backbone.model.patch_embed.patch_size[0]
    patches = (backbone.image_size // patch) ** 2
    rows = 1 + patches + (TOKENS if prompt == "shallow" else 0)
    rng, flops = np.random.default_rng(3), 0.0
    w = Writer()
    size = backbone.image_size
    image = ir.val("image", ir.DataType.UINT8, ["batch", size, size, 3])

    def layer(name: str, x: Any, count: int, fan_in: int, fan_out: int) -> Any:
        nonlocal flops
        flops += 2 * count * fan_in * fan_out
        return w.linear(name, x, rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in), None)

    # One pixel of the image, so that nothing can be computed ahead of it.
    pixel = w.op("Cast", "pixel", w.part("corner", image, 0, 1, axis=1), to=ir.DataType.FLOAT)
    pixel = w.op("ReduceMean", "one", pixel, w.integers(1, 2, 3), keepdims=1)
    pixel = w.op("Squeeze", "first", pixel, w.integers(3))  # [batch, 1, 1]
    ones = w.floats("patches", rng.normal(size=(1, rows, patch * patch * 3)))
    x = layer("patch_embed", w.op("Mul", "x", ones, pixel), rows, patch * patch * 3, width)
    for block in range(depth):
        count = rows
        if block == depth - 1:
            x, count = w.part("row", x, 0, 1), 1
        for name in ("q", "k", "v", "proj"):
            x = layer(f"{block}.{name}", x, count, width, width)
        x = layer(f"{block}.fc1", x, count, width, 4 * width)
        x = layer(f"{block}.fc2", x, count, 4 * width, width)
    logits = layer("head", x, 1, width, CLASSES)
    logits = w.op("Squeeze", "logits", logits, w.integers(1))
    logits.dtype, logits.shape = ir.DataType.FLOAT, ir.Shape(["batch", CLASSES])
    graph = ir.Graph(
        [image], [logits], nodes=w.tape.nodes, initializers=w.tape.initializers,
        opset_imports={"": 20},
    )  # fmt: skip
    ir.save(ir.Model(graph, ir_version=10), path)
    return flops
