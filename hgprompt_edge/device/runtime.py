"""Open an ONNX file in onnxruntime, or say in one phrase why that fails."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort

FALLBACK_OPSET = 20
"""What `hgedge export --opset` writes for runtimes that do not know the default's operators."""


class LoadError(Exception):
    """The runtime does not load the file; the message is a phrase with what to do about it."""


def open_onnx(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Load a model on the CPU with so many threads (None: the runtime's default, all cores).

    Raises
    ------
    LoadError
        Truncated, not ONNX, or more than this onnxruntime knows.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base
        raise LoadError(explain(str(error))) from error


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
