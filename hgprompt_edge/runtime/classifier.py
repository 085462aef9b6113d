"""One photograph to a class in one line: `load("pets.onnx")("photo.jpg")`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.images.decode import open_image, upright_rgb
from hgprompt_edge.images.preprocess import Preprocessing, to_array
from hgprompt_edge.runtime.learned import state_folder
from hgprompt_edge.runtime.prediction import FALSE_ALARMS
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.running import Floats, Pixels

Photo: TypeAlias = (
    "str | PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]"
)
"""A file's path or its content, a Pillow image, or pixels `[H, W, 3]`, RGB, or grey `[H, W]`."""

CONTENT = (bytes, bytearray, memoryview)

BATCH = 16


@dataclass(frozen=True)
class Classification:
    """Which class an image is of.

    Attributes
    ----------
    labels
        All classes, the most probable first.
    probabilities
        Of each, in the same order; they sum to 1.
    unknown
        Whether it looks more foreign than 95 % of the task's own images; None: the model cannot
        tell.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    unknown: bool | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """That of the most probable class."""
        return self.probabilities[0]

    def __repr__(self) -> str:
        unknown = ", unknown=True" if self.unknown else ""
        return f"Classification({self.label!r}, {self.probability:.4f}{unknown})"


class Classifier:
    """A model that takes photographs in any form; what `load` returns. Threads can share it.

    Attributes
    ----------
    predictor : Predictor
        The model; on prepared pixels it gives logits, probabilities and features.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's logits."""
        return self.predictor.classes

    # A str is an iterable of str, too, for whoever only sees types.
    @overload
    def __call__(self, images: Photo) -> Classification: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Iterable[Photo]) -> list[Classification]: ...
    def __call__(self, images: Photo | Iterable[Photo]) -> Classification | list[Classification]:
        """Classify a photograph, or several.

        Turned upright, resized and cropped as for the model, whatever the form. Several are decoded
        and computed 16 at a time.

        Parameters
        ----------
        images
            The path of an image file, its bytes, a Pillow image, or an array uint8 `[H, W, 3]` in
            the order red, green, blue (OpenCV's is the reverse), `[H, W, 4]` or grey `[H, W]`; or
            several: any iterable of these, or an array `[n, H, W, 3]`.

        Raises
        ------
        UnreadableImageError
            A file that is missing or cannot be decoded; its attribute `name` says which.
        UserError
            The model gives no probabilities for an image: its logits are NaN or infinite.
        TypeError, ValueError
            What is no image, or an array of another type or shape.
        """
        self.predictor.refresh()
        if isinstance(images, (str, PathLike, *CONTENT, Image.Image)):
            return self._classify([images], ["image"])[0]
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self._classify([images], ["image"])[0]
        # What has items that are no photographs would fail on the first of these.
        foreign = hasattr(images, "read") or isinstance(images, Mapping)
        if foreign or not isinstance(images, Iterable):
            raise TypeError(
                "The 'images' must be photographs: paths, bytes, Pillow images or arrays. "
                f"Got {_kind(images)} instead."
            )
        return self._several(images)

    def _several(self, images: Iterable[Photo]) -> list[Classification]:
        found: list[Classification] = []
        remaining = iter(images)
        while batch := list(islice(remaining, BATCH)):
            found += self._classify(batch, [f"image {len(found) + i}" for i in range(len(batch))])
        return found

    def _classify(self, images: Sequence[Photo], names: Sequence[str]) -> list[Classification]:
        preprocessing = self.predictor.preprocessing
        pixels = [
            _pixels(image, preprocessing, name) for image, name in zip(images, names, strict=True)
        ]
        rows, shares = self.predictor.judge(np.stack(pixels))
        for image, name, row in zip(images, names, rows, strict=True):
            if not np.isfinite(row).all():
                raise FileError(
                    self.predictor.path,
                    "gives no probabilities for "
                    f"{image if isinstance(image, (str, PathLike)) else name}; export the model "
                    "again",
                )
        known = (
            [None] * len(rows) if shares is None else [share <= FALSE_ALARMS for share in shares]
        )
        return [self._sorted(row, unknown) for row, unknown in zip(rows, known, strict=True)]

    def _sorted(self, probabilities: Floats, unknown: bool | None) -> Classification:
        order = np.argsort(-probabilities, kind="stable")
        return Classification(
            tuple(self.classes[index] for index in order),
            tuple(probabilities[order].tolist()),
            None if unknown is None else bool(unknown),
        )


def load(
    model: str | PathLike[str],
    *,
    task: str | None = None,
    threads: int | None = None,
    device: str = "CPU",
    bf16: bool | None = None,
    state: str | PathLike[str] | None = None,
) -> Classifier:
    """Load a model that `hgedge export` wrote, ready for photographs; needs no PyTorch.

    >>> load("pets.onnx")("photo.jpg")  # doctest: +SKIP
    Classification('beagle', 0.9731)

    Parameters
    ----------
    model
        The ONNX file, or the `.xml` of an OpenVINO model, or a device folder.
    task
        Of a device folder; None: its default task, see `Predictor.task`.
    threads, device, bf16
        As of `Predictor`.
    state
        Folder of `hgedge adapt`, of a model that adapts; None: `MODEL.state`, as
        `hgedge predict` does. Newer weights in it are taken over before each call.

    Raises
    ------
    UserError
        As of `Predictor`; or `task` is given for a model of one task.
    """
    path = Path(model)
    predictor = Predictor(path, threads, device=device, bf16=bf16)
    if task is not None:
        if predictor.device_folder is None:
            raise ParameterError("task", task, f"{path} is a model of one task; leave it out")
        predictor = predictor.task(task)
    if state is not None:
        predictor.follow(Path(state))
    elif predictor.bank is not None:
        predictor.follow(state_folder(predictor.path))
    return Classifier(predictor)


def _pixels(image: Photo, preprocessing: Preprocessing, name: str = "image") -> Pixels:
    """Bring a photograph in any form to the pixels `[S, S, 3]` that the model takes."""
    if isinstance(image, (str, PathLike)):
        path = Path(image)
        return to_array(open_image(path), preprocessing, str(path))
    if isinstance(image, CONTENT):
        return to_array(open_image(io.BytesIO(image), name), preprocessing, name)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_checked(image, name))
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"The {name} must be a path, bytes, a Pillow image or an array. "
            f"Got {_kind(image)} instead."
        )
    return to_array(upright_rgb(image, name), preprocessing, name)


def _checked(array: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    grey = array.ndim == 2
    colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (grey or colour) or 0 in array.shape:
        raise ValueError(
            f"The {name} must be uint8 [H, W, 3], [H, W, 4] or grey [H, W], pixels of 0 to 255. "
            f"Got {array.dtype} {list(array.shape)} instead."
        )
    return np.ascontiguousarray(array)


def _kind(value: object) -> str:
    return type(value).__name__
