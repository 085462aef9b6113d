"""A model in onnxruntime: one `.onnx` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort

from hgprompt_edge.device.engine import Floats, LoadError, Pixels, Port
from hgprompt_edge.device.onnx_bytes import OnnxFacts, read_facts
from hgprompt_edge.device.session import open_session

FALLBACK_OPSET = 20
"""What `hgedge export --opset` writes for runtimes that do not know the default's operators."""

DYNAMIC = "DynamicQuantize"


class OnnxEngine:
    """A model in onnxruntime, on so many threads of the CPU (None: as many as it may use).

    A model that takes the scale of its int8 activations from what it is given (operators
    `DynamicQuantize...`) takes one for the batch, so that an image's class would depend on the
    others. Such a model is given its images one at a time.

    Parameters
    ----------
    facts
        What `read_facts` gives for the file, if that is known.

    Raises
    ------
    LoadError
        Truncated, not ONNX, or more than this onnxruntime knows.
    """

    def __init__(
        self, path: Path, threads: int | None = None, facts: OnnxFacts | None = None
    ) -> None:
        try:
            self._session = open_session(path, threads)
        except Exception as error:  # the runtime's errors have no common base
            raise LoadError(explain(str(error))) from error
        operators = (facts or read_facts(path)).operators
        self._one_by_one = any(name.startswith(DYNAMIC) for name in operators)
        self.runtime = f"onnxruntime {ort.__version__}"
        self.as_exported = True
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
        if not self._one_by_one or len(pixels) < 2:
            return self._run(pixels, given)
        rows = [self._run(pixels[i : i + 1], given) for i in range(len(pixels))]
        return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))

    def _run(self, pixels: Pixels, given: Mapping[str, Floats] | None) -> tuple[Floats, ...]:
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
