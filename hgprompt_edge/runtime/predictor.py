"""Run an exported model: images in, classes with probabilities out. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hgprompt_edge.artifacts.tasks.folder_bank import FolderBank
from hgprompt_edge.artifacts.tasks.task_file import TaskFile
from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.runtime.device_folder import DeviceFolder
from hgprompt_edge.runtime.learned import (
    AtWork,
    content_of,
    head_of,
    open_history,
    state_folder,
)
from hgprompt_edge.runtime.opened import open_any, open_task
from hgprompt_edge.runtime.prediction import Prediction, Way, predict_files
from hgprompt_edge.runtime.running import RunningModel

Tasks = dict[str, "tuple[TaskFile, FolderBank | None, Predictor]"]
"""Tasks of a device folder that were asked for, with what they were read from."""


class Predictor(RunningModel):
    """A model file, or a task of a device folder, that `hgedge export` wrote, ready to run.

    Threads can share one: each call gets its own images' results, at weights of one version, on
    every runtime. Whoever serves needs one predictor, not one a thread.

    Parameters
    ----------
    path
        The ONNX file, or the `.xml` of an OpenVINO model; a device folder, of which the default
        task is taken, see `task`; or one of its task files. It may come from anywhere, is checked.
    threads
        CPU threads of one run; None: as many as this process may use, by its affinity and its
        container's quota.
    device, bf16
        For OpenVINO models: `CPU`, `GPU` or `AUTO`, and whether to compute in bfloat16.
    state
        Folder of `hgedge adapt`, whose newest weights are taken, now and whenever `refresh` is
        called; for models whose weights can change. None: the initial ones.

    Attributes
    ----------
    metadata : Metadata
        What the file says about itself.
    assumed : Metadata or None
        The same, where the file says nothing but takes and gives what a model of ours does.
    bank : Bank or None
        What the weights mix, of a model whose weights can change.

    Warns
    -----
    UserWarning
        The file says nothing of itself, so that its resize rule is assumed. An int8 model computes
        other logits on this CPU than where its accuracy was measured; this is checked at the first
        start with a file on a CPU and remembered in the cache.

    Raises
    ------
    UserError
        No such file, not ONNX, truncated, not a model of ours, or the runtime is too old.
    """

    def __init__(
        self,
        path: Path | str,
        threads: int | None = None,
        *,
        device: str = "CPU",
        bf16: bool | None = None,
        state: Path | None = None,
    ) -> None:
        self._take(open_any(Path(path), threads, device=device, bf16=bf16))
        self._tasks: Tasks = {}
        if state is not None:
            self.follow(state)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of the device folder; of a model file its own."""
        folder = self._opened.folder
        return (self.metadata.task,) if folder is None else folder.tasks

    @property
    def device_folder(self) -> DeviceFolder | None:
        """The device folder of this task; None: a model file."""
        return self._opened.folder

    def task(self, name: str) -> Predictor:
        """Return a predictor of another task of this device folder, on the same loaded backbone.

        The first time it reads the task's file, then it costs microseconds. It takes over what
        was learned for the task: the newest weights of `NAME.state` in the folder, at each call
        and whenever `refresh` is called. As long as its file stays the same, so does the predictor.

        Raises
        ------
        UserError
            This is no device folder, it has no such task, or the task's file is damaged or of
            another backbone.
        """
        if self._opened.folder is None:
            raise FileError(
                self.path,
                "a model of one task, not a device folder; make one with `hgedge export A.hgbundle "
                "B.hgbundle -o FOLDER`",
            )
        folder = self._opened.folder
        file = folder.task(name)
        bank, known = folder.bank_of(file), self._tasks.get(name)
        if known is not None and known[0] is file and known[1] is bank:
            known[2].refresh()
            return known[2]
        other = Predictor.__new__(Predictor)
        other._take(open_task(folder, name))
        other._tasks, state = self._tasks, self._followed if name == self.metadata.task else None
        if other.bank is not None:
            other.follow(state or state_folder(other.path))
        self._tasks[name] = file, bank, other
        return other

    def follow(self, state: Path) -> None:
        """Take the newest weights of a state folder, now and whenever `refresh` is called.

        Raises
        ------
        UserError
            The weights are folded into this model, or the folder is another model's.
        """
        if self.bank is None:
            raise ParameterError(
                "state",
                state,
                f"the weights of {self.path} are folded into it; {self.how_to_adapt} to change "
                "them later",
            )
        history = open_history(state, self.bank, self.metadata, read_only=True)
        with self._changing:
            self._history, self._followed = history, state
        self.refresh(force=True)

    def refresh(self, *, force: bool = False) -> bool:
        """Take over newer weights from the state folder; returns whether there were any.

        Costs microseconds where there are none; call it between images. Where the folder was
        deleted, they are the initial ones again.
        """
        with self._changing:
            history, bank = self._history, self.bank
            if history is None or bank is None or not (force or history.changed()):
                return False
            version, now = history.current(), self._at_work
            if now.version is not None and content_of(now.version) == content_of(version):
                self._at_work = replace(now, version=version)
                return False
            given = self._opened.given_at(version.weights)
            self._at_work = AtWork(given, head_of(version, bank), version)
            return True

    def predict(self, paths: Iterable[Path | str], top: int = 1) -> list[Prediction]:
        """Classify image files, in their order; see `predict_paths`."""
        return list(self.predict_paths(map(Path, paths), top))

    def predict_paths(
        self, paths: Iterable[Path], top: int = 1, batch_size: int = 16
    ) -> Iterator[Prediction]:
        """Classify image files, `batch_size` at a time, in their order; memory stays bounded.

        Parameters
        ----------
        top
            Classes to name for each image; more than there are means all.

        Raises
        ------
        UserError
            The memory does not hold so many images.
        """
        found = predict_files([self.way()], self.preprocessing, paths, top, batch_size)
        return (prediction for (prediction,) in found)

    def way(self) -> Way:
        """Return how this predictor classifies, for `predict_files`."""
        task = self.metadata.task if self._opened.folder else ""
        return Way(self.judge, self.classes, task)
