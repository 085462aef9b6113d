"""A bundle as a task of a device folder: what its backbone takes, and what a device mixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.tasks.folder_bank import FolderBank, folder_bank, write_folder_bank
from hgprompt_edge.artifacts.tasks.task_bank import given_at
from hgprompt_edge.artifacts.tasks.task_tensors import TaskTensors
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.errors import FileError, UserError
from hgprompt_edge.export.bank_file import constants_of, make_bank
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.gradient.tasks_file import check_tasks_adapt, export_tasks_adapt
from hgprompt_edge.export.graph.tasks import task_tensors
from hgprompt_edge.export.verify import Verification, at_initial, verify_engine, verify_mixes
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.engines.engine import Engine


@dataclass(frozen=True)
class Mixed:
    """What a device mixes for a task.

    Attributes
    ----------
    bank
        As of an exported model.
    folder
        The bank's prompts, as a device folder holds them.
    digests
        Of the prompts in `folder`, in the order of the bank.
    """

    bank: Bank
    folder: FolderBank
    digests: tuple[str, ...]


@dataclass(frozen=True)
class PreparedTask:
    """A bundle that becomes a task.

    Attributes
    ----------
    source
        The bundle and its file.
    start
        The bundle at the mix that a device starts from: of a task that cannot be adapted, itself.
    tensors
        What the backbone takes beside the image at that mix.
    mixed
        What a device mixes; None: the task cannot be adapted.
    """

    source: Source
    start: Bundle
    tensors: TaskTensors
    mixed: Mixed | None

    def seen_as(self, reference: Reference | None) -> PreparedTask:
        """Return the task whose own images look so."""
        return replace(self, start=replace(self.start, reference=reference))

    @property
    def share(self) -> float:
        """That of the prompt beside the model alone, at the initial mix."""
        return 1.0 if self.mixed is None else self.mixed.bank.share(self.mixed.bank.initial)

    def verify(self, engine: Engine, backbone: Backbone, tolerance: float) -> Verification:
        """Hold the task against PyTorch; one that can be adapted at another mix, too."""
        bundle, mixed = self.source.bundle, self.mixed
        images = bundle.probe_images
        if mixed is None:
            given = self.tensors.inputs()
            return verify_engine(
                engine, bundle, backbone, images, tolerance=tolerance, given=given, normalized=True
            )
        return verify_mixes(
            engine,
            bundle,
            backbone,
            images,
            mixed.bank,
            tolerance,
            given_at=lambda weights: given_at(self.tensors, mixed.bank, weights).inputs(),
            normalized=True,
        )


def prepare(
    source: Source, backbone: Backbone, *, adapt: bool, like: FolderBank | None = None
) -> PreparedTask:
    """Make a task of a bundle.

    Parameters
    ----------
    backbone
        With the features of the folder.
    adapt
        Whether a device may adapt it.
    like
        The bank that the task's prompts are to join.

    Raises
    ------
    UserError
        It is to be adapted and does not hold its sources, or holds one prompt alone.
    """
    bundle = source.bundle
    tensors = task_tensors(bundle.folded, backbone)
    if not adapt:
        return PreparedTask(source, bundle, tensors, None)
    fitted = as_fitted(bundle, backbone)
    try:
        bank = make_bank(bundle, fitted)
    except UserError as error:
        raise FileError(source.path, f"cannot be adapted: {error}") from error
    constants = constants_of(backbone) if like is None else like.constants
    if bank.mixer is not None:  # the same constants, but for the rounding of another machine
        own = bank.mixer
        mixer = replace(constants, keys=own.keys, values=own.values, gram=own.gram)
        bank = replace(bank, mixer=mixer)
    folder, digests = folder_bank(bundle.backbone_sha256, bank.mixer or constants)
    tensors = given_at(tensors, bank, bank.initial)
    return PreparedTask(
        source, at_initial(bundle, fitted, bank), tensors, Mixed(bank, folder, digests)
    )


def write_adapt_files(
    tasks: Sequence[PreparedTask], backbone: Backbone, graph: Path, bank: Path, adapt: Path
) -> None:
    """Write the bank of a folder and the graph of its gradient, which is checked for each task.

    Raises
    ------
    CheckError
        The gradient is not that of PyTorch.
    """
    prompts = joined(task.mixed.folder for task in tasks if task.mixed is not None)
    write_folder_bank(bank, prompts)
    export_tasks_adapt(backbone, prompts.constants, graph, adapt)
    for task in tasks:
        check_gradient_of(task, backbone, adapt)


def check_gradient_of(task: PreparedTask, backbone: Backbone, adapt: Path) -> None:
    """Hold the gradient of a task against PyTorch's, where it mixes prompts.

    Raises
    ------
    CheckError
        It is another one.
    """
    if task.mixed is not None and task.mixed.bank.mixer is not None:
        check_tasks_adapt(adapt, task.source.bundle, backbone, task.mixed.bank)


def joined(banks: Iterable[FolderBank]) -> FolderBank:
    """Return the prompts of all banks, each once."""
    first, *others = banks
    for other in others:
        first = first.joined(other)
    return first
