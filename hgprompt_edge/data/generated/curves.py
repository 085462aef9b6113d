"""Two wavy curves that cross a known number of times."""

from __future__ import annotations

import math

import numpy as np

from hgprompt_edge.data.generated.canvas import Dice, Floats, Pixels, Point, Scene

MOST_CROSSINGS = 5
POINTS = 80
LEAST_GAP = 0.125
"""Between two crossings, and from a crossing to an end; in units of the curves' length."""


def paint_intersections(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint two curves that cross `label` times."""
    scene = Scene(image_size, rng)
    x = np.linspace(0, 1, POINTS, dtype=np.float32)
    gap = _gap(scene, x, label)
    bends = scene.uniform(0.5, 2.0)
    middle = scene.uniform(0.03, 0.15) * np.sin(math.tau * (bends * x + scene.uniform()))
    both = np.stack([middle - gap / 2, middle + gap / 2])
    both -= (both.max() + both.min()) / 2
    both *= min(1.0, 0.7 / float(np.ptp(both)))
    turn = scene.uniform(0.0, math.tau)
    width = scene.uniform(0.012, 0.028)
    colour = scene.colour()
    second = colour if scene.chance(0.5) else scene.colour()
    for y, ink in zip(both, (colour, second), strict=True):
        scene.line(_turned(x - 0.5, y, turn), width, ink)
    return scene.pixels()


def _gap(dice: Dice, x: Floats, crossings: int) -> Floats:
    """Make a smooth function with `crossings` zeros: the distance between the curves."""
    if crossings == 0:
        least, depth = dice.uniform(0.09, 0.2), dice.uniform(0.0, 0.2)
        waves = 1 + np.sin(math.tau * (dice.uniform(0.5, 2.5) * x + dice.uniform()))
        return np.asarray(dice.sign() * (least + depth * waves / 2), np.float32)
    zeros = _zeros(dice, crossings)
    slope = dice.sign() * dice.uniform(2.2, 3.2)
    gap = np.zeros_like(x)
    for k, (start, end) in enumerate(zip([0.0, *zeros], [*zeros, 1.0], strict=True)):
        inside = (x >= start) & (x <= end)
        width = end - start
        # Arches of equal slope at the zeros join without a kink; the ends are half arches.
        if k in (0, crossings):
            from_zero = end - x[inside] if k == 0 else x[inside] - start
            arch = 2 * width * np.sin(math.pi / 2 * from_zero / width)
        else:
            arch = width * np.sin(math.pi * (x[inside] - start) / width)
        gap[inside] = (-1) ** k * slope / math.pi * arch
    return gap


def _zeros(dice: Dice, crossings: int) -> list[float]:
    """Take places in (0, 1) that are `LEAST_GAP` apart and away from the ends."""
    spare = 1.0 - LEAST_GAP * (crossings + 1)
    free = sorted(dice.uniform(0.0, spare) for _ in range(crossings))
    return [place + LEAST_GAP * (k + 1) for k, place in enumerate(free)]


def _turned(x: Floats, y: Floats, turn: float) -> list[Point]:
    """Turn points about the picture's middle, and shrink them where they would leave it."""
    c, s = math.cos(turn), math.sin(turn)
    # The curves fill a box of 1 by 0.7 at most.
    scale = 0.9 / max(abs(c) + 0.7 * abs(s), abs(s) + 0.7 * abs(c))
    return list(
        zip(
            (0.5 + scale * (c * x - s * y)).tolist(),
            (0.5 + scale * (s * x + c * y)).tolist(),
            strict=True,
        )
    )
