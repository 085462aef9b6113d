"""Watch the features of what a device sees, and say when they no longer look like the task's own.

Three kinds of tests bet against "nothing has changed": on how far images lie from the classes, on a
step of all images in one direction, and on how often each class comes. The first two compare images
of one predicted class, so that another mix of classes with the same images says nothing to them;
the third says nothing of images. Each image costs a fraction of a millisecond beside its features,
and memory does not grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.files import sha256_arrays
from hgprompt_edge.maths.drift.class_mix import ClassMix
from hgprompt_edge.maths.drift.direction import Direction
from hgprompt_edge.maths.drift.martingale import ALL, ALPHA, DIRECTIONS, Capital
from hgprompt_edge.maths.drift.thin import Thinner
from hgprompt_edge.maths.drift.urns import Urns
from hgprompt_edge.maths.reference import STATISTICS, Reference, Seen

Floats = npt.NDArray[np.float32]

ROUNDS = (32, 64)
"""Images in the rounds of the two tests for a step: one is quick, one finds small steps."""
DISTANCE, DIRECTION = "distance", "direction"
FEWEST = 100
"""Held-out images that an alarm needs. With fewer, those that the statistics have seen and those
that they have not differ so much that bets may win from it, and shifts are found late."""


@dataclass(frozen=True)
class Shift:
    """Images look different.

    Attributes
    ----------
    at
        Number of the image at which the alarm was raised, from 1 on; skipped ones count.
    since
        About the first image that looked different.
    test
        What found it: `distance` (to the classes) or `direction` (a step of all images).
    change
        How ranks have changed: `up`, `down`, `spread` or `narrow`.
    rank
        Where images have lain since then among the task's own of their class, on average: from 0
        to 1, 0.5 if nothing had changed.
    """

    at: int
    since: int
    test: str
    change: str
    rank: float


@dataclass(frozen=True)
class Share:
    """How often a class is predicted: among the task's own images, and of late."""

    place: int
    before: float
    now: float


@dataclass(frozen=True)
class MixChange:
    """Classes come more or less often; numbers of images as of `Shift`."""

    at: int
    since: int
    more: tuple[Share, ...]
    less: tuple[Share, ...]


@dataclass(frozen=True)
class Report:
    """What a monitor has found so far.

    Attributes
    ----------
    images
        How many it was given.
    skipped
        Of these, how many showed what the one before showed.
    unusable
        Of these, how many have features that are NaN or infinite.
    evidence
        For a shift: 10 to this is the factor that the bets have won. An alarm needs `needed`.
    shift, mix
        None: not found. Once found, they stay until the monitor starts anew.
    """

    images: int
    skipped: int
    unusable: int
    evidence: float
    needed: float
    shift: Shift | None
    mix: MixChange | None


class Monitor:
    """Watches images of one task, in the order in which they come.

    If the kept images are exchangeable with the task's own within each predicted class, it ever
    raises a shift with a probability of `ALPHA` at most, however long it runs; if classes are
    exchangeable, too, the same holds for a change of mix.

    Parameters
    ----------
    reference
        What the task's own images look like. `why_not` says whether it suffices.

    Attributes
    ----------
    served
        Size and time of change of the files of a watched folder that it was given, by their path
        in the folder. Only `Serving` and the file of the monitor ask.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.digest = digest_of(reference)
        self.images = self.skipped = self.unusable = 0
        self.thinner = Thinner(reference)
        self.served: dict[str, tuple[int, int]] = {}
        self.restart()

    def restart(self) -> None:
        """Forget what was found, and test from the next image on; the count of images goes on."""
        reference, classes = self.reference, len(self.reference.means)
        self.urns = Urns(_watched(reference.held_out), classes)
        self.distance = Capital(1, ALL)
        self.steps = tuple(Direction(reference, length) for length in ROUNDS)
        self.mix = ClassMix(np.bincount(reference.held_out.nearest, minlength=classes))
        self.classes = Capital(classes, DIRECTIONS)
        self.shift: Shift | None = None
        self.changed = np.zeros(classes, np.int64)
        """Number of the image at which a class was found to come more or less often; 0: it was
        not."""

    def observe(self, features: Floats) -> Report:
        """Take in images with features `[n, D]`, in their order.

        Of a model that gives more than the reference knows, the first ones count.
        """
        known = features[:, : len(self.reference.centre)]
        for row in known:
            self.images += 1
            if not np.isfinite(row).all():
                self.unusable += 1
            elif self.thinner.keep(row):
                self._bet(row)
            else:
                self.skipped += 1
        return self.report()

    def report(self) -> Report:
        """Say what was found so far."""
        evidence = max(found[0] for found in self._found())
        return Report(
            self.images,
            self.skipped,
            self.unusable,
            float(evidence / np.log(10)),
            float(-np.log10(ALPHA)),
            self.shift,
            self._mix_change(),
        )

    def _bet(self, features: Floats) -> None:
        seen = _watched(self.reference.see(features[None]))
        place = int(seen.nearest[0])
        drawn = self.urns.draw(seen.values[0], place)
        self.distance.bet(drawn.low, drawn.high, self.images, drawn.rank)
        inside = self.reference.beside(self.reference.whiten(features[None]))[0]
        for step in self.steps:
            step.bet(inside, place, self.images)
        shown = np.zeros(len(self.changed))
        shown[place] = 1
        self.classes.bet(*self.mix.draw(place), self.images, shown)
        evidence, shift = max(self._found(), key=lambda found: found[0])
        if self.shift is None and evidence >= -np.log(ALPHA):
            self.shift = shift
        # A class each: their capitals are bound one by one.
        found = self.classes.log_total() >= np.log(len(self.changed) / ALPHA)
        self.changed[found & (self.changed == 0)] = self.images

    def _found(self) -> list[tuple[float, Shift]]:
        """Log of what each test has won, over its share of `ALPHA`, and what it would report.

        Half of it goes to the distance, half to the steps.
        """
        shift = self._shift(self.distance, DISTANCE)
        found = [(float(self.distance.log_total()[0] - np.log(2)), shift)]
        for step in self.steps:
            shift = self._shift(step.capital, DIRECTION, step.begin)
            found.append((step.log_evidence() - float(np.log(2 * len(self.steps))), shift))
        return found

    def _shift(self, capital: Capital, test: str, since: int | None = None) -> Shift:
        bet = capital.winner(0)
        begin = int(capital.since[0, bet]) if since is None else since
        rank = float(capital.tally[0, bet] / max(1.0, capital.length[0, bet]))
        return Shift(self.images, begin, test, capital.bets[bet].kind, rank)

    def _mix_change(self) -> MixChange | None:
        places = np.flatnonzero(self.changed)
        if not len(places):
            return None
        shares, begins = [], []
        for place in places.tolist():
            bet = self.classes.winner(place)
            length = max(1.0, float(self.classes.length[place, bet]))
            before = float(self.mix.first[place] / self.mix.first.sum())
            shares.append(Share(place, before, float(self.classes.tally[place, bet]) / length))
            begins.append(int(self.classes.since[place, bet]))
        by_step = sorted(shares, key=lambda share: share.before - share.now)
        more = tuple(share for share in by_step if share.now > share.before)
        less = tuple(share for share in reversed(by_step) if share.now <= share.before)
        return MixChange(int(self.changed[places].min()), min(begins), more, less)


def digest_of(reference: Reference) -> str:
    """Return what sets a reference apart, the sha256 of its tensors."""
    return sha256_arrays(reference.tensors())


def _watched(seen: Seen) -> Seen:
    """Keep the distance to the classes that does not ask how near the others are.

    That follows the mix of classes where some images are nearest to another class than theirs.
    """
    column = STATISTICS.index("beside")
    return Seen(seen.values[:, column : column + 1], seen.nearest)


def why_not(reference: Reference | None) -> str | None:
    """Say why images cannot be watched against this reference; None: they can."""
    if reference is None:
        return (
            "does not record what its own images look like; fit and export it again with this "
            "hgedge"
        )
    if len(reference.held_out.nearest) < FEWEST:
        return (
            f"records {len(reference.held_out.nearest)} of its own images, and an alarm needs "
            f"{FEWEST}; fit it on more images"
        )
    return None
