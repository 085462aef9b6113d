"""Whether a device has seen enough to judge by: before anything is learned (METHOD 7).

Evidence that is missing is no good evidence: where these refuse, the weights in force stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.guard.measures import Labels, effective_classes
from hgprompt_edge.adapt.guard.unlabelled import NO_STATISTICS
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, Verdict
from hgprompt_edge.maths.feature_statistics import FeatureStatistics

Floats = npt.NDArray[np.float32]

MIN_SHOWN, LEAST_SHOWN = 0.5, 1.5
"""The images must show so much of the effective number of classes that clean images show, and of
two classes more than one."""
CHANCE = 1.5
"""Distance of the statistics of `m` clean images from those of `n` others, by chance, is some
`CHANCE (1 / m + 1 / n)`: 1 for the mean, a half for the deviation of normal features. It must be
less than `MIN_DISTANCE`, and the images' own part of it half of that at most."""

SHOW_ALL = "; give images of all, name the classes that they show with `expected`, or give labels"
"""What to do about images of too few classes; whoever watches a camera can do none of it."""


@dataclass(frozen=True)
class Expected:
    """Which classes the images may show, and what the model knows of clean images of those.

    Attributes
    ----------
    places
        Of these classes among the model's.
    all
        Whether they are all that the model has.
    statistics
        Of the features of clean images of these classes; None: not known.
    images
        How many clean images these are of; None: not known.
    shown
        Effective number of classes among them, at most the number of places.
    """

    places: tuple[int, ...]
    all: bool
    statistics: FeatureStatistics | None
    images: int | None
    shown: float


def expect(
    clean: FeatureStatistics | None, classes: int, places: Sequence[int] | None = None
) -> Expected:
    """Restrict what is known of clean images to the classes that are expected; None: all."""
    chosen = tuple(range(classes)) if places is None else tuple(places)
    complete = len(chosen) == classes
    if clean is None:
        return Expected(chosen, complete, None, None, float(len(chosen)))
    statistics = clean if complete else clean.of(chosen)
    counts = clean.counts(chosen)
    if counts is None or not counts.sum():
        return Expected(chosen, complete, statistics, None, float(len(chosen)))
    shares = counts[counts > 0] / counts.sum()
    shown = float(np.exp(-np.sum(shares * np.log(shares))))
    return Expected(chosen, complete, statistics, int(counts.sum()), shown)


def least_shown(shown: float) -> float:
    """Effective number of predicted classes asked for where clean images show so many."""
    return max(MIN_SHOWN * shown, min(LEAST_SHOWN, (1 + shown) / 2))


def judge_known(expected: Expected, images: int) -> Verdict | None:
    """Refuse where clean images are not known, or those or these are too few.

    Returns
    -------
    None where nothing speaks against learning from so many images without labels.
    """
    if expected.statistics is None:
        why = NO_STATISTICS
        if not expected.all:
            why = (
                "the model does not know the statistics of clean images of each class that is "
                "expected; run `hgedge fit` and `hgedge export` again, leave out `expected`, or "
                "give labels"
            )
        return Verdict(False, why, {})
    left = MIN_DISTANCE - (CHANCE / expected.images if expected.images else 0)
    if left <= 0:
        why = (
            f"the model knows only {expected.images} clean images of the classes that are "
            f"expected, and it takes more than {CHANCE / MIN_DISTANCE:.0f} to tell a change "
            "from chance; fit on more, or give labels"
        )
        return Verdict(False, why, {})
    needed = math.ceil(CHANCE / min(left, MIN_DISTANCE / 2) - 1e-9)
    if images >= needed:
        return None
    why = (
        f"{images} images are too few to tell a change from chance, {needed} are needed; give "
        "more, or labels"
    )
    return Verdict(False, why, {})


def judge_shown(initial: Floats, expected: Expected) -> Verdict | None:
    """Refuse images that show too few of the classes: their statistics are off for that alone.

    Parameters
    ----------
    initial
        Logits `[n, K]` under the initial weights.

    Returns
    -------
    None where they show enough.
    """
    found, needed = effective_classes(initial, expected.places), least_shown(expected.shown)
    if found >= needed:
        return None
    among = "" if expected.all else " expected"
    why = (
        f"under the initial weights the images show {found:.1f} of {len(expected.places)}{among} "
        f"classes in effect, and {needed:.1f} are needed to tell a change from images of a few "
        f"classes{SHOW_ALL}"
    )
    return Verdict(False, why, {"classes_before": found})


LEAST_LABELLED = 10
"""Of fewer differences of the log-loss a multiple of their standard error is no evidence: by
Student's distribution two of them would have to pass 51 standard errors, ten of them 3.1."""


def judge_labels(labels: Labels, expected: Expected) -> Verdict | None:
    """Refuse too few labelled images, or those of fewer than half of the classes.

    Nothing judges what becomes of the other classes.
    """
    if len(labels) < LEAST_LABELLED:
        why = (
            f"{len(labels)} labelled images are too few to judge new weights by, "
            f"{LEAST_LABELLED} are needed; give more"
        )
        return Verdict(False, why, {})
    found, needed = len(np.unique(labels)), MIN_SHOWN * len(expected.places)
    if found >= needed:
        return None
    why = (
        f"the images are of {found} of {len(expected.places)} classes, and those of half are "
        "needed, since nothing judges what becomes of the others; add images, or name the "
        "classes that matter here with `expected`"
    )
    return Verdict(False, why, {"classes_labelled": float(found)})
