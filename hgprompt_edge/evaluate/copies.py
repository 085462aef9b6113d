"""Images that say little about a model: it was trained on them, or they are in two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.metadata import Metadata
from hgprompt_edge.artifacts.training_images import Known, TrainingImages, find_known
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import DAMAGE
from hgprompt_edge.images.near_pairs import same_pixels
from hgprompt_edge.images.picture_hash import Hashes


@dataclass(frozen=True)
class Copies:
    """What `find_copies` found among the images of an evaluation.

    Attributes
    ----------
    trained
        Of each model the images that it was trained on; None: it does not say.
    known
        Of each model, which of the images are among those; None as above.
    twice
        Places of images, of shape (n_pairs, 2), with equal pixels and different classes.
    """

    trained: tuple[TrainingImages | None, ...]
    known: tuple[Known | None, ...]
    twice: npt.NDArray[np.int64]


def find_copies(
    hashes: Hashes,
    labels: npt.NDArray[np.int64],
    models: Sequence[tuple[Path, Metadata]],
) -> Copies:
    """Find images that models were trained on, and those that are in two classes.

    Parameters
    ----------
    labels
        Places of the images' classes, of shape (n_images,).

    Raises
    ------
    UserError
        What a model says of its training images is damaged.
    """
    trained = tuple(_trained(path, metadata) for path, metadata in models)
    known = tuple(None if each is None else find_known(hashes, each) for each in trained)
    return Copies(trained, known, np.stack(same_pixels(hashes, labels), axis=1))


def _trained(path: Path, metadata: Metadata) -> TrainingImages | None:
    try:
        return metadata.trained()
    except DAMAGE as error:
        raise FileError(
            path,
            f"'hgprompt.training_images' is malformed ({brief(error)}); export the model again",
        ) from error
