"""What each way to quantize costs, and whether the images are enough to say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgprompt_edge.export.int8.held_out import HeldOut
from hgprompt_edge.maths.paired import Paired


@dataclass(frozen=True)
class Trial:
    """A scheme, and what its model loses against float32 on the same images.

    Attributes
    ----------
    accuracy
        Share of these images.
    drop
        Points below float32.
    low, high
        Bounds of the drop, in points; each holds in 95 of 100 cases.
    """

    scheme: str
    accuracy: float
    drop: float
    low: float
    high: float

    def holds(self, max_drop: float) -> bool | None:
        """Whether it loses at most so many points; None: the images are too few to say."""
        if self.high <= max_drop:
            return True
        return False if self.low > max_drop else None

    @property
    def change(self) -> str:
        """Points with their bounds, as in tables: `-0.4 (-1.1 to +0.3)`."""
        points, least, most = (0.0 - x for x in (self.drop, self.high, self.low))
        return f"{points:+.1f} ({least:+.1f} to {most:+.1f})"


def trial_of(name: str, found: Paired, floating: float) -> Trial:
    """Figures of a scheme from the pairs, and the accuracy of float32 on these images."""
    low, high = found.interval
    # Rounded, so that one point is one point whatever the number of images.
    drop, least, most = (round(0.0 - change, 6) for change in (found.change, high, low))
    return Trial(name, floating - drop / 100, drop, least, most)


def takes(trial: Trial | None, max_drop: float, accept_unproven: bool) -> bool:
    """Whether a model is good enough; what is not known is not."""
    holds = None if trial is None else trial.holds(max_drop)
    return bool(holds) or (trial is not None and holds is None and accept_unproven)


def refusal(path: Path, held: HeldOut, tried: Sequence[Trial], max_drop: float) -> str:
    """Say what was tried, where each is known to lose too much."""
    rows = "; ".join(
        f"{trial.scheme}: {100 * trial.accuracy:.1f} % (-{trial.drop:.1f}, at least "
        f"-{trial.low:.1f})"
        for trial in tried
    )
    return (
        f"{path}: no int8 model keeps within `max_drop={max_drop:g}` of {100 * held.accuracy:.1f} "
        f"% on {len(held.images)} held-out images ({rows}); nothing was written, allow more or "
        "keep float32"
    )


def unproven(path: Path, held: HeldOut, trial: Trial, max_drop: float, needed: int | None) -> str:
    """Say how far the images go, and what would decide."""
    enough = f"about {needed:,} would be needed" if needed else "no number of them would decide"
    return (
        f"{path}: {len(held.images)} held-out images are too few to say whether int8 keeps within "
        f"`max_drop={max_drop:g}` ({trial.scheme}: {trial.drop:.1f} points lost, between "
        f"{trial.low:.1f} and {trial.high:.1f}), {enough}; nothing was written: give more images, "
        "allow more, or write it with `accept_unproven=True`"
    )
