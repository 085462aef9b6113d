"""The interface of all runtimes: what a loaded model takes, gives and says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import is_out_of_memory

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


def check_given(inputs: tuple[Port, ...], given: Mapping[str, Floats]) -> None:
    """Refuse what is not all that a model takes beside the image, whatever its runtime would do.

    A runtime may keep what was given the last time, or take a default: another task's.

    Raises
    ------
    ValueError
        A tensor is missing, of no input, of another type, or does not fit the input's shape.
    """
    wanted = {port.name: port.shape for port in inputs[1:]}
    if given.keys() != wanted.keys():
        raise ValueError(f"The model takes {', '.join(wanted) or 'nothing'}. Got {list(given)}.")
    for name, shape in wanted.items():
        array = given[name]
        fits = len(array.shape) == 1 + len(shape) and all(
            size in (None, found) for size, found in zip(shape, array.shape[1:], strict=True)
        )
        if array.dtype != np.float32 or not fits:
            raise ValueError(
                f"The '{name}' must be float32 with {list(shape)} behind its first axis. "
                f"Got {array.dtype} {list(array.shape)} instead."
            )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a runtime's own error for too little memory into Python's `MemoryError`."""
    try:
        yield
    except Exception as error:  # the runtimes' errors have no common base
        if is_out_of_memory(error):
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
