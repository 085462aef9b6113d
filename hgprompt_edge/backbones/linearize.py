"""Features of many images and the way back from them to the prompt, within bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.compute import available_memory
from hgprompt_edge.backbones.forward import features_prefix, normalize
from hgprompt_edge.backbones.passes import in_parts, part_slices, run_parts
from hgprompt_edge.errors import is_out_of_memory
from hgprompt_edge.images.preprocess import Preprocessing

Inputs = Callable[[slice], Tensor]
"""Normalised images `[n, 3, S, S]` of a part."""
Pixels = npt.NDArray[np.uint8]
Graph = tuple[Tensor, Tensor]
"""A prompt and the features that were computed from it."""

MEMORY_SHARE = 0.25
"""Of the free memory that activations may take; what does not fit is computed again."""


def pull_parts(
    backbone: Backbone, inputs: Inputs, images: int, prompt: Tensor, cotangent: Tensor
) -> Tensor:
    """`dJ / dP [L, T, D]` for a `dJ / df [n, D]`, holding one part's activations."""

    def backward(model: VisionTransformer, part: slice) -> Tensor:
        return _gradient(_with_graph(model, inputs(part), prompt), cotangent[part])

    return _total(in_parts(backbone, images, backward), backbone)


class Linearized:
    """Features of images under a prompt, and their gradient.

    A loss of all features needs them before the first gradient can be taken. Each part of the
    images keeps its activations until then where memory allows, and runs again where not.

    Attributes
    ----------
    features
        `[n, D]` float32 on the CPU, without a graph.
    """

    def __init__(self, backbone: Backbone, inputs: Inputs, images: int, prompt: Tensor) -> None:
        self._backbone, self._inputs = backbone, inputs
        self._images, self._prompt = images, prompt
        self._graphs: list[Graph | None] = []
        self._parts = part_slices(backbone, images)
        try:
            found = run_parts(backbone, self._parts, self._forward(self._kept()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is None:  # the parts are halved until they fit, and keep nothing
            features = in_parts(backbone, images, self._forward(frozenset()))
            self.features = torch.cat([value for value, _ in features])
            return
        self.features = torch.cat([value for value, _ in found])
        self._graphs = [graph for _, graph in found]

    def pull(self, cotangent: Tensor) -> Tensor:
        """`dJ / dP [L, T, D]` for a `dJ / df [n, D]`, once; the sum over parts is float64."""
        graphs = dict(zip((part.start for part in self._parts), self._graphs, strict=False))
        self._graphs = []

        def backward(model: VisionTransformer, part: slice) -> Tensor:
            graph = graphs.pop(part.start, None)
            graph = graph or _with_graph(model, self._inputs(part), self._prompt)
            return _gradient(graph, cotangent[part])

        try:
            return _total(run_parts(self._backbone, self._parts, backward), self._backbone)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            graphs.clear()
        return pull_parts(self._backbone, self._inputs, self._images, self._prompt, cotangent)

    def _kept(self) -> frozenset[int]:
        """First images of the parts whose activations fit into memory together."""
        memory = MEMORY_SHARE * available_memory(self._backbone.compute.device)
        each = activation_bytes(self._backbone, self._prompt.shape[1])
        return frozenset(part.start for part in self._parts if part.stop * each <= memory)

    def _forward(
        self, kept: frozenset[int]
    ) -> Callable[[VisionTransformer, slice], tuple[Tensor, Graph | None]]:
        def forward(model: VisionTransformer, part: slice) -> tuple[Tensor, Graph | None]:
            images = self._inputs(part)
            if part.start not in kept:
                with torch.no_grad():
                    return _features(model, images, self._prompt).float().cpu(), None
            graph = _with_graph(model, images, self._prompt)
            return graph[1].detach().float().cpu(), graph

        return forward


def _features(model: VisionTransformer, images: Tensor, prompt: Tensor) -> Tensor:
    like = next(model.parameters())
    return features_prefix(model, images.to(like), prompt.to(like))


def _with_graph(model: VisionTransformer, images: Tensor, prompt: Tensor) -> Graph:
    with torch.enable_grad():
        leaf = prompt.detach().to(next(model.parameters()), copy=True).requires_grad_(True)
        return leaf, _features(model, images, leaf)


def _gradient(graph: Graph, cotangent: Tensor) -> Tensor:
    prompt, features = graph
    (gradient,) = torch.autograd.grad(features, prompt, cotangent.to(features))
    return gradient.cpu().double()  # there first: mps has no float64


def _total(gradients: list[Tensor], backbone: Backbone) -> Tensor:
    dtype: torch.dtype = getattr(torch, backbone.compute.precision)
    return torch.stack(gradients).sum(0).to(torch.promote_types(dtype, torch.float32))


def pixel_inputs(backbone: Backbone, pixels: Pixels) -> Inputs:
    """Parts of pixels `[n, S, S, 3]`, normalised on the device that they run on."""
    device = backbone.compute.device
    preprocessing: Preprocessing = backbone.preprocessing

    def inputs(part: slice) -> Tensor:
        images = torch.from_numpy(np.array(pixels[part])).to(device)
        return normalize(images, preprocessing)

    return inputs


def activation_bytes(backbone: Backbone, num_tokens: int) -> int:
    """About what one image's graph holds under a deep prompt of so many tokens.

    The inputs of both norms and of the activation, queries, keys, values and attention.
    """
    tokens = (backbone.image_size // backbone.patch_size) ** 2 + 1
    scores = 2 * backbone.num_heads * (tokens + num_tokens)
    numbers = backbone.depth * tokens * (16 * backbone.embed_dim + scores)
    dtype: torch.dtype = getattr(torch, backbone.compute.precision)
    return numbers * dtype.itemsize
