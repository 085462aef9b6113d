"""When new weights are taken over, and when the old ones stay (METHOD 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.gradient import Doubles, Floats
from hgprompt_edge.maths.paired import paired
from hgprompt_edge.maths.softmax import log_softmax

FOLDS = 3
MIN_ERRORS = 2.5
"""Labelled: held-out log-loss must fall by more than so many standard errors of the difference, and
by fewer the further the features' statistics come back (`MIN_FALL`: by none). That is evidence,
too, and some dozens of labels alone are weak evidence. Chosen on validation images, see
docs/results/adapt.md."""
MAX_RISE, SLACK = 4.0, 0.1
"""Labelled: the distance of the images' statistics from those of clean ones may become so many
times what it was, and so much more. A few images can agree with a mix that is far from all that the
model was fitted on."""
MIN_AGREEMENT = 0.4
"""Unlabelled: the share of images on which the new weights must predict what the initial ones do,
if they are more confident. Confident disagreement is how adaptation without labels fails."""
MIN_CLASSES = 0.9
"""Unlabelled: the share of the effective number of predicted classes that must be left, against the
initial weights. Where a mix finds what changed, predictions spread over as many classes or more."""
MIN_DISTANCE = 0.1
"""Unlabelled: the images' statistics must be so far from those of clean images, under the initial
weights. A hundred clean images are some 0.02 away by chance."""
MIN_FALL = 0.4
"""Unlabelled: and that distance must fall by this share of it: where it does not, the mix has not
found what changed. Both bounds were chosen on validation images, see docs/results/adapt.md."""
MIN_DISTANCE_IN_FORCE = 0.05
"""And so far under other weights in force for a device to go back to the initial ones, under which
images look clean: less is needed to return to what is known to fit than to leave it."""

NO_STATISTICS = (
    "the model does not know the statistics of clean images, so nothing says whether these have "
    "changed; run `hgedge fit` and `hgedge export --adapt` again, or give labels"
)
MIN_SPREAD, MIN_SHIFT = 0.9, 0.3
"""Unlabelled, where only the bias can follow: the shipped model must predict so much of the number
of classes, in effect, and the distance of the statistics must be so large. A bias takes the mean of
the features back whatever the images show, and images of a few classes have another mean. Both were
chosen on validation images, see docs/results/adapt.md."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """Whether to take over new weights, why, and on what figures."""

    taken: bool
    reason: str
    figures: dict[str, float]


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


def comes_back(before: float, after: float) -> bool:
    """Whether the distance of the statistics falls by the share that what changed must explain."""
    return after <= (1 - MIN_FALL) * before


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


def log_loss(logits: Floats, labels: Labels) -> Doubles:
    """Log-loss of each image, `[n]`."""
    losses: Doubles = -log_softmax(logits)[np.arange(len(labels)), labels]
    return losses


def accuracy(logits: Floats, labels: Labels) -> float:
    """Share of images whose largest logit is their label's."""
    return float(right(logits, labels).mean())


def right(logits: Floats, labels: Labels) -> npt.NDArray[np.bool_]:
    """Which images' largest logit is their label's, `[n]`."""
    found: npt.NDArray[np.bool_] = logits.argmax(1) == labels
    return found


def standard_error(x: Doubles) -> float:
    """Of the mean of `x [n]`; infinite for a single number."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("inf")


def effective_classes(logits: Floats, expected: Sequence[int] | None = None) -> float:
    """Exponential of the entropy of the mean prediction `[K]`, among the `expected` classes."""
    among = logits if expected is None else logits[:, list(expected)]
    mean = np.exp(log_softmax(among)).mean(axis=0)
    return float(np.exp(-np.sum(mean * np.log(np.maximum(mean, 1e-30)))))


def mean_entropy(logits: Floats) -> float:
    """Mean entropy of the predictions, in nats."""
    log_p = log_softmax(logits)
    return float(-(np.exp(log_p) * log_p).sum(axis=1).mean())
