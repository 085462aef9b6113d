"""Writes the nodes and constants of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from torch import Tensor, nn

Doubles = npt.NDArray[np.float64]
Size: TypeAlias = "int | ir.Value"
"""A number that the graph knows when it is written, or one that it computes, int64 `[1]`."""


class Writer:
    """Collects nodes and constants; names say where in the network a value comes from.

    Parameters
    ----------
    known
        Constants of a graph that is continued, by name.
    """

    def __init__(self, known: Mapping[str, ir.Value] | None = None) -> None:
        self.tape = self._stored = Tape()
        self._constants = dict(known or {})

    @contextmanager
    def apart(self) -> Iterator[Tape]:
        """Collect nodes on a tape of their own, for a branch; constants stay with the others."""
        outer, self.tape = self.tape, Tape()
        try:
            yield self.tape
        finally:
            self.tape = outer

    def op(
        self,
        kind: str,
        name: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Write one node of operator `kind`; its only output has the node's name."""
        output = ir.Value(name=name)
        return self.tape.op(kind, inputs, attributes, domain=domain, name=name, output=output)

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Store an array, once a name."""
        if name not in self._constants:
            tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
            self._constants[name] = self._stored.initializer(tensor)
        return self._constants[name]

    def floats(self, name: str, array: Tensor | npt.NDArray[Any]) -> ir.Value:
        """Store float32 weights."""
        return self.constant(name, np.asarray(array, dtype=np.float32))

    def integers(self, *values: int) -> ir.Value:
        """Store shapes, axes and indices as an int64 vector, once for equal ones."""
        return self.constant("int64." + ".".join(map(str, values)), np.array(values, np.int64))

    def sizes(self, name: str, *parts: Size) -> ir.Value:
        """Join sizes to an int64 vector; a constant where all of them are known."""
        if all(isinstance(part, int) for part in parts):
            return self.integers(*(part for part in parts if isinstance(part, int)))
        found = [self.integers(part) if isinstance(part, int) else part for part in parts]
        return found[0] if len(found) == 1 else self.op("Concat", name, *found, axis=0)

    def reshape(self, name: str, x: ir.Value, *shape: Size) -> ir.Value:
        """Reshape; 0 keeps a dimension, one -1 takes what is left."""
        return self.op("Reshape", name, x, self.sizes(f"{name}.shape", *shape))

    def part(self, name: str, x: ir.Value, start: Size, stop: Size, axis: int = 1) -> ir.Value:
        """Entries `start` to `stop` of one axis; of axis 1, tokens of `x [batch, N, D]`."""
        return self.op("Slice", name, x, *(self.sizes(name, i) for i in (start, stop, axis)))

    def split(self, name: str, x: ir.Value, parts: int, axis: int = -1) -> list[ir.Value]:
        """Cut an axis of `x`, the last one by default, into equal parts."""
        outputs = [ir.Value(name=f"{name}.{index}") for index in range(parts)]
        attributes = {"axis": axis, "num_outputs": parts}
        return list(
            self.tape.op_multi_out("Split", [x], attributes, name=f"{name}.split", outputs=outputs)
        )

    def normalize(
        self, name: str, x: ir.Value, width: int, eps: float
    ) -> tuple[ir.Value, ir.Value]:
        """`(x - mean) / s` over the last axis, of `width`, and `1 / s`."""
        outputs = [ir.Value(name=f"{name}{suffix}") for suffix in ("", ".mean", ".inverse")]
        ones = self.floats(f"ones.{width}", np.ones(width))
        z, _, inverse = self.tape.op_multi_out(
            "LayerNormalization",
            [x, ones],
            {"axis": -1, "epsilon": eps},
            name=name,
            outputs=outputs,
        )
        return z, inverse

    def repeat(self, name: str, array: npt.NDArray[Any], batch: ir.Value) -> ir.Value:
        """Repeat a constant `[1, ...]` for each image of the batch."""
        shape = self.op("Concat", f"{name}.shape", batch, self.integers(*array.shape[1:]), axis=0)
        return self.op("Expand", f"{name}.batch", self.floats(name, array), shape)

    def repeat_value(self, name: str, x: ir.Value, batch: ir.Value) -> ir.Value:
        """Repeat `x [...]` for each image of the batch: `[batch, ...]`."""
        whole = self.op("Shape", f"{name}.shape", x)
        shape = self.op("Concat", f"{name}.repeated", batch, whole, axis=0)
        return self.op("Expand", f"{name}.batch", x, shape)

    def linear(self, name: str, x: ir.Value, weight: Doubles, bias: Doubles | None) -> ir.Value:
        """`x [batch, N, D]` times `weight [D, E]` plus `bias`, `[E]` or `[N, E]`."""
        product = self.op("MatMul", f"{name}.matmul", x, self.floats(f"{name}.weight", weight))
        if bias is None:
            return product
        return self.op("Add", name, product, self.floats(f"{name}.bias", bias))

    def norm(
        self,
        name: str,
        x: ir.Value,
        norm: nn.Module,
        factor: float = 1.0,
        *,
        affine: bool = True,
    ) -> ir.Value:
        """LayerNorm over the last axis, times `factor`; nothing for an Identity.

        Without `affine` its scale and bias are left out: they are in the matrix behind it.
        """
        if not isinstance(norm, nn.LayerNorm):
            return x
        width = norm.normalized_shape[-1]
        if not affine:
            ones = self.floats(f"ones.{width}", np.ones(width))
            return self.op("LayerNormalization", name, x, ones, axis=-1, epsilon=norm.eps)
        gamma = np.ones(width) if norm.weight is None else to_array(norm.weight)
        scale = self.floats(f"{name}.weight", gamma * factor)
        bias = None
        if norm.bias is not None:
            bias = self.floats(f"{name}.bias", to_array(norm.bias) * factor)
        return self.op("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=norm.eps)


def to_array(tensor: Tensor) -> Doubles:
    """Weights in float64, in which they are folded before they are rounded once."""
    return tensor.detach().cpu().double().numpy()
