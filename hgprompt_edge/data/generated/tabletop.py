"""Cubes, balls and cylinders on a grey ground, in the manner of CLEVR (Johnson et al. 2017)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from hgprompt_edge.data.generated.canvas import Dice, Floats, Pixels, finish, smooth_noise
from hgprompt_edge.data.generated.solids import (
    BALL,
    BOX,
    ROD,
    Camera,
    Solid,
    Triple,
    Vector,
    along,
    cast,
    colour_in,
    render_side,
    turned,
    unit,
)

COUNTS = tuple(range(3, 11))

NEAREST, BIN = 7.6, 0.7
DISTANCES = 6
DISTANCE_NAMES = tuple(
    f"{NEAREST + BIN * k:04.1f} to {NEAREST + BIN * (k + 1):04.1f}" for k in range(DISTANCES)
)
"""Distance from the camera to the middle of the nearest solid; the largest is 1.5 across."""

COLOURS: tuple[Triple, ...] = (
    (0.34, 0.34, 0.34),
    (0.68, 0.14, 0.14),
    (0.16, 0.29, 0.84),
    (0.11, 0.41, 0.08),
    (0.51, 0.29, 0.1),
    (0.51, 0.15, 0.75),
    (0.16, 0.82, 0.82),
    (1.0, 0.93, 0.2),
)
SIZES = (0.45, 0.75)
"""Half the width of a small and of a large solid."""


def paint_solid_count(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint `COUNTS[label]` solids, none of them mostly hidden."""
    dice = Dice(rng)
    camera = _camera(dice, image_size)
    table = _Table(dice, camera)
    for _ in range(COUNTS[label]):
        table.put(7.4, 13.0)
    return table.picture(image_size)


def paint_solid_distance(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint 3 to 6 solids, of which the nearest is in distance bin `label`."""
    dice = Dice(rng)
    camera = _camera(dice, image_size)
    table = _Table(dice, camera)
    nearest = NEAREST + BIN * (label + dice.uniform(0.05, 0.95))
    table.put(nearest, nearest)
    for _ in range(2 + dice.integer(4)):
        table.put(nearest + 0.1, 16.0)
    return table.picture(image_size)


def _camera(dice: Dice, image_size: int) -> Camera:
    return Camera(
        azimuth=dice.uniform(-0.1, 0.1),
        elevation=math.radians(dice.uniform(33.0, 36.0)),
        distance=dice.uniform(9.8, 10.2),
        spread=0.4,
        side=render_side(image_size),
    )


class _Table:
    """A ground plane at height 0 with the solids put on it so far."""

    def __init__(self, dice: Dice, camera: Camera) -> None:
        self.dice = dice
        self.camera = camera
        self.solids: list[Solid] = []
        self.circles: list[tuple[float, float, float]] = []

    def put(self, low: float, high: float) -> None:
        """Put a random solid at a distance of `low` to `high` where it hides and hits no other.

        Where there is no room for it, smaller ones are tried.
        """
        dice = self.dice
        radius = dice.choose(SIZES)
        for attempt in range(1, 1000):
            if attempt % 30 == 0:
                radius *= 0.9
            centre = self._spot(dice.uniform(low, high), radius)
            column, row, depth = self.camera.project(centre).tolist()
            size = radius / (self.camera.spread * depth)
            if max(abs(column), abs(row)) + 1.2 * size < 1.0 and all(
                math.hypot(column - c, row - r) > 0.9 * (size + s) for c, r, s in self.circles
            ):
                break
        self.circles.append((column, row, size))
        self.solids.append(self._solid(centre, radius))

    def _spot(self, distance: float, radius: float) -> Vector:
        """Return a random point at height `radius` and at `distance` from the camera."""
        x, y, height = self.camera.origin.tolist()
        reach = math.sqrt(max(distance**2 - (height - radius) ** 2, 0.0))
        turn = self.camera.azimuth + math.pi + self.dice.uniform(-0.45, 0.45)
        return np.array((x + reach * math.cos(turn), y + reach * math.sin(turn), radius))

    def _solid(self, centre: Vector, radius: float) -> Solid:
        dice = self.dice
        shape = dice.choose((BOX, BALL, ROD))
        colour, gloss = dice.choose(COLOURS), dice.choose((0.0, 0.9))
        axes = turned(dice.uniform(0.0, math.tau))
        half = radius
        if shape == BOX:
            # Cubes as wide as balls would look larger.
            half = radius / math.sqrt(2)
            centre = centre - np.array((0.0, 0.0, radius - half))
        elif shape == ROD:
            axes = along(np.array((0.0, 0.0, 1.0)))
        return Solid(shape, centre, axes, np.full(3, half), colour, gloss)

    def picture(self, image_size: int) -> Pixels:
        """Render the table with soft shadows."""
        dice = self.dice
        turn = self.camera.azimuth + dice.uniform(-1.2, 1.2)
        light = unit((math.cos(turn), math.sin(turn), dice.uniform(0.9, 1.6)))
        ground = self._ground(light)
        frame = cast(self.solids, self.camera, light)
        image = colour_in(frame, self.solids, ground, dice.uniform(0.35, 0.45))
        return finish(dice, image * np.float32(dice.uniform(0.9, 1.15)), image_size)

    def _ground(self, light: Vector) -> Floats:
        """Paint the empty ground with the solids' shadows, at half the resolution of the frame."""
        camera = self.camera
        u, v = camera.steps[::2], -camera.steps[::2, None]
        right, up, forward = camera.axes.tolist()
        ox, oy, oz = camera.origin.tolist()
        drop = v * up[2] + forward[2]
        t = np.where(drop < -0.05, -oz / np.minimum(drop, -0.05), np.float32(oz / 0.05))
        x = ox + t * (u * right[0] + (v * up[0] + forward[0]))
        y = oy + t * (u * right[1] + (v * up[1] + forward[1]))
        lx, ly, lz = light.tolist()
        bright = self._brightness(x, y)
        for solid in self.solids:
            # Distance from the solid's middle to the ray from the ground to the light.
            px, py, pz = solid.centre.tolist()
            ax, ay = px - x, py - y
            climb = ax * lx + ay * ly + pz * lz
            gap = np.sqrt(np.maximum(ax * ax + ay * ay + pz * pz - climb * climb, 0))
            edge = np.clip((gap * (1 / float(solid.half[0])) - 0.6) * 1.25, 0, 1)
            bright = bright * (0.5 + 0.5 * np.where(climb > 0, edge, 1))
        small = Image.fromarray((255 * np.clip(bright, 0, 1)).astype(np.uint8))
        grey = np.asarray(small.resize((camera.side, camera.side)), np.float32) / np.float32(255)
        return np.repeat(grey[..., None], 3, axis=-1)

    def _brightness(self, x: Floats, y: Floats) -> Floats:
        """Grey of the ground: brightest at a random place, with faint blotches."""
        dice = self.dice
        cx, cy = dice.uniform(-3.0, 3.0), dice.uniform(-3.0, 3.0)
        away = (x - cx) ** 2 + (y - cy) ** 2
        level = dice.uniform(0.5, 0.7)
        blotches = smooth_noise(dice, x.shape[0], 6)[..., 0] * np.float32(0.03)
        return np.asarray(level / (1 + away * 0.004) + blotches, np.float32)
