"""The errors that users can mend, those of our own checks, and how messages quote.

A message names a parameter as Python does, in backticks: `image_size=100`. The command line prints
it as its option (`cli.shared.parameters`).

    UserError                   something from outside is wrong
    |-- ParameterError          a value that was passed
    |   `-- BatchMemoryError    a batch that needs more memory than there is
    |-- FileError               a file, a folder or a data set
    |-- MismatchError           two things that do not belong together
    `-- MissingPackageError     a package that is not installed
    CheckError                  a check on our own result failed
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

SHOWN = 5
"""Names that a message lists at most."""


class UserError(Exception):
    """Something from outside is wrong: a file, a parameter, a data set. Exit code 2.

    The message is one sentence that names what is wrong, says why and what to do.
    """


@dataclass(eq=False)
class ParameterError(UserError):
    """A value that was passed cannot be used.

    Attributes
    ----------
    parameter
        Its name in Python.
    value
        None: the message names the parameter only.
    problem
        What is wrong with it and what to do.
    """

    parameter: str
    value: object
    problem: str

    def __str__(self) -> str:
        """Such as "`image_size=100`: tiny cuts images into ..."."""
        return f"{argument(self.parameter, self.value)}: {self.problem}"


class BatchMemoryError(ParameterError):
    """The memory does not hold a batch; a smaller one may fit. `value` is the batch size."""

    def __init__(self, batch_size: int, images: int) -> None:
        problem = f"not enough memory for {images} images at a time; give a smaller one"
        super().__init__("batch_size", batch_size, problem)


@dataclass(eq=False)
class FileError(UserError):
    """A file, folder or data set is missing, damaged, or not what is needed.

    Attributes
    ----------
    path
        Where it is, or a data set's name on the hub.
    problem
        What is wrong with it and what to do.
    place
        Where in the file, such as `line 3`; empty: nowhere in particular.
    """

    path: Path | str
    problem: str
    place: str = ""

    def __str__(self) -> str:
        """Such as "data/labels.csv, line 3: no label; fill it in ..."."""
        place = f", {self.place}" if self.place else ""
        return f"{self.path}{place}: {self.problem}"


@dataclass(eq=False)
class MismatchError(UserError):
    """Two things do not belong together, such as a model and the bank of another one.

    Attributes
    ----------
    path, other
        The two: paths, or words where they are no files.
    difference
        In what they differ.
    advice
        What to do.
    """

    path: Path | str
    other: Path | str
    difference: str
    advice: str

    def __str__(self) -> str:
        """Such as "a.bank.safetensors does not fit b.onnx: it has another head; copy ..."."""
        return f"{self.path} does not fit {self.other}: {self.difference}; {self.advice}"


@dataclass(eq=False)
class MissingPackageError(UserError):
    """Something needs a package that is not installed.

    Attributes
    ----------
    purpose
        What needs it.
    package
        Its name on the package index.
    extra
        Of `hgprompt-edge`, that installs it; empty: none does.
    """

    purpose: str
    package: str
    extra: str = ""

    def __str__(self) -> str:
        """Such as "int8 for OpenVINO needs nncf, which is not installed; run `pip ...`"."""
        wanted = f"'hgprompt-edge[{self.extra}]'" if self.extra else self.package
        return (
            f"{self.purpose} needs {self.package}, which is not installed; "
            f"run `pip install {wanted}`"
        )


class CheckError(Exception):
    """A check on our own result failed, so nothing was written or replaced. Exit code 1."""


def argument(parameter: str, value: object = None) -> str:
    """Name a parameter in a message as Python writes it; None: without a value."""
    if value is None:
        return f"`{parameter}`"
    shown = str(value) if isinstance(value, PathLike) else value
    return f"`{parameter}={shown!r}`"


def brief(text: object, limit: int = 100) -> str:
    """Quote what a file holds: on one line, of `limit` characters at most, the middle left out."""
    words = " ".join(str(text).split())
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    if len(words) <= limit:
        return words
    half = (limit - 3) // 2
    return f"{words[:half]}...{words[-half:]}"


def first_line(error: BaseException, limit: int = 120) -> str:
    """Quote an error of a library: its first line without the full stop, or the error's class."""
    lines = str(error).strip().splitlines()
    return (lines[0][:limit].rstrip(".:; ") if lines else "") or type(error).__name__


def os_reason(error: OSError) -> str:
    """Say why the system refused something, for the brackets of a sentence."""
    return (error.strerror or str(error)).lower()


def some(names: Sequence[str]) -> str:
    """Join names, the first few and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... {len(names):,} in all"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left.

    PyTorch and the runtimes have no type of their own for that.
    """
    known = r"out of memory|not enough memory|bad[ _]alloc|allocat\w* (\w+ )?memory"
    said = re.search(known, str(error), re.IGNORECASE) is not None
    return isinstance(error, MemoryError) or said
