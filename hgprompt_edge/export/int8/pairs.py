"""Signed int8 weights whose products give the same sums on every CPU.

CPUs with AVX2 or AVX-512 but without VNNI multiply unsigned activations by signed weights with
`vpmaddubsw`, which adds the products of two neighbouring rows in 16 bits and cuts off what does not
fit. Weights of full range overflow there, and the same file gives other logits than elsewhere.
Unsigned weights would be exact everywhere, but CPUs with VNNI or AMX have no fast product for them.
So the range is bounded by pairs: that costs less resolution than seven bits for each weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

LIMIT = 128
"""What two weights of one sign may add up to: 255 x 128 = 32,640 fits in 16 bits. Those of opposite
signs always fit, since each is at most 127."""


def quantize_in_pairs(
    weight: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round a matrix to int8 with a scale for each column, so that no pair of products saturates.

    Parameters
    ----------
    weight
        Of shape (n_inputs, n_outputs). Rows 0 and 1, 2 and 3, ... are pairs.

    Returns
    -------
    quantized : int8 array of the same shape
    scale : float32 array of shape (n_outputs,)
    """
    rows, columns = weight.shape
    exact = weight.astype(np.float64)
    pairs = np.concatenate([exact, np.zeros((rows % 2, columns))]).reshape(-1, 2, columns)
    sums = [np.maximum(sign * pairs, 0).sum(1).max(0) for sign in (1, -1)]
    # One less than the limit, since rounding two weights can add up to one step.
    largest = np.maximum(*sums) / (LIMIT - 1)
    scale = np.where(largest > 0, largest, 1).astype(np.float32)
    return np.rint(exact / scale).astype(np.int8), scale


def bound_pairs(path: Path, graph: Path) -> None:
    """Round the int8 weights of a file of onnxruntime's quantizer again, with `quantize_in_pairs`.

    Parameters
    ----------
    path
        The quantized file, changed in place. Its weights are symmetric, with a scale for each
        column.
    graph
        The float file that it was made from.
    """
    model = onnx.load(path)
    exact = {tensor.name: tensor for tensor in onnx.load(graph).graph.initializer}
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in exact.items():
        if f"{name}_quantized" in found:
            quantized, scale = quantize_in_pairs(numpy_helper.to_array(tensor))
            for suffix, array in {"quantized": quantized, "scale": scale}.items():
                old = found[f"{name}_{suffix}"]
                old.CopyFrom(numpy_helper.from_array(np.asarray(array), old.name))
    onnx.save(model, path)
