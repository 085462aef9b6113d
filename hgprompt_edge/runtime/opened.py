"""What a predictor runs: a model file, or a task of a device folder, opened and checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import FOLDED
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, parse_metadata
from hgprompt_edge.artifacts.tasks.device_files import SUFFIX
from hgprompt_edge.artifacts.tasks.task_bank import given_at
from hgprompt_edge.artifacts.tasks.task_file import TaskFile
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.maths.reference_file import unpack_reference
from hgprompt_edge.runtime.contract import ASSUMED, assumed_metadata, check_contract, read_bank_of
from hgprompt_edge.runtime.device_folder import DeviceFolder, assembled, check_weights
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.other_cpu import check_once

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Opened:
    """A model, or a task, ready to run.

    Attributes
    ----------
    path
        Of the model, or of the task's file.
    entries
        The metadata as they stand in the file.
    assumed
        Whether the file says nothing of itself.
    bank
        What its weights mix, of a model whose weights can change.
    given
        What the graph takes beside the image, to begin with.
    folder
        The device folder of a task.
    reference
        What its own images look like; None: not recorded.
    task
        What the file of a task holds.
    """

    path: Path
    engine: Engine
    metadata: Metadata
    entries: Mapping[str, str]
    assumed: bool
    bank: Bank | None
    given: Mapping[str, Floats]
    folder: DeviceFolder | None
    reference: Reference | None
    task: TaskFile | None = None

    def given_at(self, weights: npt.ArrayLike) -> Mapping[str, Floats]:
        """Return what the graph takes beside the image for a mix `[M]` of the bank."""
        assert self.bank is not None
        if self.task is None:
            return self.bank.inputs(weights)
        return given_at(self.task.tensors, self.bank, weights).inputs()

    def head_inputs(self, outputs: Sequence[Floats]) -> Floats:
        """Return what of the graph's outputs the bank's head is applied to.

        These are the features. A task's head may see the first half of those of its folder; that
        of several folded prompts goes on top of the logarithm of their averaged probabilities.
        """
        if self.task is None or self.bank is None:
            return outputs[1]
        found = outputs[0] if self.bank.names == (FOLDED,) else outputs[1]
        return found[:, : self.bank.head.weight.shape[1]]


def open_any(
    path: Path, threads: int | None = None, *, device: str = "CPU", bf16: bool | None = None
) -> Opened:
    """Open a model file, a device folder at its default task, or a task's file.

    Warns
    -----
    UserWarning
        As of `Predictor`.

    Raises
    ------
    UserError
        As of `Predictor`.
    """
    if path.is_dir() or path.suffix == SUFFIX:
        folder = path if path.is_dir() else path.parent
        found = DeviceFolder(folder, threads, device=device, bf16=bf16)
        return open_task(found, found.default() if path.is_dir() else path.stem)
    engine = open_engine(path, threads, device=device, bf16=bf16)
    check_weights(path, engine.entries)
    known = any(key.startswith(PREFIX) for key in engine.entries)
    assumed = None if known else assumed_metadata(engine)
    if assumed:
        warnings.warn(f"{path}: {ASSUMED}", stacklevel=3)
    metadata = assumed or parse_metadata(path, engine.entries)
    bank = read_bank_of(path, metadata)
    check_contract(path, engine, metadata, bank)
    given = {} if bank is None else bank.inputs(bank.initial)
    if metadata.precision == "int8" and engine.as_exported:
        other = check_once(path, engine, metadata, given)
        if other:
            warnings.warn(other, stacklevel=3)
    reference = reference_of(path, engine, metadata)
    return Opened(
        path, engine, metadata, engine.entries, bool(assumed), bank, given, None, reference
    )


def reference_of(path: Path, engine: Engine, metadata: Metadata) -> Reference | None:
    """Read what a model's own images look like, if it gives the features to compare with.

    Raises
    ------
    UserError
        It is damaged.
    """
    width = engine.outputs[1].shape[0] if len(engine.outputs) > 1 else None
    if not metadata.reference or width is None:
        return None
    try:
        return unpack_reference(metadata.reference, len(metadata.classes), width)
    except ValueError as error:
        raise FileError(path, f"{brief(error)}; copy or export it again") from error


def open_task(folder: DeviceFolder, name: str) -> Opened:
    """Open a task of a device folder, on its loaded backbone.

    Raises
    ------
    UserError
        There is no such task, it is damaged, or of another backbone.
    """
    task = folder.task(name)
    path, given, bank = folder.folder / f"{name}{SUFFIX}", task.tensors.inputs(), None
    if task.bank is not None:
        bank = assembled(path, task.bank, folder.bank_of(task))
        given = given_at(task.tensors, bank, bank.initial).inputs()
    # Of the backbone that runs it, whichever it was exported with.
    precision = folder.facts.precision
    measured_here = task.metadata.quantization.get("backbone", "") == folder.facts.quantized_sha256
    return Opened(
        path,
        folder.engine,
        task.metadata.model_copy(update={"precision": precision}),
        {**task.entries, f"{PREFIX}precision": precision},
        False,
        bank,
        given,
        folder,
        task.reference if measured_here else None,
        task,
    )
