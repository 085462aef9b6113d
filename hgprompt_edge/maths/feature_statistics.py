"""What clean images look like to a model: statistics of their features, for each class too.

A device judges by them whether something has changed, and whether a new mix brings it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import ParameterError

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.generic]]
MEAN, VARIANCE = "clean.mean", "clean.var"
CLASS_MEANS, CLASS_COUNTS = "clean.class_mean", "clean.class_count"


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the features of clean images.

    Attributes
    ----------
    mean, variance
        `[D]` float32, the variance with `n - 1`.
    class_means
        `[K, D]` float32, zero for a class without images; None: not told apart by class.
    class_counts
        `[K]` int64: how many images of each class; None as `class_means`.
    """

    mean: Floats
    variance: Floats
    class_means: Floats | None = None
    class_counts: Counts | None = None

    def counts(self, places: Sequence[int]) -> Counts | None:
        """How many images of each of these classes; None: not known."""
        return None if self.class_counts is None else self.class_counts[list(places)]

    def of(self, places: Sequence[int]) -> FeatureStatistics | None:
        """Mean and variance of clean images of these classes alone, in the same proportions.

        The variance is that within classes, pooled over all, and that between the means of these.

        Parameters
        ----------
        places
            Numbers of the classes, each once.

        Returns
        -------
        None where a class has no image, no class has two, or they are not told apart.
        """
        if self.class_means is None or self.class_counts is None:
            return None
        if len(places) == len(self.class_counts):
            return self
        counts = self.class_counts[list(places)].astype(np.float64)
        total, present = int(self.class_counts.sum()), int((self.class_counts > 0).sum())
        if not counts.all() or total <= present:
            return None
        means = self.class_means.astype(np.float64)
        off = self.class_counts[:, None] * np.square(means - self.mean)
        within = ((total - 1) * self.variance.astype(np.float64) - off.sum(0)) / (total - present)
        within = np.maximum(within, 1e-6 * self.variance)  # rounding may take it below zero
        shares = counts / counts.sum()
        mean = shares @ means[list(places)]
        between = shares @ np.square(means[list(places)] - mean)
        return FeatureStatistics(mean.astype(np.float32), (within + between).astype(np.float32))

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a bundle or a bank holds of them."""
        if self.class_means is None or self.class_counts is None:
            raise ValueError("Statistics in a file must be told apart by class.")
        means, counts = self.class_means, self.class_counts
        return {
            MEAN: self.mean,
            VARIANCE: self.variance,
            CLASS_MEANS: means,
            CLASS_COUNTS: counts,
        }


def measure_statistics(
    features: Floats, labels: npt.NDArray[np.int64], classes: int
) -> FeatureStatistics:
    """Statistics of the features `[n, D]` of clean images with labels `[n]`."""
    counts = np.bincount(labels, minlength=classes).astype(np.int64)
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features.astype(np.float64))
    means = sums / np.maximum(counts, 1)[:, None]
    return FeatureStatistics(
        features.mean(0, dtype=np.float64).astype(np.float32),
        features.var(0, ddof=1, dtype=np.float64).astype(np.float32),
        means.astype(np.float32),
        counts,
    )


def read_statistics(tensors: Arrays, classes: int, width: int) -> FeatureStatistics | None:
    """Read and check the statistics that a file holds; None: it holds none.

    Raises
    ------
    ValueError
        They do not fit `classes` and the `width` of the features, or a part is missing.
    """
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        MEAN: ((width,), np.float32),
        VARIANCE: ((width,), np.float32),
        CLASS_MEANS: ((classes, width), np.float32),
        CLASS_COUNTS: ((classes,), np.int64),
    }
    if not tensors.keys() & shapes.keys():
        return None
    for name, (shape, dtype) in shapes.items():
        if name not in tensors:
            raise ValueError(f"'{name}' is missing")
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise ValueError(f"'{name}' is {found}, not {np.dtype(dtype)} {list(shape)}")
    floats, counts = cast("Mapping[str, Floats]", tensors), tensors[CLASS_COUNTS]
    for name in (VARIANCE, CLASS_COUNTS):
        if (floats[name] < 0).any():
            raise ValueError(f"'{name}' is below 0")
    return FeatureStatistics(
        floats[MEAN], floats[VARIANCE], floats[CLASS_MEANS], cast("Counts", counts)
    )


def places_of(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Places of the named classes among those of the model, each once, in its order.

    Raises
    ------
    UserError
        A name that the model does not have, or none at all.
    """
    for name in names:
        if name not in classes:
            known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise ParameterError(
                "expected",
                None,
                f"'{name}' is not one of the model's {len(classes)} classes ({known}); separate "
                "names with commas",
            )
    if not names:
        raise ParameterError(
            "expected", None, "names no class; give the classes that the images show"
        )
    return tuple(sorted({classes.index(name) for name in names}))
