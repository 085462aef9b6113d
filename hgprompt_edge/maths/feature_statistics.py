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
Statistics = tuple[Floats, Floats]
"""Mean and variance `[D]` of features."""
MEAN, VARIANCE = "clean.mean", "clean.var"
CLASS_MEANS, CLASS_COUNTS = "clean.class_mean", "clean.class_count"


@dataclass(frozen=True)
class Clean:
    """Statistics of the features of clean images.

    Attributes
    ----------
    mean, variance
        `[D]` float32, the variance with `n - 1`.
    class_means
        `[K, D]` float32, zero for a class without images; None: a file from before they were kept.
    class_counts
        `[K]` int64: how many images of each class; None as `class_means`.
    """

    mean: Floats
    variance: Floats
    class_means: Floats | None = None
    class_counts: Counts | None = None

    @property
    def statistics(self) -> Statistics:
        """Mean and variance of all of them."""
        return self.mean, self.variance

    def counts(self, places: Sequence[int]) -> Counts | None:
        """How many images of each of these classes; None: not known."""
        return None if self.class_counts is None else self.class_counts[list(places)]

    def of(self, places: Sequence[int]) -> Statistics | None:
        """Mean and variance of clean images of these classes alone, in the same proportions.

        The variance is that within classes, pooled over all, and that between the means of these.

        Parameters
        ----------
        places
            Numbers of the classes, each once.

        Returns
        -------
        None where a class has no image, or no class has two, or the file does not say.
        """
        if self.class_means is None or self.class_counts is None:
            return None
        if len(places) == len(self.class_counts):
            return self.statistics
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
        return mean.astype(np.float32), (within + between).astype(np.float32)

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a bundle or a bank holds of them."""
        found: dict[str, npt.NDArray[np.generic]] = {MEAN: self.mean, VARIANCE: self.variance}
        if self.class_means is not None and self.class_counts is not None:
            found |= {CLASS_MEANS: self.class_means, CLASS_COUNTS: self.class_counts}
        return found


def clean_of(features: Floats, labels: npt.NDArray[np.int64], classes: int) -> Clean:
    """Statistics of the features `[n, D]` of clean images with labels `[n]`."""
    counts = np.bincount(labels, minlength=classes).astype(np.int64)
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features.astype(np.float64))
    means = sums / np.maximum(counts, 1)[:, None]
    return Clean(
        features.mean(0, dtype=np.float64).astype(np.float32),
        features.var(0, ddof=1, dtype=np.float64).astype(np.float32),
        means.astype(np.float32),
        counts,
    )


def read_clean(tensors: Arrays, classes: int, width: int) -> Clean | None:
    """Read and check the statistics that a file holds; None: it holds none.

    Raises
    ------
    ValueError
        They do not fit `classes` and the `width` of the features, or a part is missing.
    """
    if MEAN not in tensors and VARIANCE not in tensors:
        if CLASS_MEANS in tensors or CLASS_COUNTS in tensors:
            raise ValueError(f"'{CLASS_MEANS}' without '{MEAN}'")
        return None
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        MEAN: ((width,), np.float32),
        VARIANCE: ((width,), np.float32),
    }
    if CLASS_MEANS in tensors or CLASS_COUNTS in tensors:
        shapes |= {
            CLASS_MEANS: ((classes, width), np.float32),
            CLASS_COUNTS: ((classes,), np.int64),
        }
    for name, (shape, dtype) in shapes.items():
        if name not in tensors:
            raise ValueError(f"'{name}' is missing")
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise ValueError(f"'{name}' is {found}, not {np.dtype(dtype)} {list(shape)}")
    floats, counts = cast("Mapping[str, Floats]", tensors), tensors.get(CLASS_COUNTS)
    for name in (VARIANCE, CLASS_COUNTS):
        if name in tensors and (cast("Floats", tensors[name]) < 0).any():
            raise ValueError(f"'{name}' is below 0")
    return Clean(
        floats[MEAN], floats[VARIANCE], floats.get(CLASS_MEANS), cast("Counts | None", counts)
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
