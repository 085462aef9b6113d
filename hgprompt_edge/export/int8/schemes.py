"""Ways to quantize a graph to int8, from the fastest to the safest, for each runtime."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.task import Images
from hgprompt_edge.errors import MissingPackageError
from hgprompt_edge.export.int8.pairs import bound_pairs
from hgprompt_edge.export.ir_file import save_ir
from hgprompt_edge.runtime.engines.openvino_engine import import_openvino

Pixels = npt.NDArray[np.uint8]
Given = Mapping[str, npt.NDArray[np.float32]]
"""What a graph takes beside the image."""
Fed = Given | Sequence[Given]
"""What calibration feeds beside the images: the same with all, or one with each."""


@dataclass(frozen=True)
class Scheme:
    """A way to quantize: `write(float ONNX file, calibration images, file to write)`."""

    name: str
    write: Callable[[Path, Pixels, Path], None]


@dataclass(frozen=True)
class Control:
    """What NNCF's accuracy control goes by: it takes layers back to float until a model is good.

    Attributes
    ----------
    images
        Held-out images.
    probabilities
        Of the classes `[n, K]`, from what the graph puts out.
    max_drop
        Points of accuracy that may be lost.
    """

    images: Images
    probabilities: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    max_drop: float


def onnx_schemes(depth: int, given: Fed | None = None, prompts: int = 1) -> list[Scheme]:
    """Schemes of onnxruntime for a ViT of `depth` blocks and a number of folded `prompts`.

    `given` is what calibration feeds beside the images.

    Only products with constant matrices are quantized; those of activations with each other stay
    in float. Weights have a scale for each column and give the same sums on every CPU (`pairs.py`).
    """
    ends = _in_float(depth, prompts)
    outer = ends + _outer(depth)
    return [
        Scheme("dynamic", lambda *files: _dynamic(*files, exclude=ends)),
        Scheme("static", lambda *files: _static(*files, exclude=ends, given=given or {})),
        Scheme("dynamic, outer blocks in float", lambda *files: _dynamic(*files, exclude=outer)),
        Scheme(
            "dynamic, outer blocks and second MLP layers in float",
            lambda *files: _dynamic(
                *files, exclude=outer + [f"blocks.{i}.mlp.fc2.matmul" for i in range(depth)]
            ),
        ),
    ]


def openvino_schemes(
    depth: int, control: Control | None = None, prompts: int = 1, given: Fed | None = None
) -> list[Scheme]:
    """Schemes of NNCF: without SmoothQuant, with three strengths of it, then outer blocks in float.

    NNCF quantizes products alone; residual sums are in float in all of them. With `control` its
    search for the layers that must stay in float takes the place of the first four. A head that is
    `given` with the image stays in float.

    Raises
    ------
    UserError
        NNCF is not installed.
    """
    if find_spec("nncf") is None:
        raise MissingPackageError("int8 for OpenVINO", "nncf", "int8")
    # No gain in so small products.
    fed = given or {}
    # Attention of tokens that come in is one kernel of floats, too, written in three operators.
    apart = [r"head\..*", r"blocks\.\d+\.attn\.(scores|softmax|mixed)"] if fed else []
    ends = [rf"{re.escape(name)}.*" for name in _in_float(depth, prompts)] + apart
    # Smoothing is a pass over memory before each product: it comes where the plain way loses.
    sweep = [
        Scheme(name, lambda *files, a=alpha: _nncf(*files, alpha=a, patterns=ends, given=fed))
        for name, alpha in (
            ("static", -1.0),
            *((f"SmoothQuant {alpha}", alpha) for alpha in (0.15, 0.5, 0.95)),
        )
    ]
    if control is not None:
        sweep = [
            Scheme(
                "SmoothQuant 0.15, accuracy control",
                lambda *files: _nncf(*files, alpha=0.15, patterns=ends, given=fed, control=control),
            )
        ]
    outer = [rf"blocks\.{i}\..*" for i in sorted({0, depth - 1})] + ["patch_embed.*", *apart]
    safest = Scheme(
        "SmoothQuant 0.15, outer blocks in float",
        lambda *files: _nncf(*files, alpha=0.15, patterns=outer, given=fed),
    )
    return [*sweep, safest]


def _in_float(depth: int, prompts: int) -> list[str]:
    """Nodes with one matrix a head, for which onnxruntime writes zero points of a wrong shape."""
    parts = ("q.absorbed", "mixed", "prefix.scores", "prefix.mixed")
    places = [""] if prompts == 1 else [f"{index}." for index in range(prompts)]
    return [f"blocks.{depth - 1}.attn.{place}{part}" for place in places for part in parts]


def _outer(depth: int) -> list[str]:
    """Nodes at both ends of the network, where rounding hurts most."""
    layers = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = sorted({0, depth - 1})
    return [
        "patch_embed.matmul",
        *(f"blocks.{i}.{layer}.matmul" for i in blocks for layer in layers),
    ]


def _dynamic(graph: Path, _: Pixels, path: Path, *, exclude: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exclude,
            extra_options={"MatMulConstBOnly": True},
        )
    bound_pairs(path, graph)


def _static(graph: Path, images: Pixels, path: Path, *, exclude: list[str], given: Fed) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet():
        quantize_static(
            graph,
            path,
            _Reader(images, given),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exclude,
            extra_options={"MatMulConstBOnly": True},
        )
    bound_pairs(path, graph)


class _Reader:
    """Feeds the calibration one image at a time, as onnxruntime asks for them."""

    def __init__(self, images: Pixels, given: Fed) -> None:
        self._feeds = iter(_feeds(images, given))

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the next input, None at the end."""
        return next(self._feeds, None)


def _feeds(images: Pixels, given: Fed) -> list[dict[str, npt.NDArray[Any]]]:
    """One input for each image."""
    each = [given] * len(images) if isinstance(given, Mapping) else given
    return [{"image": image[None], **rest} for image, rest in zip(images, each, strict=True)]


def _nncf(
    graph: Path,
    images: Pixels,
    path: Path,
    *,
    alpha: float,
    patterns: list[str],
    given: Fed,
    control: Control | None = None,
) -> None:
    ov = import_openvino()
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    smooth = AdvancedSmoothQuantParameters(matmul=alpha)
    # Weights of seven bits, as CPUs without VNNI need them (`pairs.py`); NNCF's default gives them
    # to the first convolution only, and a model must be right wherever it may run.
    advanced = AdvancedQuantizationParameters(
        smooth_quant_alphas=smooth, overflow_fix=OverflowFix.ENABLE
    )
    model, calibration = ov.convert_model(graph), nncf.Dataset(_feeds(images, given))
    common = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(images),
        # The attention kernel takes floats: int8 queries and keys would only be converted back.
        "ignored_scope": nncf.IgnoredScope(
            patterns=patterns, types=["ScaledDotProductAttention"], validate=False
        ),
    }
    with _quiet():
        if control is None:
            model = nncf.quantize(model, calibration, advanced_parameters=advanced, **common)
        else:
            pairs = list(zip(control.images.pixels[:, None], control.images.labels, strict=True))
            model = nncf.quantize_with_accuracy_control(
                model,
                calibration,
                nncf.Dataset(pairs, lambda pair: pair[0]),
                functools.partial(_measure, control),
                max_drop=control.max_drop / 100,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_quantization_parameters=advanced,
                **common,
            )
    save_ir(model, path)


def _measure(
    control: Control, model: Any, pairs: Iterable[tuple[Pixels, int]]
) -> tuple[float, list[float]]:
    """Accuracy of a compiled model, and the probability of each image's class, to rank layers."""
    items = list(pairs)
    features = np.concatenate([model(pixels)[0] for pixels, _ in items])
    labels = np.array([label for _, label in items])
    found = control.probabilities(features)
    right = found[np.arange(len(labels)), labels]
    return float((found.argmax(1) == labels).mean()), [float(share) for share in right]


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
