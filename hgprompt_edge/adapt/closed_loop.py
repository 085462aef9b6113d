"""Adapt when a monitor raises a shift, watch what came of it, and go back by itself.

The monitor looks at images under the initial mix, whatever is in force: what it knows of the task's
own images holds under no other. Its features also say, at no further run, whether what changed is
gone, has changed again, or is what nothing could be learned from. Under a mix that was learned, the
guard's distance of the features' statistics says whether it still fits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.adapt.guard.evidence import SHOW_ALL
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, comes_back
from hgprompt_edge.adapt.learner import Learner
from hgprompt_edge.adapt.losses import statistics_distance
from hgprompt_edge.adapt.model import Request, adapt_model, prepare
from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.errors import FileError
from hgprompt_edge.maths.feature_statistics import FeatureStatistics
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitor import Monitor
from hgprompt_edge.state.history import RETURN, History, Version

Floats = npt.NDArray[np.float32]

WINDOW = 64
"""Images that are adapted to: the last ones that show different scenes. Also how many come between
two looks at them."""
PATIENCE = 16
"""Times as many images may come between two tries on images that look alike, if nothing could be
learned from the first ones."""
APART = 0.2
"""Distance of the statistics of the older half of a window from those of the newer one, at which it
holds images from before and after a change; 32 images are some 0.09 from 32 others by chance."""
STRIDE = 16
"""Images to wait then, a window in all: images that come sorted by class always look so. Also how
many come between two looks whether the newer half is clean again."""
CLEAN = 0.05
"""Distance below which a window shows that a shift is gone; 64 clean images are some 0.03 away."""

GONE = "images look clean again, under the initial weights that are in force"

FITS = "the weights in force still fit what the images show"
WORSE = "back to the initial weights: those in force fit what the images show no better"


@dataclass(frozen=True)
class Step:
    """What was done at an image, and which version is in force after it."""

    at: int
    taken: bool
    reason: str
    version: Version


class ClosedLoop:
    """Keeps the paths of the last images, and adapts to them when it is time.

    Parameters
    ----------
    monitor
        Of the model at its initial mix.
    model, state
        Model that was exported to be adapted, and the folder of what it learns.
    request
        How to adapt; its `data` are replaced.

    Attributes
    ----------
    moved
        Whether other weights than the model's own are in force.

    Raises
    ------
    UserError
        The weights are folded into the model, or the model does not know the statistics of clean
        images, without which nothing is taken.
    """

    def __init__(self, monitor: Monitor, model: Path, state: Path, request: Request) -> None:
        self._monitor, self._model, self._state, self._request = monitor, model, state, request
        predictor = Predictor(model, threads=request.threads)
        bank = predictor.require_bank()
        if bank.clean is None or bank.mixer is None:
            why, again = bank.why_fixed, ""  # the reason says what to do, where there is something
            if not why:
                why = "it does not know the statistics of clean images"
                again = ", or fit and export it again"
            raise FileError(model, f"cannot adapt without labels: {why}; leave out `adapt`{again}")
        self._clean = bank.clean
        self._recent: deque[tuple[Path, Floats]] = deque(maxlen=WINDOW)
        self._new, self._delay, self._alarmed = 0, 0, monitor.shift is not None
        self._forget()
        self._far = self._alarmed  # images of an earlier run raised it: clean ones withdraw it
        with self._open(predictor, bank) as history:
            self.moved = _is_moved(history.current(), bank)

    def saw(self, path: Path, features: Floats) -> Step | None:
        """Take note of an image that the monitor has kept, and adapt if it is time.

        Parameters
        ----------
        features
            `[D]`, those that the monitor has seen.
        """
        self._recent.append((path, features))
        self._new += 1
        shift = self._monitor.shift
        if shift is not None and not self._alarmed:
            self._new = min(len(self._recent), self._monitor.images - shift.since + 1)
            self._forget()
        self._alarmed = shift is not None
        if shift is None and not self.moved:
            return None
        if len(self._recent) < WINDOW or (self._new < WINDOW and self._new % STRIDE):
            return None
        window = np.stack([features for _, features in self._recent])
        older, newer = window[: WINDOW // 2], window[WINDOW // 2 :]
        again = self.moved and self._far and self._distance(newer) < MIN_DISTANCE
        if self._new < WINDOW:
            return self._look(newer) if again else None
        if not again and _apart(newer, older) >= APART and self._delay < WINDOW:
            self._new, self._delay = WINDOW - STRIDE, self._delay + STRIDE
            return None
        self._new = self._delay = 0
        return self._look(newer if again else window)

    def _forget(self) -> None:
        """Know of no images from which nothing could be learned."""
        self._tried: Floats | None = None
        self._idle, self._wait, self._far, self._anew = 0, WINDOW, False, False

    def _look(self, window: Floats) -> Step | None:
        """Adapt, unless the shift is gone or nothing could be learned from images like these."""
        distance, self._idle = self._distance(window), self._idle + WINDOW
        if not self.moved and self._far and distance < CLEAN:
            self._monitor.restart()
            self._alarmed = False
            self._forget()
            return Step(self._monitor.images, False, GONE, self._current())
        little = not self.moved and distance < MIN_DISTANCE
        if little and (self._far or self._tried is not None):
            return None  # what the guard refuses whatever is learned, and said so before
        self._far = self._far or distance >= MIN_DISTANCE
        if self._tried is not None and self._idle < self._wait:
            if _apart(window, self._tried) < MIN_DISTANCE:
                return None
            self._wait = WINDOW
        step = self._adapt(len(window))
        # The window may hold images from before the change, so the next one is adapted to as well.
        self._anew = step.taken and self.moved and not self._anew
        if step.taken or step.reason == FITS:
            self._tried, self._wait = None, WINDOW
        else:  # tried again, later each time
            self._tried = window
            self._wait = WINDOW if little else min(2 * self._wait, PATIENCE * WINDOW)
        self._idle = 0
        return step

    def _distance(self, window: Floats) -> float:
        assert self._clean is not None
        return statistics_distance(window, self._clean)[0]

    def _current(self) -> Version:
        predictor = Predictor(self._model, threads=self._request.threads)
        with self._open(predictor, predictor.require_bank()) as history:
            return history.current()

    def _adapt(self, images: int) -> Step:
        """Adapt to so many of the last images, if what is in force does not fit them."""
        predictor = Predictor(self._model, threads=self._request.threads)
        bank, at = predictor.require_bank(), self._monitor.images
        recent = list(self._recent)[-images:]
        known = tuple(path for path, _ in recent if path.exists())
        request = replace(self._request, data=known, unlabelled=True)
        seen, expected, learner = prepare(predictor, request)
        with self._open(predictor, bank) as history, history.exclusive():
            before = history.current()
            figures = _distances(learner, seen.pixels, before)
            moved = _is_moved(before, bank)
            if moved and _fits(figures) and not self._anew:
                return Step(at, False, FITS, before)
            worse = moved and _is_worse(figures)
            if worse:
                history.commit(bank.initial, method=RETURN, images=len(known), figures={**figures})
            adapted = adapt_model(predictor, history, request, seen, expected, learner)
        after, verdict = adapted.after, adapted.proposal.verdict
        self.moved = _is_moved(after, bank)
        if moved and not verdict.taken and _fits(figures):
            return Step(at, False, FITS, before)
        if after.method == RETURN and not worse:
            self._monitor.restart()  # the images are clean again
            self._alarmed = False
            self._forget()
        reason = verdict.reason if verdict.taken or not worse else WORSE
        return Step(at, verdict.taken or worse, reason.removesuffix(SHOW_ALL), after)

    def _open(self, predictor: Predictor, bank: Bank) -> History:
        return open_history(self._state, bank, predictor.metadata)


def _apart(window: Floats, other: Floats) -> float:
    """Distance of the statistics of the features `[n, D]` of some images from those of others."""
    known = FeatureStatistics(other.mean(0), other.var(0, ddof=1))
    return statistics_distance(window, known)[0]


def _is_moved(version: Version, bank: Bank) -> bool:
    """Whether other weights than the model's own are in force."""
    head = version.head_weight is not None or version.head_bias is not None
    return head or not np.allclose(version.weights, bank.initial)


def _distances(
    learner: Learner, pixels: npt.NDArray[np.uint8], version: Version
) -> dict[str, float]:
    """Distance of the features' statistics from clean ones, under the initial mix and in force."""
    assert learner.clean is not None
    initial = learner.features(pixels, learner.initial)
    in_force = learner.features(pixels, version.weights)
    return {
        "distance_before": statistics_distance(initial, learner.clean)[0],
        "distance_in_force": statistics_distance(in_force, learner.clean)[0],
    }


def _fits(figures: dict[str, float]) -> bool:
    """Whether something has changed and the mix in force takes back as much as a new one must."""
    initial = figures["distance_before"]
    return initial >= MIN_DISTANCE and comes_back(initial, figures["distance_in_force"])


def _is_worse(figures: dict[str, float]) -> bool:
    initial = figures["distance_before"]
    return initial >= MIN_DISTANCE and figures["distance_in_force"] >= initial
