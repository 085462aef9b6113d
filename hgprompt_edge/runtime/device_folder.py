"""Many tasks on one loaded backbone: a task is a handful of tensors that are handed in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.tasks.device_files import (
    BANK,
    ONNX,
    OPENVINO,
    SUFFIX,
    WEIGHTS,
    BackboneFacts,
    bad_name,
    graph_of,
    parse_facts,
    task_paths,
)
from hgprompt_edge.artifacts.tasks.folder_bank import FolderBank, read_folder_bank
from hgprompt_edge.artifacts.tasks.task_bank import TaskBank, given_at
from hgprompt_edge.artifacts.tasks.task_file import TaskFile, misfit, read_task
from hgprompt_edge.artifacts.tasks.task_tensors import NAMES
from hgprompt_edge.errors import FileError, MismatchError, brief, some
from hgprompt_edge.files import DAMAGE, sha256_file
from hgprompt_edge.maths.parity import TOLERANCES, Comparison, compare
from hgprompt_edge.paths import why_not
from hgprompt_edge.runtime.engines.engine import Engine
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.other_cpu import check_once

Stamp = tuple[int, int]
"""What differs once a file was written again."""


class DeviceFolder:
    """The backbone of a device folder, loaded once, and the tasks beside it, read when asked for.

    Threads can share it.

    Parameters
    ----------
    folder
        What `hgedge export ... -o FOLDER` wrote.
    threads, device, bf16
        As of `Predictor`.

    Raises
    ------
    UserError
        It is no device folder, or its backbone does not load or is damaged.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        *,
        device: str = "CPU",
        bf16: bool | None = None,
    ) -> None:
        graph = folder_graph(folder)
        self.folder, self.graph = folder, graph
        self.engine: Engine = open_engine(graph, threads, device=device, bf16=bf16)
        self.facts: BackboneFacts = parse_facts(graph, self.engine.entries)
        check_weights(graph, self.engine.entries)
        names = tuple(port.name for port in self.engine.inputs[1:])
        if names != NAMES:
            takes = some(names) or "nothing"
            raise FileError(
                graph,
                f"takes {takes} beside the image and not {some(NAMES)}; export the folder again",
            )
        self._read: dict[str, tuple[Stamp, TaskFile]] = {}
        self._bank: tuple[Stamp, FolderBank] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the folder, in alphabetical order."""
        return tuple(task_paths(self.folder))

    def task(self, name: str) -> TaskFile:
        """Return a task, read anew where its file has changed.

        Raises
        ------
        UserError
            There is none of that name, it is damaged, or of another backbone.
        """
        path = self.folder / f"{name}{SUFFIX}"
        if bad_name(name) or not path.is_file():
            raise FileError(self.folder, f"has no task {name} ({some(self.tasks)}); name one")
        stamp = _stamp(path)
        known = self._read.get(name)
        if known is None or known[0] != stamp:
            known = stamp, read_fitting(path, self.facts, self.graph, self.width)
            self._check_cpu(path, known[1])
            self._read[name] = known
        return known[1]

    def _check_cpu(self, path: Path, task: TaskFile) -> None:
        """Warn where int8 computes otherwise than where the accuracy was measured."""
        if self.facts.precision == "int8" and self.engine.as_exported:
            other = check_once(path, self.engine, task.metadata, task.tensors.inputs())
            if other:
                warnings.warn(other, stacklevel=3)

    def bank_of(self, task: TaskFile) -> FolderBank | None:
        """Return the prompts of the folder, read once for all tasks; None: the task mixes none.

        Raises
        ------
        UserError
            They are missing, damaged, of another backbone, or the task mixes others, too.
        """
        if task.bank is None or not task.bank.digests:
            return None
        path = self.folder / BANK
        stamp = _stamp(path) if path.is_file() else (0, 0)
        if self._bank is None or self._bank[0] != stamp:
            self._bank = stamp, read_folder_bank(path, self.facts.backbone_sha256)
        bank = self._bank[1]
        if missing := [name for name in task.bank.digests if name not in bank.prompts]:
            raise MismatchError(
                path,
                self.folder / f"{task.name}{SUFFIX}",
                f"it lacks {len(missing)} of the {len(task.bank.digests)} prompts that the task "
                "mixes",
                "add the task with `hgedge device add`",
            )
        return bank

    def check(self, task: TaskFile, prompts: FolderBank | None = None) -> Comparison:
        """Compare what a task gives here for its own images with what PyTorch gave.

        `prompts` are those that it mixes; None: none.
        """
        images, reference = task.metadata.probe()
        given = task.tensors
        if task.bank is not None:
            bank = assembled(self.folder / f"{task.name}{SUFFIX}", task.bank, prompts)
            given = given_at(given, bank, bank.initial)
        logits = self.engine.run(images, given.inputs())
        return compare(logits, reference, TOLERANCES[self.facts.precision])

    def default(self) -> str:
        """Name of the only task, or of the one folded into the default model; one that is there.

        Raises
        ------
        UserError
            There is no task in the folder.
        """
        names = self.tasks
        if not names:
            raise FileError(
                self.folder,
                f"holds no task; add one with `hgedge device add {quote(str(self.folder))} FILE`",
            )
        return self.facts.default if self.facts.default in names else names[0]

    @property
    def width(self) -> int:
        """Of the features that the backbone gives."""
        width = self.engine.outputs[1].shape[0]
        assert width is not None
        return width


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def assembled(path: Path, task: TaskBank, prompts: FolderBank | None) -> Bank:
    """Return what a task mixes, with the prompts of its folder.

    Raises
    ------
    UserError
        Its file is damaged.
    """
    try:
        return task.whole(prompts)
    except DAMAGE as error:
        raise FileError(path, f"damaged task ({brief(error)}); copy or export it again") from error


def folder_graph(folder: Path) -> Path:
    """Return the graph of a device folder.

    Raises
    ------
    UserError
        It is none.
    """
    graph = graph_of(folder)
    both = [files.graph for files in (ONNX, OPENVINO) if (folder / files.graph).is_file()]
    if len(both) > 1:
        raise FileError(folder, f"holds {some(both)}; remove the one that its tasks are not for")
    if graph is None:
        what = why_not(folder, "device folder")
        if folder.is_dir():
            what = "a folder, not a model file and no device folder"
        raise FileError(
            folder,
            f"{what} (it holds no backbone.onnx or backbone.xml); make one with `hgedge export`",
        )
    return graph


def read_fitting(path: Path, facts: BackboneFacts, graph: Path, width: int) -> TaskFile:
    """Read a task, and refuse one that the backbone cannot run.

    Raises
    ------
    UserError
        It is damaged, or of another backbone; says both.
    """
    task = read_task(path)
    if found := misfit(task, facts, width):
        raise MismatchError(path, graph, found, "export it from a bundle of that backbone")
    if facts.precision == "int8" and (
        task.metadata.quantization.get("backbone") != facts.quantized_sha256
    ):
        raise MismatchError(
            path,
            graph,
            "its accuracy on this int8 backbone was never measured",
            "add its bundle with `hgedge device add` on the server, which measures it",
        )
    return task


def check_weights(path: Path, entries: Mapping[str, str]) -> None:
    """Refuse an ONNX file whose weights, in a file beside it, are not those of its export.

    Raises
    ------
    UserError
        They are others, or damaged.
    """
    wanted = entries.get(f"{PREFIX}weights_sha256")
    weights = path.parent / WEIGHTS
    if path.suffix == ".onnx" and wanted is not None and sha256_file(weights) != wanted:
        raise FileError(
            weights, f"damaged, or of another export than {path.name}; copy the folder again"
        )
