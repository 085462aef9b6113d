"""Tell frames of one scene from images of another: a stream of frames holds few images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hgprompt_edge.maths.reference import Reference

Floats = npt.NDArray[np.float32]

SAME = 1 / 3
"""Two frames show one scene if their squared distance is below this share of that of two images of
a class. One in a hundred pairs of different images of a class is as near; of frames with a little
noise and motion, nineteen in twenty."""


class Thinner:
    """Remembers the last image that was kept, `last [W]`, scaled to length 1.

    Parameters
    ----------
    reference
        Says how far apart two images of a class usually are: twice as far, squared, as an image is
        from the mean of its class.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._near = SAME * 2 * float(np.median(reference.held_out.values[:, 1]))
        self.last: Floats | None = None

    def keep(self, features: Floats) -> bool:
        """Whether an image with these features `[W]` shows another scene than the last one kept."""
        scaled = (features / max(float(np.linalg.norm(features)), 1e-12)).astype(np.float32)
        if self.last is not None and self._distance(scaled - self.last) < self._near:
            return False
        self.last = scaled
        return True

    def _distance(self, step: Floats) -> float:
        """Squared length of a difference, as the reference measures distances to its classes."""
        inside = self._reference.basis @ step
        left = max(float(step @ step - inside @ inside), 0.0)
        whitened = inside @ self._reference.within
        return float(whitened @ whitened) + left / float(self._reference.rest[0])
