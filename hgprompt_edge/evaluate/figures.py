"""The figures of one model on labelled images: accuracy, classes, confusions, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.evaluate.calibration import Calibration, calibration
from hgprompt_edge.maths.proportions import Proportion, mean_of_proportions, wilson

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassFigures:
    """One class of the model.

    Attributes
    ----------
    images
        How many are of this class.
    predicted
        How many the model takes for it.
    right
        How many of these are of it.
    """

    name: str
    images: int
    predicted: int
    right: int

    @property
    def recall(self) -> Proportion | None:
        """Share of its images that are found; None without images."""
        return wilson(self.right, self.images) if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the images taken for it that are of it; None where there are none."""
        return self.right / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of recall and precision; None without images and predictions."""
        both = self.images + self.predicted
        return 2 * self.right / both if both else None


@dataclass(frozen=True)
class Confusion:
    """Images of one class that the model takes for another."""

    name: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Figures:
    """What a model is worth on labelled images.

    Attributes
    ----------
    accuracy
        Share of right images, with Wilson's interval.
    balanced_accuracy
        Mean recall of the classes that have images, see `mean_of_proportions`.
    classes
        In the order of the model's classes, those without images among them.
    confusion
        Images by class (rows) and predicted class (columns), of shape (n_classes, n_classes).
    """

    images: int
    accuracy: Proportion
    balanced_accuracy: Proportion
    classes: tuple[ClassFigures, ...]
    confusion: Places
    calibration: Calibration

    def confusions(self) -> list[Confusion]:
        """Name what is taken for what, the most frequent first."""
        off = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        rows, columns = np.nonzero(off)
        names = [each.name for each in self.classes]
        found = [
            Confusion(names[i], names[j], int(off[i, j]))
            for i, j in zip(rows, columns, strict=True)
        ]
        return sorted(found, key=lambda each: -each.images)


def measure(
    labels: npt.ArrayLike,
    predicted: npt.ArrayLike,
    confidence: npt.NDArray[np.floating],
    classes: Sequence[str],
) -> Figures:
    """Compare what a model says with what the images are.

    Parameters
    ----------
    labels, predicted
        Places in `classes`, of shape (n_images,).
    confidence
        Probability of the predicted class, of shape (n_images,), float.

    Raises
    ------
    ValueError
        No images.
    """
    truth, said = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    if not len(truth):
        raise ValueError("There must be one image at least.")
    count = len(classes)
    confusion = np.bincount(count * truth + said, minlength=count**2).reshape(count, count)
    found = tuple(
        ClassFigures(
            name, int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        )
        for i, name in enumerate(classes)
    )
    return Figures(
        images=len(truth),
        accuracy=wilson(int(np.trace(confusion)), len(truth)),
        balanced_accuracy=mean_of_proportions(
            [(each.right, each.images) for each in found if each.images]
        ),
        classes=found,
        confusion=confusion,
        calibration=calibration(confidence, truth == said),
    )
