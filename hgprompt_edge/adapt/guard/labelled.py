"""When weights that were learned from labels are taken over (METHOD 7)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.guard.measures import accuracy, log_loss, right, standard_error
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, MIN_FALL, Verdict
from hgprompt_edge.maths.paired import paired

FOLDS = 3
MIN_ERRORS = 2.5
"""Held-out log-loss must fall by more than so many standard errors of the difference, and
by fewer the further the features' statistics come back (`MIN_FALL`: by none). That is evidence,
too, and some dozens of labels alone are weak evidence. Chosen on validation images, see
docs/results/adapt.md."""
MAX_RISE, SLACK = 4.0, 0.1
"""The distance of the images' statistics from those of clean ones may become so many
times what it was, and so much more. A few images can agree with a mix that is far from all that the
model was fitted on."""

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def fold_of(labels: Labels, folds: int, rng: np.random.Generator) -> Labels:
    """Deal the images of each class out to folds: `[n]` in `0 .. folds - 1`."""
    dealt = np.zeros(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        dealt[rows] = (np.arange(len(rows)) + offset) % folds
        offset += len(rows)  # classes with a single image do not all land in the same fold
    return dealt


def judge_labelled(
    old: Floats,
    new: Floats,
    labels: Labels,
    distances: tuple[float, float] | None = None,
    final: Floats | None = None,
) -> Verdict:
    """Compare logits `[n, K]` on images that neither was learned from.

    The new ones must have no lower accuracy, and a lower log-loss: by more than `errors_asked`
    standard errors of the paired difference. The log-loss carries the proof: with a few dozen
    images the interval of accuracy, which is among the figures, nearly always holds zero.

    Parameters
    ----------
    distances
        Of the features' statistics from those of clean images, under the old weights and the new
        ones; None: those of clean images are not known. Refused where the second is much larger.
    final
        Logits of the weights that would be taken over, which have learned from these images. No
        proof, but where even these are worse, what was held out speaks of other weights.
    """
    gain = log_loss(old, labels) - log_loss(new, labels)
    mean, error = float(gain.mean()), standard_error(gain)
    before, after = accuracy(old, labels), accuracy(new, labels)
    change = paired(*(right(logits, labels).astype(np.float64) for logits in (old, new)))
    low, high = change.interval
    figures = {
        "log_loss_before": float(log_loss(old, labels).mean()),
        "log_loss_after": float(log_loss(new, labels).mean()),
        "standard_error": error,
        "accuracy_before": before,
        "accuracy_after": after,
        "change_low": low / 100,
        "change_high": high / 100,
    }
    asked = errors_asked(distances) * error if len(gain) > 1 else float("inf")
    if distances is not None:
        figures["distance_before"], figures["distance_after"] = distances
    if not mean > asked:
        why = (
            f"held-out log-loss changes by {-mean:+.3f}, uncertainty {error:.3f}; "
            f"it has to fall by more than {asked:.3f}"
        )
        return Verdict(False, why, figures)
    if after < before:
        why = (
            f"held-out accuracy falls from {100 * before:.1f} % to {100 * after:.1f} %, which is "
            f"{change} points"
        )
        return Verdict(False, why, figures)
    if distances is not None and not distances[1] <= MAX_RISE * distances[0] + SLACK:
        why = (
            "the features' statistics go away from those of clean images (distance "
            f"{distances[0]:.2f} to {distances[1]:.2f}): learned by heart; give more images"
        )
        return Verdict(False, why, figures)
    if final is not None and not log_loss(final, labels).mean() < log_loss(old, labels).mean():
        why = (
            "what was learned from parts of the images agrees on nothing that is better on all of "
            "them; give more images or more time"
        )
        return Verdict(False, why, figures)
    why = f"held-out log-loss falls by {mean:.3f}, uncertainty {error:.3f}"
    if distances is not None and not mean > MIN_ERRORS * error:  # the labels alone do not say it
        why += (
            "; the features' statistics come nearer to those of clean images (distance "
            f"{distances[0]:.2f} to {distances[1]:.2f})"
        )
    return Verdict(True, why, figures)


def errors_asked(distances: tuple[float, float] | None) -> float:
    """By how many standard errors held-out log-loss has to fall, `0 .. MIN_ERRORS`.

    Parameters
    ----------
    distances
        As of `judge_labelled`. Where the first is small nothing has changed, and where the second
        is no smaller what is learned is not what changed: the labels have to say all of it.
    """
    if distances is None or distances[0] < MIN_DISTANCE:
        return MIN_ERRORS
    fall = max(0.0, 1 - distances[1] / distances[0])
    return MIN_ERRORS * (1 - min(fall / MIN_FALL, 1))
