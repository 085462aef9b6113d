"""A model in onnxruntime: one `.onnx` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import onnxruntime as ort

from hgprompt_edge.device.engine import Floats, LoadError, Pixels, Port
from hgprompt_edge.device.session import open_session

FALLBACK_OPSET = 20
"""What `hgedge export --opset` writes for runtimes that do not know the default's operators."""


class OnnxEngine:
    """A model in onnxruntime, on so many threads of the CPU (None: as many as it may use).

    Raises
    ------
    LoadError
        Truncated, not ONNX, or more than this onnxruntime knows.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            self._session = open_session(path, threads)
        except Exception as error:  # the runtime's errors have no common base
            raise LoadError(explain(str(error))) from error
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
