"""Pictures of one solid object from known sides, in the manner of small NORB (LeCun et al. 2004).

An object is made of boxes, ellipsoids and cylinders with random proportions and colours. It faces
the direction of the x axis, and its front differs from its back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hgprompt_edge.data.generated.canvas import Dice, Pixels, backdrop, finish
from hgprompt_edge.data.generated.solids import (
    BALL,
    BOX,
    ROD,
    Camera,
    Solid,
    Triple,
    along,
    cast,
    colour_in,
    render_side,
    unit,
)

AZIMUTHS = 12
ELEVATIONS = tuple(5.0 + 10.0 * k for k in range(9))

UPRIGHT = np.eye(3)
DARK, LAMP, TAIL, GLASS = (0.08, 0.08, 0.1), (1.0, 0.95, 0.6), (0.85, 0.05, 0.05), (0.3, 0.4, 0.5)


class _Kit:
    """Collects the parts of one object; left and right are alike, x is forward."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.parts: list[Solid] = []
        self.stretch = np.array([dice.uniform(0.85, 1.15) for _ in range(3)])
        self.main, self.second = _colour(dice), _colour(dice)

    def _add(self, shape: str, centre: Triple, half: Triple, colour: Triple) -> None:
        centre_at = np.asarray(centre) * self.stretch
        self.parts.append(Solid(shape, centre_at, UPRIGHT, np.asarray(half) * self.stretch, colour))

    def box(self, centre: Triple, half: Triple, colour: Triple) -> None:
        self._add(BOX, centre, half, colour)

    def ball(self, centre: Triple, half: Triple, colour: Triple) -> None:
        self._add(BALL, centre, half, colour)

    def rod(self, start: Triple, end: Triple, radius: float, colour: Triple) -> None:
        """Add a cylinder between two points."""
        a, b = np.asarray(start) * self.stretch, np.asarray(end) * self.stretch
        half = 0.5 * float(np.linalg.norm(b - a))
        size = np.array((radius, radius, half))
        self.parts.append(Solid(ROD, (a + b) / 2, along(unit(b - a)), size, colour))

    def roof(self, centre: Triple, half: Triple, colour: Triple) -> None:
        """Add a box that stands on its long edge, which lies along y."""
        tilted = np.array([(1.0, 0.0, 1.0), (0.0, math.sqrt(2), 0.0), (-1.0, 0.0, 1.0)])
        axes = tilted / math.sqrt(2)
        at = np.asarray(centre) * self.stretch
        self.parts.append(Solid(BOX, at, axes, np.asarray(half), colour))

    def wheels(self, places: tuple[float, ...], side: float, height: float, radius: float) -> None:
        for x in places:
            self.rod((x, -side, height), (x, side, height), radius, DARK)


def _colour(dice: Dice) -> Triple:
    """Take a colour that is neither black nor of the lamps."""
    return (dice.uniform(0.15, 0.95), dice.uniform(0.15, 0.95), dice.uniform(0.15, 0.95))


def _car(kit: _Kit) -> None:
    bonnet = kit.dice.uniform(0.25, 0.45)
    kit.box((0.0, 0.0, -0.1), (1.0, 0.45, 0.2), kit.main)
    kit.box((-bonnet / 2 - 0.1, 0.0, 0.25), (0.85 - bonnet, 0.4, 0.17), kit.second)
    kit.box((0.76 - bonnet * 1.5, 0.0, 0.25), (0.02, 0.34, 0.12), GLASS)
    kit.wheels((-0.6, 0.6), 0.5, -0.3, 0.22)
    for y in (-0.3, 0.3):
        kit.ball((1.0, y, -0.05), (0.06, 0.12, 0.1), LAMP)
        kit.box((-1.0, y, -0.05), (0.03, 0.1, 0.07), TAIL)


def _lorry(kit: _Kit) -> None:
    height = kit.dice.uniform(0.35, 0.5)
    kit.box((-0.3, 0.0, height - 0.2), (0.75, 0.4, height), kit.main)
    kit.box((0.75, 0.0, 0.05), (0.26, 0.38, 0.32), kit.second)
    kit.box((1.01, 0.0, 0.18), (0.02, 0.32, 0.12), GLASS)
    kit.box((0.0, 0.0, -0.3), (1.0, 0.3, 0.08), DARK)
    kit.wheels((-0.75, -0.4, 0.7), 0.42, -0.38, 0.2)
    for y in (-0.28, 0.28):
        kit.ball((1.02, y, -0.15), (0.05, 0.08, 0.08), LAMP)


def _aeroplane(kit: _Kit) -> None:
    wing, place = kit.dice.uniform(0.8, 1.0), kit.dice.uniform(0.0, 0.25)
    kit.ball((0.0, 0.0, 0.0), (1.0, 0.2, 0.2), kit.main)
    kit.box((place, 0.0, 0.0), (0.2, wing, 0.03), kit.second)
    kit.box((-0.85, 0.0, 0.05), (0.12, 0.35, 0.03), kit.second)
    kit.box((-0.85, 0.0, 0.25), (0.13, 0.03, 0.22), kit.main)
    kit.ball((0.55, 0.0, 0.12), (0.2, 0.12, 0.12), GLASS)
    kit.box((1.0, 0.0, 0.0), (0.02, 0.05, 0.35), DARK)
    for y in (-0.45, 0.45):
        kit.rod((place - 0.1, y, -0.1), (place + 0.35, y, -0.1), 0.09, kit.main)


def _chair(kit: _Kit) -> None:
    back = kit.dice.uniform(0.35, 0.55)
    kit.box((0.0, 0.0, -0.05), (0.5, 0.5, 0.07), kit.main)
    kit.box((-0.47, 0.0, back), (0.06, 0.48, back), kit.second)
    for x in (-0.42, 0.42):
        for y in (-0.42, 0.42):
            kit.rod((x, y, -0.9), (x, y, -0.1), 0.07, kit.second)
    if kit.dice.chance(0.5):
        for y in (-0.48, 0.48):
            kit.box((-0.05, y, 0.3), (0.4, 0.05, 0.05), kit.main)


def _mug(kit: _Kit) -> None:
    handle = kit.dice.uniform(0.75, 0.95)
    kit.rod((0.0, 0.0, -0.6), (0.0, 0.0, 0.6), 0.5, kit.main)
    kit.rod((0.0, 0.0, 0.58), (0.0, 0.0, 0.61), 0.42, DARK)
    for z in (-0.3, 0.3):
        kit.box(((handle + 0.4) / 2, 0.0, z), ((handle - 0.4) / 2, 0.08, 0.08), kit.main)
    kit.box((handle, 0.0, 0.0), (0.08, 0.08, 0.38), kit.main)
    # A mark opposite the handle: seen where the handle is hidden.
    kit.ball((-0.42, 0.0, 0.0), (0.1, 0.22, 0.22), kit.second)


def _teapot(kit: _Kit) -> None:
    kit.ball((0.0, 0.0, -0.1), (0.62, 0.62, 0.5), kit.main)
    kit.ball((0.0, 0.0, 0.42), (0.12, 0.12, 0.12), kit.second)
    kit.rod((0.4, 0.0, -0.2), (1.0, 0.0, 0.35), 0.12, kit.second)
    for z in (-0.3, 0.2):
        kit.box((-0.72, 0.0, z), (0.2, 0.07, 0.06), kit.main)
    kit.box((-0.9, 0.0, -0.05), (0.06, 0.07, 0.31), kit.main)


def _house(kit: _Kit) -> None:
    kit.stretch[:] = kit.stretch.mean()
    long = kit.dice.uniform(0.6, 0.8)
    kit.roof((0.0, 0.0, 0.2), (0.5, long + 0.06, 0.5), kit.second)
    kit.box((0.0, 0.0, -0.25), (0.55, long, 0.45), kit.main)
    kit.box((0.56, 0.15, -0.4), (0.03, 0.14, 0.3), DARK)
    kit.box((0.56, -0.4, -0.2), (0.03, 0.14, 0.13), LAMP)
    kit.box((0.9, 0.15, -0.66), (0.35, 0.16, 0.04), DARK)
    kit.box((-0.3, -0.4, 0.7), (0.1, 0.1, 0.3), TAIL)


def _animal(kit: _Kit) -> None:
    neck = kit.dice.uniform(0.1, 0.5)
    kit.ball((-0.05, 0.0, 0.0), (0.68, 0.32, 0.32), kit.main)
    kit.rod((0.45, 0.0, 0.1), (0.72, 0.0, 0.3 + neck), 0.13, kit.main)
    kit.ball((0.78, 0.0, 0.35 + neck), (0.26, 0.18, 0.18), kit.second)
    kit.ball((1.02, 0.0, 0.3 + neck), (0.07, 0.08, 0.07), DARK)
    for y in (-0.14, 0.14):
        kit.ball((0.66, y, 0.55 + neck), (0.06, 0.05, 0.12), kit.second)
    for x in (-0.5, 0.4):
        for y in (-0.2, 0.2):
            kit.rod((x, y, -0.75), (x, y, -0.1), 0.09, kit.main)
    kit.rod((-0.65, 0.0, 0.1), (-1.0, 0.0, kit.dice.uniform(-0.2, 0.5)), 0.06, kit.second)


OBJECTS: tuple[Callable[[_Kit], None], ...] = (
    _car,
    _lorry,
    _aeroplane,
    _chair,
    _mug,
    _teapot,
    _house,
    _animal,
)


def paint_azimuth(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint an object seen from `label` * 30 degrees to its front, give or take 10."""
    dice = Dice(rng)
    azimuth = math.radians(label * 360.0 / AZIMUTHS + dice.uniform(-10.0, 10.0))
    return _picture(dice, image_size, azimuth, math.radians(dice.uniform(12.0, 50.0)))


def paint_elevation(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint an object seen from `ELEVATIONS[label]` degrees above the ground, give or take 3."""
    dice = Dice(rng)
    elevation = math.radians(ELEVATIONS[label] + dice.uniform(-3.0, 3.0))
    return _picture(dice, image_size, dice.uniform(0.0, math.tau), elevation)


def _picture(dice: Dice, image_size: int, azimuth: float, elevation: float) -> Pixels:
    kit = _Kit(dice)
    dice.choose(OBJECTS)(kit)
    side = render_side(image_size)
    distance = dice.uniform(4.5, 7.0)
    camera = Camera(
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        spread=dice.uniform(1.3, 1.75) / distance,
        side=side,
        target=(0.0, dice.uniform(-0.1, 0.1), dice.uniform(-0.1, 0.1)),
    )
    # From the camera's side of the object, so that what is seen is lit.
    turn = azimuth + dice.uniform(-1.3, 1.3)
    light = unit((math.cos(turn), math.sin(turn), dice.uniform(0.3, 1.8)))
    frame = cast(kit.parts, camera, light)
    background = backdrop(dice, side, unlike=kit.main)
    image = colour_in(frame, kit.parts, background, dice.uniform(0.3, 0.5))
    if dice.chance(0.3):
        image[:] = image.mean(axis=-1, keepdims=True)
    return finish(dice, image, image_size)
