"""Run an exported model: images in, classes with probabilities out. Needs no PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.device_bank import Bank, bank_path, difference, read_bank
from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, assume_metadata, parse_metadata
from hgprompt_edge.errors import UserError, brief
from hgprompt_edge.files import why_not
from hgprompt_edge.images.preprocess import Preprocessing, UnreadableImageError, read_image
from hgprompt_edge.maths.parity import TOLERANCES, Comparison, compare
from hgprompt_edge.maths.softmax import softmax
from hgprompt_edge.runtime.engines.engine import Engine, Port
from hgprompt_edge.runtime.engines.open import open_engine
from hgprompt_edge.runtime.other_cpu import Agreement, check_once, compare_cpus
from hgprompt_edge.state.history import Journal, Version

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

NO_PROBABILITIES = "the model gives no probabilities for it; export the model again"
"""Why an image has no class: its logits are NaN or infinite."""

ASSUMED = (
    "not from `hgedge export`: it lacks class names and the resize rule; classes are numbers, the "
    "shorter side is resized to the model's and the centre cropped"
)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes
    ----------
    labels
        `(class, probability)`, most probable first; empty for an image with an error.
    error
        Why it cannot be read, or `NO_PROBABILITIES`; else None.
    """

    path: Path
    labels: tuple[tuple[str, float], ...]
    error: str | None = None


@dataclass(frozen=True)
class _AtWork:
    """What one prediction needs beside the image; replaced as a whole, never changed.

    Attributes
    ----------
    given
        What the graph takes beside the image.
    head
        In place of the model's own, `[K, D]`, `[K]`.
    version
        Where both come from.
    """

    given: Mapping[str, Floats]
    head: tuple[Floats, Floats] | None = None
    version: Version | None = None


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
        called; for models with `--weights runtime`. None: the factory's.

    Attributes
    ----------
    metadata : Metadata
        What the file says about itself.
    assumed : Metadata or None
        The same, where the file says nothing but takes and gives what a model of ours does.
    bank : Bank or None
        What the weights mix, of a model with `--weights runtime`.

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
        self.assumed = None if known else _assume(self._engine)
        if self.assumed:
            warnings.warn(f"{path}: {ASSUMED}", stacklevel=2)
        self.metadata: Metadata = self.assumed or parse_metadata(path, self._engine.entries)
        self.bank = read_bank_of(path, self.metadata)
        _check_contract(path, self._engine, self.metadata, self.bank)
        self._at_work = _AtWork({})
        self._journal: Journal | None = None
        self._changing = Lock()
        if self.bank is not None:
            self.set_weights(self.bank.factory)
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
            raise UserError(
                f"--state {state}: the weights of {self.path} are folded into it; "
                "export it with `--weights runtime` to change them later"
            )
        if state.exists() and not state.is_dir():
            raise UserError(
                f"--state {state}: {why_not(state, 'folder')}; name the one that `adapt` printed"
            )
        mode = self.preprocessing.crop_mode
        journal = open_journal(state, self.bank, self.classes, resize=mode, read_only=True)
        with self._changing:
            self._journal = journal
        self.refresh(force=True)

    def release(self) -> None:
        """Let go of the graph and its memory; what the file says of itself stays."""
        del self._engine

    def set_weights(
        self, weights: npt.ArrayLike, head: tuple[Floats, Floats] | None = None
    ) -> None:
        """Mix the bank's prompts by `weights [M]` from the next image on; takes milliseconds.

        Parameters
        ----------
        head
            Another head `[K, D]`, `[K]` for the model's features; None: the model's own.

        Raises
        ------
        ValueError
            The weights are folded into this model.
        """
        if self.bank is None:
            raise ValueError(f"The weights of {self.path} are folded into it.")
        given = self.bank.inputs(weights)
        with self._changing:
            self._at_work = _AtWork(given, head, self.version)

    def refresh(self, *, force: bool = False) -> bool:
        """Take over newer weights from the state folder; returns whether there were any.

        Costs microseconds where there are none. Call it between images, as `predict --watch` does.
        Where the folder was deleted, they are the factory's again.
        """
        with self._changing:
            journal, bank = self._journal, self.bank
            if journal is None or bank is None or not (force or journal.changed()):
                return False
            version, now = journal.current(), self._at_work
            if now.version is not None and _content(now.version) == _content(version):
                self._at_work = replace(now, version=version)
                return False
            given = bank.inputs(version.weights)
            self._at_work = _AtWork(given, head_of(version, bank), version)
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
        weight, bias = now.head
        features = self._engine.run_all(pixels, now.given)[1]
        return cast("Floats", features @ weight.T + bias)

    def features(self, pixels: Pixels) -> Floats:
        """Features `[n, D]` of pixels `[n, S, S, 3]`, of a model with `--weights runtime`."""
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
            raise UserError(f"{self.path}: its {error}; export it again") from error
        if not len(images):
            raise UserError(f"{self.path}: carries no probe images to check it on; export it again")
        return compare(self.logits(images), reference, tolerance_of(self._engine.entries))

    def compare_cpus(self) -> Agreement | None:
        """Compare an int8 model's logits here with those where its accuracy was measured.

        At the factory weights. None where this says nothing: for a model in float, or where it
        runs in bfloat16 or not on the CPU, which rounds otherwise.

        Raises
        ------
        UserError
            The model carries no logits of its own, or damaged ones.
        """
        if self.metadata.precision != "int8" or not self._engine.as_exported:
            return None
        given = self.bank.inputs(self.bank.factory) if self.bank else {}
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
        remaining = iter(paths)
        while batch := list(islice(remaining, batch_size)):
            try:
                images = [self._read(path) for path in batch]
                readable = [image for image in images if not isinstance(image, str)]
                rows: Iterator[Floats] = iter(
                    self.probabilities(np.stack(readable)) if readable else ()
                )
            except MemoryError as error:
                raise UserError(
                    f"--batch-size {batch_size}: not enough memory for {len(batch)} images at a "
                    "time; give a smaller one"
                ) from error
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, str):
                    yield Prediction(path, (), image)
                    continue
                row = next(rows)
                if np.isfinite(row).all():
                    yield Prediction(path, self._top(row, top))
                else:
                    yield Prediction(path, (), NO_PROBABILITIES)

    def _read(self, path: Path) -> Pixels | str:
        try:
            return read_image(path, self.preprocessing)
        except UnreadableImageError as error:
            return error.reason

    def _top(self, probabilities: Floats, top: int) -> tuple[tuple[str, float], ...]:
        order = np.argsort(-probabilities, kind="stable")[:top]
        return tuple((self.classes[index], float(probabilities[index])) for index in order)


def tolerance_of(entries: Mapping[str, str]) -> float:
    """How far a model's logits may be from PyTorch's, relative to the largest (METHOD 8)."""
    return TOLERANCES[entries.get(f"{PREFIX}precision", "fp32")]


def _assume(engine: Engine) -> Metadata | None:
    """Metadata for a model of others, if it takes pixels and gives logits under our names."""
    shapes = [port.shape for port in (*engine.inputs, *engine.outputs)]
    if [len(shape) for shape in shapes] != [3, 1]:
        return None
    (height, width, _), (classes,) = shapes
    if height is None or height != width or classes is None:
        return None
    return assume_metadata(height, classes)


def read_bank_of(path: Path, metadata: Metadata) -> Bank | None:
    """Read the bank beside a model with `--weights runtime`, or None for one without.

    Raises
    ------
    UserError
        It is missing, damaged or of another model.
    """
    if not metadata.bank_sha256:
        return None
    place = bank_path(path)
    bank = read_bank(place)
    content, classes = metadata.bank_content_sha256, len(metadata.classes)
    if found := difference(bank, metadata.bank_sha256, content, classes):
        raise UserError(
            f"{place}: the bank of another model than {path.name} (it has {found}); copy both "
            "files of one export"
        )
    return bank


def head_of(version: Version, bank: Bank) -> tuple[Floats, Floats] | None:
    """Head `[K, D]`, `[K]` that a version moved; None: the model's own."""
    weight, bias = version.head_weight, version.head_bias
    if weight is None and bias is None:
        return None
    return (
        bank.head_weight if weight is None else weight,
        bank.head_bias if bias is None else bias,
    )


def _content(version: Version) -> tuple[object, ...]:
    """Return what sets a version apart, also from one of the same number in another journal."""
    arrays = (version.weights, version.head_weight, version.head_bias)
    return version.id, *(None if array is None else array.tobytes() for array in arrays)


def state_folder(model: Path) -> Path:
    """Where `hgedge adapt` keeps what it has learned for a model, unless told otherwise."""
    return model.with_name(f"{model.stem}.state")


def open_journal(
    state: Path, bank: Bank, classes: Sequence[str], *, resize: str = "", read_only: bool = False
) -> Journal:
    """Open what a device has learned for a model with this bank and these classes.

    `resize` is the model's `crop_mode`.
    """
    return Journal(
        state, bank.sha256, bank.factory, read_only=read_only, classes=classes, resize=resize
    )


def _check_contract(path: Path, engine: Engine, metadata: Metadata, bank: Bank | None) -> None:
    """Refuse a file whose graph is not what its metadata and its bank say."""
    side, classes = metadata.preprocessing.image_size, len(metadata.classes)
    inputs, outputs = (
        [Port("image", "uint8", (side, side, 3))],
        [Port("logits", "float", (classes,))],
    )
    if bank is not None:
        given = bank.inputs(bank.factory).items()
        inputs += [Port(name, "float", array.shape[1:]) for name, array in given]
        outputs.append(Port("features", "float", bank.head_weight.shape[1:]))
    if (engine.inputs, engine.outputs) != (tuple(inputs), tuple(outputs)):
        takes, gives = (
            brief(", ".join(map(str, ports))) for ports in (engine.inputs, engine.outputs)
        )
        raise UserError(
            f"{path}: takes {takes} and gives {gives}, which does not fit its metadata "
            f"({side} px, {classes} classes); export it again"
        )
