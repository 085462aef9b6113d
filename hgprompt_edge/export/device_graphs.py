"""How the graph of a device folder is written: for onnxruntime, and for OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from hgprompt_edge.artifacts.model_digest import BLANK, FILE_SHA256, seal
from hgprompt_edge.artifacts.tasks.device_files import ONNX, OPENVINO, Files
from hgprompt_edge.artifacts.tasks.task_tensors import TaskTensors
from hgprompt_edge.export.graph.rewrites import Attention, Rewrites
from hgprompt_edge.export.ir_file import save_ir
from hgprompt_edge.export.ir_text import fold_inputs, set_entries
from hgprompt_edge.export.onnx_file import append_metadata, rewrites_for
from hgprompt_edge.export.openvino_file import Precision, convert
from hgprompt_edge.runtime.engines.openvino_engine import import_openvino

SMALLEST = 4096
"""Bytes from which a tensor goes into the file of weights."""


@dataclass(frozen=True)
class OnnxGraphs:
    """`backbone.onnx` and `default.onnx` with external weights.

    Attributes
    ----------
    opset
        As for `export_onnx`.
    files
        Names of the files.
    precision
        How weights are stored.
    """

    opset: int | None = None
    files: Files = ONNX
    precision: str = Precision.FP32.value

    @property
    def rewrites(self) -> Rewrites:
        """Those of the opset."""
        return rewrites_for(self.opset) if self.opset else Rewrites()

    def write(self, model: ir.Model, graph: Path) -> None:
        """Write a graph with its weights beside it."""
        ir.save(model, graph, external_data=self.files.weights, size_threshold_bytes=SMALLEST)
        onnx.checker.check_model(graph, full_check=True)

    def take(self, written: Path, graph: Path) -> None:
        """Make a file that a quantizer wrote the graph, with its weights beside it."""
        self.write(ir.load(written), graph)

    def fold(self, graph: Path, default: Path, tensors: TaskTensors) -> None:
        """Write the graph with a task in place of its inputs, on the same weights."""
        model = ir.load(graph)
        arrays = tensors.inputs()
        for value in list(model.graph.inputs):
            name = str(value.name)
            if name in arrays:
                model.graph.inputs.remove(value)
                value.const_value = ir.tensor(arrays[name], name=name)
                value.shape = ir.Shape(arrays[name].shape)
                model.graph.initializers[name] = value
        model.graph.outputs[0].shape = ir.Shape(["batch", tensors.head_bias.shape[1]])
        ir.save(model, default)
        onnx.checker.check_model(default, full_check=True)

    def finish(self, path: Path, entries: Mapping[str, str]) -> None:
        """Add metadata to one of the two, and seal it."""
        append_metadata(path, {**entries, FILE_SHA256: BLANK})
        seal(path)


@dataclass(frozen=True)
class OpenVinoGraphs:
    """`backbone.xml` and `default.xml` on one `backbone.bin`, which also holds the folded task.

    Attributes
    ----------
    precision
        How weights are stored: `fp32` or `fp16`.
    files
        Names of the files.
    """

    precision: str = Precision.FP32.value
    files: Files = OPENVINO

    @property
    def rewrites(self) -> Rewrites:
        """The fastest for OpenVINO where the prefix comes in as rows."""
        return Rewrites(attention=Attention.PLAIN)

    def write(self, model: ir.Model, graph: Path) -> None:
        """Write a graph with its weights beside it."""
        converted = convert(import_openvino(), model, graph)
        save_ir(converted, graph, half=self.precision == Precision.FP16.value)

    def take(self, written: Path, graph: Path) -> None:
        """Make a file that a quantizer wrote the graph, with its weights beside it."""
        for suffix in (".bin", ".xml"):
            written.with_suffix(suffix).replace(graph.with_suffix(suffix))

    def fold(self, graph: Path, default: Path, tensors: TaskTensors) -> None:
        """Write the graph with a task in place of its inputs, on the same weights."""
        fold_inputs(graph, graph.with_suffix(".bin"), tensors.inputs(), default)

    def finish(self, path: Path, entries: Mapping[str, str]) -> None:
        """Add metadata to one of the two, and seal it."""
        set_entries(path, {**entries, FILE_SHA256: BLANK})
        seal(path)


Graphs = OnnxGraphs | OpenVinoGraphs
"""A way to write the graph of a device folder, and the one with a task folded in."""
