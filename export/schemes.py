"""Ways to quantize a graph to int8, from the fastest to the safest, for each runtime."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import UserError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scheme:
    """A way to quantize: `write(float ONNX file, calibration images, file to write)`."""

    name: str
    write: Callable[[Path, Pixels, Path], None]


def onnx_schemes(depth: int) -> list[Scheme]:
    """Schemes of onnxruntime for a ViT of `depth` blocks.

    Only products with constant matrices are quantized; those of activations with each other stay
    in float. Weights have a scale for each column.
    """
    ends, outer = _in_float(depth), _in_float(depth) + _outer(depth)
    return [
        Scheme("dynamic", lambda *files: _dynamic(*files, exclude=ends)),
        Scheme("static", lambda *files: _static(*files, exclude=ends)),
        Scheme("dynamic, outer blocks in float", lambda *files: _dynamic(*files, exclude=outer)),
        Scheme(
            "dynamic, outer blocks and second MLP layers in float",
            lambda *files: _dynamic(
                *files, exclude=outer + [f"blocks.{i}.mlp.fc2.matmul" for i in range(depth)]
            ),
        ),
    ]


def openvino_schemes(depth: int) -> list[Scheme]:
    """Schemes of NNCF: SmoothQuant with three strengths, then the outer blocks in float.

    Raises
    ------
    UserError
        NNCF is not installed.
    """
    if find_spec("nncf") is None:
        raise UserError(
            "--precision int8 for OpenVINO needs nncf, which is not installed; "
            "run `pip install 'hgprompt-edge[int8]'`"
        )
    sweep = [
        Scheme(f"SmoothQuant {alpha}", lambda *files, a=alpha: _nncf(*files, alpha=a, patterns=[]))
        for alpha in (0.15, 0.5, 0.95)
    ]
    outer = [rf"blocks\.{i}\..*" for i in sorted({0, depth - 1})] + ["patch_embed.*", "logits.*"]
    safest = Scheme(
        "SmoothQuant 0.15, outer blocks in float",
        lambda *files: _nncf(*files, alpha=0.15, patterns=outer),
    )
    return [*sweep, safest]


def _in_float(depth: int) -> list[str]:
    """Nodes with one matrix a head, for which the quantizer writes zero points of a wrong shape."""
    parts = ("q.absorbed", "mixed", "prefix.scores", "prefix.mixed")
    return [f"blocks.{depth - 1}.attn.{part}" for part in parts]


def _outer(depth: int) -> list[str]:
    """Nodes at both ends of the network, where rounding hurts most."""
    layers = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = sorted({0, depth - 1})
    return [
        "patch_embed.matmul",
        "logits",
        *(f"blocks.{i}.{layer}.matmul" for i in blocks for layer in layers),
    ]


def _dynamic(graph: Path, _: Pixels, path: Path, *, exclude: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exclude,
            extra_options={"MatMulConstBOnly": True},
        )


def _static(graph: Path, images: Pixels, path: Path, *, exclude: list[str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet():
        quantize_static(
            graph,
            path,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exclude,
            extra_options={"MatMulConstBOnly": True},
        )


class _Reader:
    """Feeds the calibration one image at a time, as onnxruntime asks for them."""

    def __init__(self, images: Pixels) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next input, None at the end."""
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def _nncf(graph: Path, images: Pixels, path: Path, *, alpha: float, patterns: list[str]) -> None:
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    smooth = AdvancedSmoothQuantParameters(matmul=alpha)
    with _quiet():
        model = nncf.quantize(
            ov.convert_model(graph),
            nncf.Dataset([image[None] for image in images]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False),
            advanced_parameters=AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
        )
    ov.save_model(model, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizers' own words off stdout, which holds results alone."""
    before: Any = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)
