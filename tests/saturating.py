"""Run an int8 ONNX file as a CPU without VNNI does, in numpy: products are added in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Ints = npt.NDArray[np.integer[Any]]
INT16 = np.iinfo(np.int16)


def pair_sums(activations: Ints, weights: Ints) -> npt.NDArray[np.int64]:
    """Sums `[..., pair, column]` of two neighbouring products, exact."""
    odd = weights.shape[0] % 2
    a = np.pad(activations.astype(np.int64), [(0, 0)] * (activations.ndim - 1) + [(0, odd)])
    w = np.pad(weights.astype(np.int64), [(0, odd), (0, 0)])
    return a[..., 0::2, None] * w[0::2] + a[..., 1::2, None] * w[1::2]


def saturating_product(activations: Ints, weights: Ints) -> npt.NDArray[np.int64]:
    """`vpmaddubsw`, then sums in 32 bits: uint8 `[..., K]` by int8 `[K, N]`."""
    return pair_sums(activations, weights).clip(INT16.min, INT16.max).sum(-2)


def run_without_vnni(path: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """First output of a quantized file for images `[n, S, S, 3]`."""
    return _run(path, images, saturating_product)


def run_exactly(path: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The same with exact products, as CPUs with VNNI and ARM CPUs compute them."""
    return _run(path, images, lambda a, w: pair_sums(a, w).sum(-2))


def int8_weights(path: Path) -> dict[str, npt.NDArray[np.int8]]:
    """Constant matrices that a quantized file multiplies by, by name."""
    return dict(_int8_weights(onnx.load(path)))


def _int8_weights(model: onnx.ModelProto) -> Iterator[tuple[str, npt.NDArray[np.int8]]]:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim == 2:
            yield tensor.name, array


def _run(path: Path, images: npt.NDArray[np.uint8], product: Any) -> npt.NDArray[np.float32]:
    class MatMulInteger(OpRun):
        op_domain = ""

        def _run(self, a: Any, w: Any, a_zero: Any, w_zero: Any) -> tuple[Any]:
            if w.dtype == np.uint8:  # activations by each other: exact everywhere
                return ((a.astype(np.int32) - a_zero) @ (w.astype(np.int32) - w_zero),)
            assert not w_zero.any(), "weights are symmetric"
            found = product(a, w) - int(a_zero) * w.astype(np.int64).sum(0)
            return (found.astype(np.int32),)

    class DequantizedMatMul(OpRun):
        """A product between two DequantizeLinear, as runtimes fuse them."""

        op_domain = "test"

        def _run(
            self, a: Any, a_scale: Any, a_zero: Any, w: Any, w_scale: Any, w_zero: Any
        ) -> tuple[Any]:
            (found,) = MatMulInteger._run(self, a, w, a_zero, w_zero)
            return ((found * (a_scale * w_scale)).astype(np.float32),)

    model = onnx.load(path)
    _fuse(model)
    evaluator = ReferenceEvaluator(model, new_ops=[MatMulInteger, DequantizedMatMul])
    return np.asarray(evaluator.run(None, {"image": images})[0])


def _fuse(model: onnx.ModelProto) -> None:
    made = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        sources = [made.get(name) for name in node.input]
        kinds = [source.op_type if source else "" for source in sources]
        if node.op_type == "MatMul" and kinds == ["DequantizeLinear"] * 2:
            inputs = [name for source in sources for name in source.input]
            fused = helper.make_node("DequantizedMatMul", inputs, node.output, domain="test")
            node.CopyFrom(fused)
    model.opset_import.append(helper.make_opsetid("test", 1))
