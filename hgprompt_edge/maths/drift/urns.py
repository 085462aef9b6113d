"""Rank the values of a stream among those of held-out images and of its own earlier images.

The held-out values of a class cut the line into cells. If held-out images and those of the stream
are exchangeable within the class, the cells of the stream follow Polya's urn exactly: an image
falls into a cell with the probability of the held-out images and earlier images in it, where the
last cell holds one more. This needs a few counts for each class, and no memory of the stream.
Ranks among the held-out images alone would not do: their quantiles are off by chance, and on a long
stream bets would win from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.maths.reference import Seen

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CELLS = 16
"""At most, for each class. A class with fewer held-out images has one cell more than images."""


@dataclass(frozen=True)
class Drawn:
    """Where one image falls: for each statistic.

    Attributes
    ----------
    low, high
        `[S]`: its p-value lies between, uniformly if nothing has changed.
    rank
        `[S]`, share of the held-out images of its class below it.
    """

    low: Doubles
    high: Doubles
    rank: Doubles


class Urns:
    """One urn for each class and statistic; `counts` is all that changes.

    Parameters
    ----------
    held_out
        Values of the task's own images, not used for the statistics.
    classes
        How many there are.
    """

    def __init__(self, held_out: Seen, classes: int) -> None:
        self.edges = [_edges(held_out.values[held_out.nearest == k]) for k in range(classes)]
        self.first: list[Integers] = []
        for place, edges in enumerate(self.edges):
            values = held_out.values[held_out.nearest == place]
            counts = np.zeros((values.shape[1], edges.shape[1] + 1), np.int64)
            for row in values:
                counts[np.arange(len(row)), _cells(edges, row)] += 1
            counts[:, -1] += 1
            self.first.append(counts)
        self.counts = [counts.copy() for counts in self.first]

    def draw(self, values: npt.NDArray[np.float32], place: int) -> Drawn:
        """Say where an image with `values [S]` falls in its class, and put it into the urns."""
        counts, first = self.counts[place], self.first[place]
        rows, cells = np.arange(len(values)), _cells(self.edges[place], values)
        above, total = counts.cumsum(1)[rows, cells], counts.sum(1)
        low, high = (above - counts[rows, cells]) / total, above / total
        middle = first.cumsum(1)[rows, cells] - first[rows, cells] / 2
        counts[rows, cells] += 1
        return Drawn(low, high, middle / first.sum(1))

    def flat(self) -> Integers:
        """All counts in a row, for a file."""
        return np.concatenate([counts.ravel() for counts in self.counts])

    def restore(self, flat: Integers) -> None:
        """Take over what `flat` gave.

        Raises
        ------
        ValueError
            Counts of other held-out images.
        """
        ends = np.cumsum([first.size for first in self.first])
        if flat.shape != (ends[-1],):
            raise ValueError(f"counts are of shape {list(flat.shape)}, not {[int(ends[-1])]}")
        parts = np.split(flat, ends[:-1])
        counts = [x.reshape(first.shape) for x, first in zip(parts, self.first, strict=True)]
        if any((x < first).any() for x, first in zip(counts, self.first, strict=True)):
            raise ValueError("counts are below those of the held-out images")
        self.counts = [x.copy() for x in counts]


def _edges(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Upper ends of all cells but the last, `[S, cells - 1]`: order statistics of `[n, S]`."""
    cells = min(CELLS, len(values) + 1)
    places = np.round(np.arange(1, cells) * (len(values) + 1) / cells).astype(np.int64) - 1
    edges: npt.NDArray[np.float32] = np.sort(values, axis=0)[places].T
    return edges


def _cells(edges: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> Integers:
    cells: Integers = (values[:, None] > edges).sum(1)
    return cells
