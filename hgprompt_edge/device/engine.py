"""Runtimes behind one small interface: open a model file, run it on pixels, tell what it says.

Each runtime is imported where a model needs it: the other's takes 20 MB of memory and more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hgprompt_edge.bundle import SUFFIX
from hgprompt_edge.device.external import check_external_data
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import check_storable

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


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a runtime's own error for too little memory into Python's `MemoryError`."""
    try:
        yield
    except Exception as error:  # the runtimes' errors have no common base
        if re.search(r"bad[ _]alloc|allocat\w* (\w+ )?memory", str(error), re.IGNORECASE):
            raise MemoryError(str(error)) from error
        raise


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
    as_exported
        Whether it computes as export does: on the CPU, and in float32 what is not int8.
    """

    runtime: str
    as_exported: bool
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
        CPU threads of one run; None: as many as this process may use.
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
    if path.suffix == SUFFIX:
        raise UserError(
            f"{path}: a bundle, not a model; run `hgedge export` on it and name the file "
            "that this writes"
        )
    check_storable(str(path), "the model")  # runtimes take UTF-8 alone
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
        from hgprompt_edge.device.onnx_engine import OnnxEngine

        return OnnxEngine(path, threads, check_external_data(path))
    except LoadError as error:
        raise UserError(f"{path}: {error}") from error
