"""Bet against "nothing has changed", and count what the bets have won.

If nothing has changed, each image's p-value is uniform whatever came before. A bet is a density on
`[0, 1]`: it multiplies its stake by its value at `p`, so that on average it wins nothing. The
capital ever reaches `c` with a probability of `1 / c` at most (Ville's inequality; Vovk, "Testing
randomness online", 2021). A change may come at any time: half of the capital is staked at the first
image, the rest is spread over all later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

ALPHA = 1e-3
"""Probability of ever raising an alarm where nothing has changed, at most: of a thousand devices,
one is inspected for nothing."""
KEPT = 0.2
"""Share of a stake that is not bet, so that one image does not lose everything. It also makes bets
that lose on small differences, which are not worth an alarm."""
SPAN = 1000
"""Half of the stakes on later images are placed on the first so many."""
NOTHING = -1e9
"""Log of a capital of nothing, finite for JSON."""


class Bet(NamedTuple):
    """What is bet on, and how much of its density's mass lies below `p`."""

    kind: str
    power: int

    def below(self, p: Doubles) -> Doubles:
        """Distribution function of the density at `p`."""
        up, down = p**self.power, 1 - (1 - p) ** self.power
        if self.kind == "up":
            return up
        if self.kind == "down":
            return down
        if self.kind == "spread":
            return (up + down) / 2
        # Of Beta(2, 2) and Beta(4, 4).
        return p**2 * (3 - 2 * p) if self.power < 4 else p**4 * (35 - p * (84 - p * (70 - 20 * p)))


DIRECTIONS = tuple(Bet(kind, power) for kind in ("up", "down") for power in (2, 6))
"""Values become larger or smaller, a little or much."""
ALL = (
    *DIRECTIONS,
    *(Bet(kind, power) for kind, powers in (("spread", (4, 12)), ("narrow", (2, 4)))
      for power in powers),
)  # fmt: skip
"""The same, and that they vary more or less."""


class Capital:
    """What bets in several games, the rows, have won.

    Rows are judged one by one: their mean would be bound by nothing, since a row may be told by
    what other rows have seen.

    Attributes
    ----------
    images
        How many images were bet on.
    wealth
        `[rows, bets]`, log of what the stakes so far have become.
    best
        `[rows, bets]`, the largest part of it, from the stake at one image.
    since
        `[rows, bets]`, number of that image, as the caller counts.
    length, tally
        `[rows, bets]`, images since then, and the sum over these of what the caller observed.
    """

    ARRAYS = ("wealth", "best", "since", "length", "tally")

    def __init__(self, rows: int, bets: Sequence[Bet]) -> None:
        self.bets, self.images = tuple(bets), 0
        shape = rows, len(bets)
        self.wealth: Doubles = np.full(shape, NOTHING)
        self.best: Doubles = np.full(shape, NOTHING)
        self.since: Doubles = np.zeros(shape)
        self.length: Doubles = np.zeros(shape)
        self.tally: Doubles = np.zeros(shape)

    def bet(self, low: Doubles, high: Doubles, number: int, observed: Doubles) -> None:
        """Bet on an image.

        Parameters
        ----------
        low, high
            `[rows]`: the p-value lies between, `low < high`; bets win their mean over this.
        number
            Of the image.
        observed
            `[rows]`, what to sum.
        """
        self.images += 1
        stake, won = _log_stake(self.images), log_winnings(low, high, self.bets)
        self.wealth = np.logaddexp(self.wealth, stake) + won
        fresh = self.best <= stake
        self.best = np.maximum(self.best, stake) + won
        self.since = np.where(fresh, number, self.since)
        self.length = np.where(fresh, 0, self.length) + 1
        self.tally = np.where(fresh, 0, self.tally) + observed[:, None]

    def log_total(self) -> Doubles:
        """Log of the capital of each row, `[rows]`; it starts at 0."""
        if not self.images:
            return np.zeros(len(self.wealth))
        unstaked = SPAN / 2 / (self.images + SPAN)
        top = self.wealth.max(1, initial=0.0)
        in_play = np.exp(self.wealth - top[:, None]).mean(1)
        return cast("Doubles", top + np.log(in_play + unstaked * np.exp(-top)))

    def winner(self, row: int) -> int:
        """Return which bet has won most in a row."""
        return int(self.best[row].argmax())


def log_winnings(low: Doubles, high: Doubles, bets: Sequence[Bet]) -> Doubles:
    """Log of what each bet multiplies its stake by, `[rows, bets]`; arguments as of `bet`."""
    won = np.stack([(bet.below(high) - bet.below(low)) / (high - low) for bet in bets], axis=1)
    return cast("Doubles", np.log(KEPT + (1 - KEPT) * np.maximum(won, 0)))


def _log_stake(image: int) -> float:
    """Log of the share of the capital that is staked at an image, counted from 1; in sum 1."""
    later = SPAN / 2 / ((image + SPAN - 1) * (image + SPAN))
    return float(np.log(later + (0.5 if image == 1 else 0.0)))
