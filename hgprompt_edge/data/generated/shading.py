"""From which side the light falls on a surface of pebbles.

All bumps point at the viewer: a surface with hollows, too, would look the same under the opposite
light.
"""

from __future__ import annotations

import math

import numpy as np

from hgprompt_edge.data.generated.canvas import Dice, Floats, Pixels, finish, smooth_noise

DIRECTIONS = (
    "right",
    "upper right",
    "above",
    "upper left",
    "left",
    "lower left",
    "below",
    "lower right",
)


def paint_light_direction(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint bumps lit from `DIRECTIONS[label]`, give or take 12 degrees."""
    dice = Dice(rng)
    side = max(image_size, min(2 * image_size, 128))
    turn = math.radians(45.0 * label + dice.uniform(-12.0, 12.0))
    climb = dice.uniform(0.35, 0.9)
    lx, ly, lz = math.cos(turn) * math.cos(climb), math.sin(turn) * math.cos(climb), math.sin(climb)
    height = _bumps(dice, side)
    down, right = np.gradient(height)
    # Rows run downwards, the light's y upwards.
    cosine = (lz - lx * right + ly * down) / np.sqrt(1 + right * right + down * down)
    lit = np.maximum(cosine, 0) * _lit(height, lx, ly, lz)
    ambient = dice.uniform(0.15, 0.4)
    strength = (ambient + (1 - ambient) * lit)[..., None].astype(np.float32)
    return finish(dice, _albedo(dice, side) * strength, image_size)


def _bumps(dice: Dice, side: int) -> Floats:
    """Make the height of overlapping domes on a plane, in pixels: `[side, side]`."""
    height = np.zeros((side, side), np.float32)
    largest = dice.uniform(0.08, 0.25)
    flat = dice.uniform(0.5, 1.0)
    steps = np.arange(side, dtype=np.float32)
    for _ in range(min(60, int(dice.uniform(0.5, 1.2) / largest**2))):
        radius = side * largest * dice.uniform(0.5, 1.0)
        x, y = side * dice.uniform(), side * dice.uniform()
        c0, c1 = max(0, int(x - radius)), min(side, int(x + radius) + 2)
        r0, r1 = max(0, int(y - radius)), min(side, int(y + radius) + 2)
        dx, dy = steps[c0:c1] - x, steps[r0:r1, None] - y
        dome = np.sqrt(np.maximum(radius * radius - dx * dx - dy * dy, 0)) * np.float32(flat)
        window = height[r0:r1, c0:c1]
        np.maximum(window, dome, out=window)
    rough = smooth_noise(dice, side, 20 + dice.integer(20))[..., 0]
    result: Floats = height + rough * np.float32(side * dice.uniform(0.0, 0.006))
    return result


def _lit(height: Floats, lx: float, ly: float, lz: float) -> Floats:
    """Return 1 where the light reaches the surface, less in shadows: `[side, side]`."""
    side = height.shape[0]
    shadow = np.zeros_like(height)
    for step in range(2, side // 5, max(2, side // 40)):
        dx, dy = round(step * lx), round(-step * ly)
        rise = step * lz
        ahead = np.roll(height, (-dy, -dx), axis=(0, 1))
        np.maximum(shadow, ahead - height - np.float32(rise), out=shadow)
    lit: Floats = 1 - np.float32(0.8) * np.minimum(shadow, 1)
    return lit


def _albedo(dice: Dice, side: int) -> Floats:
    """Paint the surface's own colour, with blotches: `[side, side, 3]`."""
    colour = np.array([dice.uniform(0.4, 1.0) for _ in range(3)], np.float32)
    if dice.chance(0.4):
        colour[:] = dice.uniform(0.5, 1.0)
    blotches = smooth_noise(dice, side, 2 + dice.integer(8)) * np.float32(dice.uniform(0.0, 0.2))
    result: Floats = colour * (1 + blotches)
    return result
