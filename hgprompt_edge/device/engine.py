"""Runtimes behind one small interface: open a model file, run it on pixels, tell what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hgprompt_edge.device.external import check_external_data
from hgprompt_edge.errors import UserError

FALLBACK_OPSET = 20
"""What `hgedge export --opset` writes for runtimes that do not know the default's operators."""

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class LoadError(Exception):
    """The runtime does not load the file; the message is a phrase with what to do about it."""


@dataclass(frozen=True)
class Port:
    """An input or output of a model; `shape` without the batch, None where it is not fixed."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ("batch", *("?" if size is None else str(size) for size in self.shape))
        return f"{self.name} {self.dtype} [{', '.join(sizes)}]"


class Engine(Protocol):
    """A loaded model.

    Attributes
    ----------
    runtime
        Name and version of the runtime.
    entries
        The model's metadata.
    inputs, outputs
        What it takes and gives.
    """

    runtime: str
    entries: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, pixels: Pixels, given: Mapping[str, Floats] | None = None) -> Floats:
        """Logits `[n, K]` of pixels `[n, S, S, 3]`, and of what else is `given` by name."""
        ...

    def run_all(
        self, pixels: Pixels, given: Mapping[str, Floats] | None = None
    ) -> tuple[Floats, ...]:
        """All outputs, the logits first."""
        ...


def open_engine(
    path: Path, threads: int | None = None, *, device: str = "CPU", bf16: bool | None = None
) -> Engine:
    """Open a model file in the runtime that its name stands for: `.xml` OpenVINO, else onnxruntime.

    Parameters
    ----------
    threads
        CPU threads of one run; None: the runtime's default.
    device, bf16
        For OpenVINO: what to run on, and whether to compute in bfloat16, see `OpenVinoEngine`.

    Raises
    ------
    UserError
        No such file, the runtime is not installed or does not load it, or an ONNX file with
        options for OpenVINO, or with weights outside its folder.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model file; make it with `hgedge export`")
    try:
        if path.suffix == ".xml":
            from hgprompt_edge.device.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(path, threads, device=device, bf16=bf16)
        if device != "CPU" or bf16:
            option = "--bf16" if bf16 else f"--device {device}"
            raise UserError(
                f"{option}: {path} is an ONNX model, which runs on the CPU in float32; "
                "export it again with `--format openvino`"
            )
        check_external_data(path)
        return OnnxEngine(path, threads)
    except LoadError as error:
        raise UserError(f"{path}: {error}") from error


class OnnxEngine:
    """A model in onnxruntime, on so many threads of the CPU (None: its default, all cores).

    Raises
    ------
    LoadError
        Truncated, not ONNX, or more than this onnxruntime knows.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # the runtime's errors have no common base
            raise LoadError(explain(str(error))) from error
        self.runtime = f"onnxruntime {ort.__version__}"
        self.entries: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.inputs = tuple(_port(given) for given in self._session.get_inputs())
        self.outputs = tuple(_port(given) for given in self._session.get_outputs())

    def run(self, pixels: Pixels, given: Mapping[str, Floats] | None = None) -> Floats:
        """Logits `[n, K]` of pixels `[n, S, S, 3]`, and of what else is `given` by name."""
        return self.run_all(pixels, given)[0]

    def run_all(
        self, pixels: Pixels, given: Mapping[str, Floats] | None = None
    ) -> tuple[Floats, ...]:
        """All outputs, the logits first."""
        feeds = {self.inputs[0].name: pixels, **(given or {})}
        return cast("tuple[Floats, ...]", tuple(self._session.run(None, feeds)))


def explain(message: str) -> str:
    """One phrase for why onnxruntime does not load a model, from its message."""
    here = f"onnxruntime {ort.__version__}"
    advice = f"upgrade onnxruntime or export the model again with `--opset {FALLBACK_OPSET}`"
    newer = re.search(r"(IR version: |[Oo]pset )(\d+)(, max| is under)", message)
    if newer:
        what = "IR version" if newer[1].startswith("IR") else "opset"
        return f"uses ONNX {what} {newer[2]}, which {here} does not know; {advice}"
    operator = re.search(r"implementation for (\w+)\((\d+)\)", message)
    if operator:
        return f"uses {operator[1]} of opset {operator[2]}, which {here} does not know; {advice}"
    if "protobuf" in message.lower():
        return "truncated or not an ONNX file; copy or export it again"
    reason = message.splitlines()[0].rpartition(" : ")[2][:200]
    return f"{here} does not load it ({reason}); export it again"


def _port(given: ort.NodeArg) -> Port:
    """Translate what onnxruntime says of an input or output; its `tensor(uint8)` is `uint8`."""
    dtype = given.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in given.shape[1:])
    return Port(given.name, dtype, shape)
