"""Rank the classes of a stream among those of held-out images and of its own earlier images.

For each class, an image is of it or not. Its p-value is a randomised rank: among the images of the
class, or among the others, evenly. If held-out images and those of the stream are exchangeable,
such p-values are uniform and independent (Vovk, Gammerman and Shafer 2005). No rule without chance
could do that for values that are so few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FINE = 1 << 20
"""Parts into which p-values are sorted."""


class ClassMix:
    """How many images of each class there were; `counts [K]` is all that changes.

    Parameters
    ----------
    first
        `[K]`, of the held-out images.
    """

    def __init__(self, first: Integers) -> None:
        self.first, self.counts = first, first.copy()

    def draw(self, place: int) -> tuple[Doubles, Doubles]:
        """Count an image; ends of the interval `[K]`, `[K]` of its p-value for each class.

        High p-values are those of images of the class. Chance depends only on how many images were
        counted, so that a stream gives the same again.
        """
        self.counts[place] += 1
        total = int(self.counts.sum())
        chance = np.random.default_rng(total).random()
        others = (total - self.counts) / total
        p = chance * others
        p[place] = others[place] + chance * (1 - others[place])
        low = np.minimum(np.floor(p * FINE), FINE - 1) / FINE
        return low, low + 1 / FINE
