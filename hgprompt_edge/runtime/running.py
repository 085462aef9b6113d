"""A model, or a task, that is open: pixels in, logits, features and shares of own images out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import FOLDED
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.tasks.task_tensors import BIAS, HEAD
from hgprompt_edge.errors import FileError
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.parity import Comparison, compare
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.runtime.contract import tolerance_of
from hgprompt_edge.runtime.learned import AtWork
from hgprompt_edge.runtime.opened import Opened
from hgprompt_edge.runtime.other_cpu import Agreement, compare_cpus
from hgprompt_edge.state.history import History, Version

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class RunningModel:
    """What `Predictor` is on pixels; threads can share it."""

    def _take(self, opened: Opened) -> None:
        """Be the predictor of what was opened."""
        self._opened, self.path, self._engine = opened, opened.path, opened.engine
        self.metadata, self.bank = opened.metadata, opened.bank
        self.assumed = opened.metadata if opened.assumed else None
        self._at_work = AtWork(opened.given)
        self._history: History | None = None
        self._followed: Path | None = None
        self._changing = Lock()

    def release(self) -> None:
        """Let go of the graph and its memory; what the file says of itself stays."""
        del self._engine, self._opened

    def require_bank(self) -> Bank:
        """Return the bank of a model whose weights can change.

        Raises
        ------
        UserError
            They are folded into it.
        """
        if self.bank is None:
            raise FileError(
                self.path,
                f"its weights are folded into it; {self.how_to_adapt} to change them on a device",
            )
        return self.bank

    @property
    def how_to_adapt(self) -> str:
        """What to do where the weights are folded in, for messages."""
        folder = self._opened.folder
        if folder is None:
            return "export it with `adapt=True`"
        if folder.facts.precision == "int8":
            return (
                f"export the tasks of {self.path.parent} to another folder in float32 with "
                "`adapt=True`"
            )
        return f"export the tasks of {self.path.parent} again with `adapt=True`"

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
        given = self._opened.given_at(weights)
        with self._changing:
            self._at_work = AtWork(given, head, self.version)

    def tensors_in_force(self) -> dict[str, Floats]:
        """Return what the backbone takes for a task at the weights in force, its head among them.

        Raises
        ------
        UserError
            The bias of several folded prompts has moved, which is no part of the graph.
        """
        now = self._at_work
        given = dict(now.given)
        if now.head is None:
            return given
        if self._opened.bank is not None and self._opened.bank.names == (FOLDED,):
            raise FileError(
                self.path,
                "its learned bias comes on top of several folded prompts, so that no input of the "
                "graph can hold it; run `hgedge state reset` first",
            )
        weight = np.zeros_like(given[HEAD])
        weight[0, : now.head.weight.shape[1]] = now.head.weight.T
        return {**given, HEAD: weight, BIAS: now.head.bias[None].astype(np.float32)}

    @property
    def version(self) -> Version | None:
        """Which weights of the state folder are at work."""
        return self._at_work.version

    @property
    def entries(self) -> Mapping[str, str]:
        """The file's metadata as they stand in it."""
        return self._opened.entries

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
        outputs = self._engine.run_all(pixels, now.given)
        return now.head.logits(self._opened.head_inputs(outputs))

    def features(self, pixels: Pixels) -> Floats:
        """Features `[n, D]` of pixels `[n, S, S, 3]`, of a model that gives them."""
        self._check(pixels)
        return self._engine.run_all(pixels, self._at_work.given)[1]

    def head_inputs(self, pixels: Pixels) -> Floats:
        """Return what another head can be applied to, `[n, D]`, of pixels `[n, S, S, 3]`.

        The features, but for a task of a device folder: see `Opened.head_inputs`.
        """
        self._check(pixels)
        return self._opened.head_inputs(self._engine.run_all(pixels, self._at_work.given))

    def probabilities(self, pixels: Pixels) -> Floats:
        """Probabilities `[n, K]` of pixels `[n, S, S, 3]`.

        Each row sums to 1, or holds NaN where its logits are NaN or infinite.
        """
        return softmax(self.logits(pixels))

    @property
    def reference(self) -> Reference | None:
        """What the task's own images look like at the mix in force; None: not known."""
        return None if self._moved(self._at_work) else self._opened.reference

    @property
    def initial_reference(self) -> Reference | None:
        """What they look like at the initial mix, whatever is in force; None: not known."""
        return self._opened.reference

    def judge(self, pixels: Pixels) -> tuple[Floats, Floats | None]:
        """Probabilities `[n, K]`, and the share `[n]` of own images that look as foreign.

        The latter is None where `reference` is; see `Reference.share_beyond`.
        """
        if self.reference is None or len(pixels) == 0:
            return self.probabilities(pixels), None
        return self.judge_and_features(pixels)[0]

    def judge_and_features(self, pixels: Pixels) -> tuple[tuple[Floats, Floats | None], Floats]:
        """Return what `judge` gives, and the features `[n, D]` at the initial mix.

        One run gives both, unless another mix is in force: then there is a second one.
        """
        self._check(pixels)
        now = self._at_work
        logits, features = outputs = self._engine.run_all(pixels, now.given)
        if now.head is not None:
            logits = now.head.logits(self._opened.head_inputs(outputs))
        probabilities, reference = softmax(logits), self._opened.reference
        if self._moved(now):
            return (probabilities, None), self._engine.run_all(pixels, self._opened.given)[1]
        if reference is None:
            return (probabilities, None), features
        seen = reference.see(features[:, : len(reference.centre)])
        shares = reference.share_beyond(seen.scores).astype(np.float32)
        return (probabilities, shares), features

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
        return compare(self.logits(images), reference, tolerance_of(self.entries))

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
        return compare_cpus(self.path, self._engine, self.metadata, self._opened.given)

    def _moved(self, now: AtWork) -> bool:
        start = self._opened.given
        return now.given is not start and not all(
            np.array_equal(start[name], given) for name, given in now.given.items()
        )

    def _check(self, pixels: Pixels) -> None:
        side = self.preprocessing.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(
                f"The 'pixels' must be uint8 [n, {side}, {side}, 3]. "
                f"Got {pixels.dtype} {list(pixels.shape)} instead."
            )
