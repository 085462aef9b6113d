"""Run an exported model: images in, classes with probabilities out. Needs no PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, parse_metadata
from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.parity import Comparison, compare
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.runtime.contract import (
    ASSUMED,
    assumed_metadata,
    check_contract,
    read_bank_of,
    tolerance_of,
)
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.learned import AtWork, content_of, head_of, open_history
from hgprompt_edge.runtime.other_cpu import Agreement, check_once, compare_cpus
from hgprompt_edge.runtime.prediction import Prediction, predict_files
from hgprompt_edge.state.history import History, Version

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Predictor:
    """A model file that `hgedge export` wrote, ready to run.

    Threads can share one: each call gets its own images' results, at weights of one version, on
    every runtime. Whoever serves needs one predictor, not one a thread.

    Parameters
    ----------
    path
        The ONNX file, or the `.xml` of an OpenVINO model. It may come from anywhere, is checked.
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
        self.path = path = Path(path)
        self._engine = open_engine(path, threads, device=device, bf16=bf16)
        known = any(key.startswith(PREFIX) for key in self._engine.entries)
        self.assumed = None if known else assumed_metadata(self._engine)
        if self.assumed:
            warnings.warn(f"{path}: {ASSUMED}", stacklevel=2)
        self.metadata: Metadata = self.assumed or parse_metadata(path, self._engine.entries)
        self.bank = read_bank_of(path, self.metadata)
        check_contract(path, self._engine, self.metadata, self.bank)
        self._at_work = AtWork({})
        self._history: History | None = None
        self._changing = Lock()
        if self.bank is not None:
            self.set_weights(self.bank.initial)
        if self.metadata.precision == "int8" and self._engine.as_exported:
            found = check_once(path, self._engine, self.metadata, self._at_work.given)
            if found:
                warnings.warn(found, stacklevel=2)
        if state is not None:
            self.follow(state)

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
                f"the weights of {self.path} are folded into it; export it with `adapt=True` to "
                "change them later",
            )
        mode = self.preprocessing.crop_mode
        history = open_history(state, self.bank, self.classes, resize=mode, read_only=True)
        with self._changing:
            self._history = history
        self.refresh(force=True)

    def release(self) -> None:
        """Let go of the graph and its memory; what the file says of itself stays."""
        del self._engine

    def set_weights(self, weights: npt.ArrayLike, head: Head | None = None) -> None:
        """Mix the bank's prompts by `weights [M]` from the next image on; takes milliseconds.

        Parameters
        ----------
        head
            Another head `[K, D]` for the model's features; None: the model's own.

        Raises
        ------
        ValueError
            The weights are folded into this model.
        """
        if self.bank is None:
            raise ValueError(f"The weights of {self.path} are folded into it.")
        given = self.bank.inputs(weights)
        with self._changing:
            self._at_work = AtWork(given, head, self.version)

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
            given = bank.inputs(version.weights)
            self._at_work = AtWork(given, head_of(version, bank), version)
            return True

    @property
    def version(self) -> Version | None:
        """Which weights of the state folder are at work."""
        return self._at_work.version

    @property
    def entries(self) -> Mapping[str, str]:
        """The file's metadata as they stand in it."""
        return self._engine.entries

    @property
    def runtime(self) -> str:
        """Name and version of what runs the model."""
        return self._engine.runtime

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.metadata.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the pixels that the model takes."""
        return self.metadata.preprocessing

    def logits(self, pixels: Pixels) -> Floats:
        """Logits `[n, K]` float32 of pixels `[n, S, S, 3]` uint8, RGB, resized and cropped."""
        self._check(pixels)
        if len(pixels) == 0:
            return np.zeros((0, len(self.classes)), np.float32)
        now = self._at_work
        if now.head is None:
            return self._engine.run(pixels, now.given)
        return now.head.logits(self._engine.run_all(pixels, now.given)[1])

    def features(self, pixels: Pixels) -> Floats:
        """Features `[n, D]` of pixels `[n, S, S, 3]`, of a model whose weights can change."""
        self._check(pixels)
        return self._engine.run_all(pixels, self._at_work.given)[1]

    def _check(self, pixels: Pixels) -> None:
        side = self.preprocessing.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(
                f"The 'pixels' must be uint8 [n, {side}, {side}, 3]. "
                f"Got {pixels.dtype} {list(pixels.shape)} instead."
            )

    def probabilities(self, pixels: Pixels) -> Floats:
        """Probabilities `[n, K]` of pixels `[n, S, S, 3]`.

        Each row sums to 1, or holds NaN where its logits are NaN or infinite.
        """
        return softmax(self.logits(pixels))

    def compare_probe(self) -> Comparison:
        """Compare the logits on the model's own probe images with those that PyTorch gave.

        Raises
        ------
        UserError
            The model carries no probe images, or damaged ones.
        """
        try:
            images, reference = self.metadata.probe()
        except ValueError as error:
            raise FileError(self.path, f"its {error}; export it again") from error
        if not len(images):
            raise FileError(self.path, "carries no probe images to check it on; export it again")
        return compare(self.logits(images), reference, tolerance_of(self._engine.entries))

    def compare_cpus(self) -> Agreement | None:
        """Compare an int8 model's logits here with those where its accuracy was measured.

        At the initial weights. None where this says nothing: for a model in float, or where it
        runs in bfloat16 or not on the CPU, which rounds otherwise.

        Raises
        ------
        UserError
            The model carries no logits of its own, or damaged ones.
        """
        if self.metadata.precision != "int8" or not self._engine.as_exported:
            return None
        given = self.bank.inputs(self.bank.initial) if self.bank else {}
        return compare_cpus(self.path, self._engine, self.metadata, given)

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
        return predict_files(
            self.probabilities, self.preprocessing, self.classes, paths, top, batch_size
        )
