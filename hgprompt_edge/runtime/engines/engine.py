"""The interface of all runtimes: what a loaded model takes, gives and says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
