"""A model in onnxruntime: one `.onnx` file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort

from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.onnx_bytes import OnnxFacts, read_facts
from hgprompt_edge.errors import brief
from hgprompt_edge.runtime.engines.engine import (
    Floats,
    LoadError,
    Pixels,
    Port,
    check_given,
    memory_errors,
)
from hgprompt_edge.runtime.engines.onnx_session import open_session

FALLBACK_OPSET = 20
"""The `opset` to export for runtimes that do not know the default's operators."""
OTHER_OPSET = f"upgrade onnxruntime or export the model again with `opset={FALLBACK_OPSET}`"
FIXED_OPSET = "upgrade onnxruntime"
"""For int8 models and graphs of the gradient, which come in one opset."""

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
        facts = facts or read_facts(path)
        try:
            self._session = open_session(path, threads)
            meta = self._session.get_modelmeta()
            self.entries: Mapping[str, str] = meta.custom_metadata_map
            self.inputs = tuple(_port(given) for given in self._session.get_inputs())
            self.outputs = tuple(_port(given) for given in self._session.get_outputs())
        except Exception as error:  # the runtime's errors have no common base
            fixed = facts.entries.get(f"{PREFIX}precision") == "int8"
            raise LoadError(explain(error, FIXED_OPSET if fixed else OTHER_OPSET)) from error
        operators = facts.operators
        self._one_by_one = any(name.startswith(DYNAMIC) for name in operators)
        self.runtime = f"onnxruntime {ort.__version__}"
        self.as_exported = True

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
        check_given(self.inputs, given or {})
        feeds = {self.inputs[0].name: pixels, **(given or {})}
        with memory_errors():
            return cast("tuple[Floats, ...]", tuple(self._session.run(None, feeds)))


def explain(error: Exception, advice: str = OTHER_OPSET) -> str:
    """One phrase for why onnxruntime does not load a model; `advice` is for a runtime too old."""
    if isinstance(error, UnicodeDecodeError):
        return "damaged (its text is not UTF-8); copy or export it again"
    message = str(error)
    here = f"onnxruntime {ort.__version__}"
    newer = re.search(r"(IR version: |[Oo]pset )(\d+)(, max| is under)", message)
    if newer:
        what = "IR version" if newer[1].startswith("IR") else "opset"
        return f"uses ONNX {what} {newer[2]}, which {here} does not know; {advice}"
    operator = re.search(r"implementation for (\w+)\((\d+)\)", message)
    if operator:
        what = f"{brief(operator[1])} of opset {operator[2]}"
        return f"uses {what}, which {here} does not know; {advice}"
    if "protobuf" in message.lower():
        return "truncated or not an ONNX file; copy or export it again"
    reason = next(iter(message.splitlines()), type(error).__name__).rpartition(" : ")[2]
    return f"{here} does not load it ({brief(reason, 200)}); export it again"


def _port(given: ort.NodeArg) -> Port:
    """Translate what onnxruntime says of an input or output; its `tensor(uint8)` is `uint8`."""
    dtype = given.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in given.shape[1:])
    return Port(given.name, dtype, shape)
