"""When weights that were learned without labels are taken over (METHOD 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.guard.measures import effective_classes, mean_entropy
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, MIN_FALL, Verdict, comes_back

Floats = npt.NDArray[np.float32]

MIN_AGREEMENT = 0.4
"""The share of images on which the new weights must predict what the initial ones do,
if they are more confident. Confident disagreement is how adaptation without labels fails."""
MIN_CLASSES = 0.9
"""The share of the effective number of predicted classes that must be left, against the
initial weights. Where a mix finds what changed, predictions spread over as many classes or more."""

MIN_DISTANCE_IN_FORCE = 0.05
"""The statistics must be so far off under other weights in force for a device to go back to the
initial ones, under which images look clean: less is needed to return to what is known to fit than
to leave it."""

NO_STATISTICS = (
    "the model does not know the statistics of clean images, so nothing says whether these have "
    "changed; run `hgedge fit` and `hgedge export` again, or give labels"
)
MIN_SPREAD, MIN_SHIFT = 0.9, 0.3
"""Where only the bias can follow: the shipped model must predict so much of the number
of classes, in effect, and the distance of the statistics must be so large. A bias takes the mean of
the features back whatever the images show, and images of a few classes have another mean. Both were
chosen on validation images, see docs/results/adapt.md."""


def judge_unlabelled(
    initial: Floats,
    old: Floats,
    new: Floats,
    distances: tuple[float, float] | None,
    expected: Sequence[int] | None = None,
) -> Verdict:
    """Refuse new weights that collapse to few classes, or are more confident while disagreeing.

    Parameters
    ----------
    initial, old, new
        Logits `[n, K]` of the initial weights, of those in force and of the new ones.
    distances
        Of the features' statistics from those of clean images, under the initial mix and the new
        one. Refused where they are not known, the first is small or the second not much smaller.
    expected
        Places of the classes that the images may show; None: all.
    """
    agreement = float((initial.argmax(1) == new.argmax(1)).mean())
    classes_before, classes_after = (effective_classes(x, expected) for x in (initial, new))
    sure_before, sure_after = mean_entropy(old), mean_entropy(new)
    figures = {
        "agreement": agreement,
        "classes_before": classes_before,
        "classes_after": classes_after,
        "entropy_before": sure_before,
        "entropy_after": sure_after,
    }
    if distances is None:
        return Verdict(False, NO_STATISTICS, figures)
    figures["distance_before"], figures["distance_after"] = distances
    if (why := _refuse_distances(*distances)) is not None:
        return Verdict(False, why, figures)
    if classes_after < MIN_CLASSES * classes_before:
        why = (
            f"predictions collapse to {classes_after:.1f} classes from {classes_before:.1f} "
            "with the initial weights"
        )
        return Verdict(False, why, figures)
    if sure_after < sure_before and agreement < MIN_AGREEMENT:
        why = (
            "the new weights are more confident, but agree with the initial ones on only "
            f"{100 * agreement:.0f} % of the images (bound {100 * MIN_AGREEMENT:.0f} %)"
        )
        return Verdict(False, why, figures)
    why = (
        "the features' statistics come nearer to those of clean images (distance "
        f"{distances[0]:.2f} to {distances[1]:.2f}); same class as with the initial weights on "
        f"{100 * agreement:.0f} % of the images"
    )
    return Verdict(True, why, figures)


def judge_clean(in_force: float, initial: float) -> Verdict | None:
    """Learn nothing from images that look as clean ones do under the initial weights.

    If the weights in force are others, under which the statistics are off and which these would
    come back from as far as a new mix must bring them, the initial ones are taken.

    Parameters
    ----------
    in_force, initial
        Distance of the features' statistics from those of clean images, under either weights.

    Returns
    -------
    None where the images do not look clean: something has changed, and there is a mix to learn.
    """
    if not initial < MIN_DISTANCE:
        return None
    figures = {"distance_before": initial, "distance_in_force": in_force}
    if in_force < MIN_DISTANCE_IN_FORCE or not comes_back(in_force, initial):
        return Verdict(False, _looks_clean(initial), figures)
    why = (
        "back to the initial weights: under them these images look as clean ones do, under the "
        f"weights in force they do not (distance of the features' statistics {initial:.2f}, "
        f"{in_force:.2f})"
    )
    return Verdict(True, why, figures)


def judge_bias(
    initial: Floats, distance: float, expected: Sequence[int] | None = None
) -> Verdict | None:
    """Refuse to let the bias follow images that show too few of the classes or too small a shift.

    Parameters
    ----------
    initial
        Logits `[n, K]` of the shipped model.
    distance
        Of the features' statistics from those of clean images.
    expected
        As of `judge_unlabelled`.

    Returns
    -------
    None where nothing speaks against it.
    """
    found = effective_classes(initial, expected)
    classes = initial.shape[1] if expected is None else len(expected)
    figures = {"classes_before": found, "distance_before": distance}
    if distance < MIN_SHIFT:
        why = (
            f"the features' statistics are {distance:.2f} away from those of clean images, and the "
            f"bias follows from {MIN_SHIFT:g} on; give labels"
        )
        return Verdict(False, why, figures)
    if found >= MIN_SPREAD * classes:
        return None
    why = (
        f"the images show {found:.1f} of {classes} classes in effect, and "
        f"{MIN_SPREAD * classes:.1f} are needed for the bias to follow their mean; give images of "
        "all classes, or labels"
    )
    return Verdict(False, why, figures)


def _looks_clean(distance: float) -> str:
    return (
        "under the initial weights these images look as clean ones do (distance of the "
        f"features' statistics {distance:.2f}, bound {MIN_DISTANCE:g})"
    )


def _refuse_distances(before: float, after: float) -> str | None:
    if before < MIN_DISTANCE:
        return _looks_clean(before)
    if not comes_back(before, after):
        return (
            f"the features' statistics come little nearer to those of clean images (distance "
            f"{before:.2f} to {after:.2f}, bound {(1 - MIN_FALL) * before:.2f}); what changed is "
            "not in the bank"
        )
    return None
