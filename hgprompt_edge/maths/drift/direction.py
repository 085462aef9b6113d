"""Test for a step of all images in one direction, which the stream itself shows.

Under another light or camera all features move in one direction, by less than images of a class
differ. A round of images gives the direction: their mean distance from the first half of the
held-out images. Along it, the next round is ranked among the other half. The direction has seen
neither, so that these ranks are uniform if nothing has changed.

Images are compared within their nearest class, and some of these are of another class: how many
follows the mix of classes. They differ along the lines between the means of classes, so that these
directions are left out; where classes vary alike, another mix then changes nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hgprompt_edge.maths.drift.martingale import Bet, Capital
from hgprompt_edge.maths.drift.urns import Urns
from hgprompt_edge.maths.reference import Reference, Seen

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

UP = tuple(Bet("up", power) for power in (2, 6, 16))
"""Later images lie further in the direction than held-out ones do."""


class Direction:
    """The direction of this round, and the mean of images for that of the next one.

    Parameters
    ----------
    reference
        Where held-out images lie.
    length
        Images in a round. More find smaller steps, fewer find large ones sooner.

    Attributes
    ----------
    round
        Number of the round, from 1 on; 0 where there is no direction yet.
    begin
        Number of the image at which the round before began, as the caller counts.
    along
        `[r]`, the direction.
    total, summed
        `[r]`, sum over the `summed` images of this round.
    capital
        Of the bets of this round.
    urns
        Of this round.
    """

    def __init__(self, reference: Reference, length: int) -> None:
        self.length = length
        inside = reference.beside(reference.whitened_held_out())
        nearest = reference.held_out.nearest
        half, self._classes = _halves(nearest), len(reference.means)
        self._rest, self._rest_nearest = inside[~half], nearest[~half]
        places = np.unique(nearest[half])
        self._means = {k: inside[half & (nearest == k)].mean(0) for k in places.tolist()}
        self.round, self.begin, self.next_begin = 0, 0, 0
        self.along: Doubles = np.zeros(inside.shape[1])
        self.total: Doubles = np.zeros(inside.shape[1])
        self.summed = 0
        self.capital, self.urns = Capital(1, UP), self._urns_along()

    def bet(self, inside: Doubles, place: int, number: int) -> None:
        """Bet on an image at `inside [r]`, nearest to the class at `place`.

        Both ends of a difference lie as `Reference.beside` says.
        """
        if self.round:
            value = np.array([inside @ self.along], np.float32)
            drawn = self.urns.draw(value, place)
            self.capital.bet(drawn.low, drawn.high, number, drawn.rank)
        if place not in self._means:
            return
        self.next_begin = self.next_begin if self.summed else number
        self.total = self.total + (inside - self._means[place])
        self.summed += 1
        if self.summed == self.length:
            self._turn()

    def log_evidence(self) -> float:
        """Log of the capital, over the share of the alarm's probability that the round has.

        That is `1 / (t (t + 1))` of round `t`, in sum 1: the held-out images serve every round, so
        that rounds are not independent and their capital cannot be carried over.
        """
        if not self.round:
            return 0.0
        return float(self.capital.log_total()[0] - np.log(self.round * (self.round + 1)))

    def restore(self, along: Doubles, counts: Integers) -> None:
        """Take over a direction and the counts of its urns; raises as `Urns.restore` does."""
        self.along = along
        self.urns = self._urns_along()
        self.urns.restore(counts)

    def _turn(self) -> None:
        self.along = self.total / max(float(np.linalg.norm(self.total)), 1e-12)
        self.round, self.begin = self.round + 1, self.next_begin
        self.total, self.summed = np.zeros_like(self.total), 0
        self.capital, self.urns = Capital(1, UP), self._urns_along()

    def _urns_along(self) -> Urns:
        values = (self._rest @ self.along)[:, None].astype(np.float32)
        return Urns(Seen(values, self._rest_nearest), self._classes)


def _halves(nearest: Integers) -> npt.NDArray[np.bool_]:
    """Every second image of each class, `[n]`."""
    half = np.zeros(len(nearest), bool)
    half[np.argsort(nearest, kind="stable")[::2]] = True
    return half
