"""Schematic line drawings by an unsteady hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from hgprompt_edge.data.generated.canvas import Dice, Pixels, Point, Scene

Stroke: TypeAlias = Sequence[Point]


def _arc(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0
) -> list[Point]:
    """Part of an ellipse, from `start` to `end` degrees, anticlockwise; y upwards."""
    count = max(4, int(abs(end - start) / 15))
    turns = [math.radians(start + (end - start) * k / count) for k in range(count + 1)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def _box(left: float, bottom: float, right: float, top: float) -> list[Point]:
    return [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]


def _house(dice: Dice) -> list[Stroke]:
    ridge, door = dice.uniform(0.7, 1.0), dice.uniform(-0.4, 0.0)
    window = dice.uniform(0.2, 0.35)
    return [
        _box(-0.7, -0.9, 0.7, 0.2),
        [(-0.85, 0.15), (0.0, ridge), (0.85, 0.15)],
        [(door, -0.9), (door, -0.3), (door + 0.3, -0.3), (door + 0.3, -0.9)],
        _box(0.6 - window, -0.35, 0.6, -0.35 + window),
    ]


def _star(dice: Dice) -> list[Stroke]:
    points, inner = 5 + dice.integer(2), dice.uniform(0.38, 0.5)
    turns = [math.pi / 2 + math.pi * k / points for k in range(2 * points + 1)]
    radii = [(0.95, 0.95 * inner)[k % 2] for k in range(2 * points + 1)]
    return [[(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]]


def _arrow(dice: Dice) -> list[Stroke]:
    head, half = dice.uniform(0.3, 0.55), dice.uniform(0.3, 0.5)
    tip = [(0.95 - head, half), (0.95, 0.0), (0.95 - head, -half)]
    if dice.chance(0.5):
        return [[(-0.95, 0.0), (0.95, 0.0)], tip]
    t = half * 0.45
    x = 0.95 - head
    return [[(-0.95, t), (x, t), *tip, (x, -t), (-0.95, -t), (-0.95, t)]]


def _spiral(dice: Dice) -> list[Stroke]:
    turns = dice.uniform(2.2, 3.8)
    steps = [k / 70 for k in range(71)]
    angles = [math.tau * turns * s for s in steps]
    return [
        [
            (0.92 * s * math.cos(a), 0.92 * s * math.sin(a))
            for s, a in zip(steps, angles, strict=True)
        ]
    ]


def _ladder(dice: Dice) -> list[Stroke]:
    rungs, top, foot = 4 + dice.integer(4), dice.uniform(0.22, 0.35), dice.uniform(0.3, 0.45)
    strokes: list[Stroke] = [[(-foot, -0.95), (-top, 0.95)], [(foot, -0.95), (top, 0.95)]]
    for k in range(rungs):
        y = -0.8 + 1.6 * k / (rungs - 1)
        half = foot + (top - foot) * (y + 0.95) / 1.9
        strokes.append([(-half, y), (half, y)])
    return strokes


def _tree(dice: Dice) -> list[Stroke]:
    trunk: list[Stroke] = [[(-0.1, -0.95), (-0.1, -0.2)], [(0.1, -0.95), (0.1, -0.2)]]
    if dice.chance(0.5):
        crown = _arc(0, 0.3, 0.65, 0.6)
        lumps = 5 + dice.integer(4)
        turns = [math.tau * k / 48 for k in range(49)]
        crown = [
            (
                (0.6 + 0.07 * math.cos(lumps * t)) * math.cos(t),
                0.3 + (0.55 + 0.07 * math.cos(lumps * t)) * math.sin(t),
            )
            for t in turns
        ]
        return [*trunk, crown]
    levels = 2 + dice.integer(2)
    for k in range(levels):
        low, half = -0.25 + 0.35 * k, 0.7 - 0.15 * k
        trunk.append([(-half, low), (0.0, low + 0.6), (half, low), (-half, low)])
    return trunk


def _face(dice: Dice) -> list[Stroke]:
    eye, mood = dice.uniform(0.06, 0.12), dice.sign() * dice.uniform(0.15, 0.3)
    return [
        _arc(0, 0, 0.8, 0.92),
        _arc(-0.3, 0.25, eye, eye),
        _arc(0.3, 0.25, eye, eye),
        [(0.0, 0.12), (-0.1, -0.15), (0.05, -0.15)],
        [(x, -0.45 + mood * (4 * x * x - 0.6)) for x in (-0.35, -0.2, 0.0, 0.2, 0.35)],
    ]


def _fish(dice: Dice) -> list[Stroke]:
    fat, tail = dice.uniform(0.35, 0.5), dice.uniform(0.3, 0.45)
    strokes: list[Stroke] = [
        _arc(0.15, 0, 0.7, fat, 165, -165),
        [(-0.52, 0.09), (-0.95, tail), (-0.85, 0.0), (-0.95, -tail), (-0.52, -0.09)],
        _arc(0.55, 0.1, 0.06, 0.06),
        _arc(0.2, 0, 0.2, fat * 0.7, -60, 60),
    ]
    if dice.chance(0.6):
        strokes.append([(-0.1, fat), (0.05, fat + 0.25), (0.35, fat)])
    return strokes


def _key(dice: Dice) -> list[Stroke]:
    ring, teeth = dice.uniform(0.25, 0.36), 2 + dice.integer(2)
    start = -0.9 + 2 * ring
    strokes: list[Stroke] = [_arc(-0.9 + ring, 0, ring, ring), [(start, 0.0), (0.95, 0.0)]]
    if dice.chance(0.5):
        strokes.append(_arc(-0.9 + ring, 0, ring * 0.4, ring * 0.4))
    for k in range(teeth):
        x = 0.93 - 0.2 * k
        strokes.append([(x, 0.0), (x, -dice.uniform(0.22, 0.36))])
    return strokes


def _cup(dice: Dice) -> list[Stroke]:
    foot = dice.uniform(0.35, 0.55)
    strokes: list[Stroke] = [
        [(-0.7, 0.5), (-foot - 0.1, -0.7), (foot - 0.1, -0.7), (0.5, 0.5)],
        _arc(-0.1, 0.5, 0.6, 0.13),
        _arc(0.45, 0.0, 0.4, 0.35, -80, 90),
    ]
    if dice.chance(0.4):
        for x in (-0.3, 0.05):
            strokes.append([(x, 0.7), (x + 0.08, 0.78), (x - 0.05, 0.86), (x + 0.03, 0.95)])
    return strokes


def _boat(dice: Dice) -> list[Stroke]:
    mast = dice.uniform(-0.15, 0.15)
    return [
        [(-0.9, -0.4), (0.9, -0.4), (0.55, -0.8), (-0.6, -0.8), (-0.9, -0.4)],
        [(mast, -0.4), (mast, 0.95)],
        [(mast + 0.06, 0.9), (mast + 0.7, -0.25), (mast + 0.06, -0.25)],
        [(mast - 0.06, 0.7), (mast - 0.5, -0.25), (mast - 0.06, -0.25)],
    ]


def _flower(dice: Dice) -> list[Stroke]:
    petals = 5 + dice.integer(3)
    strokes: list[Stroke] = [_arc(0, 0.35, 0.16, 0.16), [(0.0, -0.2), (0.05, -0.95)]]
    for k in range(petals):
        t = math.tau * k / petals
        strokes.append(_arc(0.36 * math.cos(t), 0.35 + 0.36 * math.sin(t), 0.2, 0.2))
    strokes.append([(0.03, -0.75), (0.35, -0.5), (0.45, -0.6), (0.03, -0.75)])
    return strokes


def _umbrella(dice: Dice) -> list[Stroke]:
    panels = 3 + dice.integer(2)
    strokes: list[Stroke] = [_arc(0, 0.1, 0.92, 0.8, 0, 180), [(0.0, 0.9), (0.0, -0.7)]]
    strokes.append(_arc(-0.15, -0.7, 0.15, 0.2, 0, -180))
    width = 1.84 / panels
    for k in range(panels):
        strokes.append(_arc(-0.92 + width * (k + 0.5), 0.1, width / 2, 0.12, 0, 180))
    return strokes


def _bicycle(dice: Dice) -> list[Stroke]:
    wheel, seat = dice.uniform(0.34, 0.42), dice.uniform(0.25, 0.4)
    return [
        _arc(-0.55, -0.35, wheel, wheel),
        _arc(0.55, -0.35, wheel, wheel),
        [(-0.55, -0.35), (-0.25, seat - 0.1), (0.35, seat - 0.1), (0.0, -0.35), (-0.55, -0.35)],
        [(0.0, -0.35), (-0.28, seat + 0.05)],
        [(-0.42, seat + 0.05), (-0.14, seat + 0.05)],
        [(0.55, -0.35), (0.32, seat + 0.2), (0.5, seat + 0.25)],
    ]


def _lamp(dice: Dice) -> list[Stroke]:
    top, wide = dice.uniform(0.2, 0.35), dice.uniform(0.55, 0.75)
    return [
        [(-wide, 0.2), (-top, 0.92), (top, 0.92), (wide, 0.2), (-wide, 0.2)],
        [(0.0, 0.2), (0.0, -0.8)],
        [(-0.45, -0.92), (-0.3, -0.8), (0.3, -0.8), (0.45, -0.92), (-0.45, -0.92)],
    ]


def _butterfly(dice: Dice) -> list[Stroke]:
    up, low = dice.uniform(0.42, 0.5), dice.uniform(0.28, 0.36)
    strokes: list[Stroke] = [_arc(0, 0, 0.09, 0.6)]
    for s in (-1, 1):
        strokes.append(_arc(s * (0.08 + up), 0.4, up, 0.42))
        strokes.append(_arc(s * (0.08 + low), -0.4, low, 0.38))
        strokes.append([(0.0, 0.58), (s * 0.22, 0.95)])
    return strokes


DRAWINGS: dict[str, Callable[[Dice], list[Stroke]]] = {
    "house": _house,
    "star": _star,
    "arrow": _arrow,
    "spiral": _spiral,
    "ladder": _ladder,
    "tree": _tree,
    "face": _face,
    "fish": _fish,
    "key": _key,
    "cup": _cup,
    "boat": _boat,
    "flower": _flower,
    "umbrella": _umbrella,
    "bicycle": _bicycle,
    "lamp": _lamp,
    "butterfly": _butterfly,
}


def paint_drawing(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Draw thing `label` of `DRAWINGS`, turned by up to 30 degrees."""
    scene = Scene(image_size, rng)
    strokes = tuple(DRAWINGS.values())[label](scene)
    ink = scene.colour()
    if scene.chance(0.5):
        ink = (15, 15, 20) if sum(scene.background) > 1.5 else (245, 245, 240)
    place = _Hand(scene)
    width = scene.uniform(0.012, 0.035)
    for stroke in strokes:
        scene.line(place.draw(stroke), width, ink)
    return scene.pixels()


class _Hand:
    """Turns, stretches, shifts and bends strokes; each stroke comes out a little off."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        turn, size = math.radians(dice.uniform(-30.0, 30.0)), dice.uniform(0.28, 0.44)
        stretch, shear = dice.uniform(0.8, 1.25), dice.uniform(-0.15, 0.15)
        c, s = math.cos(turn) * size, math.sin(turn) * size
        mirror = dice.sign()
        self.matrix = np.array(((c, -s), (s, c))) @ np.array(((mirror, shear), (0.0, stretch)))
        self.matrix *= 1.0 / max(1.0, stretch)
        free = max(0.0, 0.48 - size)
        self.at = np.array([0.5 + dice.uniform(-free, free) for _ in range(2)])
        self.bend = dice.uniform(0.0, 0.012)
        self.off = dice.uniform(0.0, 0.012)
        self.waves = np.array([[dice.uniform(-14, 14) for _ in range(2)] for _ in range(2)])
        self.phases = np.array([dice.uniform(0, math.tau) for _ in range(2)])

    def draw(self, stroke: Stroke) -> list[Point]:
        """Return the points of a stroke in the picture, in units of its side."""
        corners = np.asarray(stroke, np.float64)
        # Long lines get points in between, so that they can bend.
        parts = (
            np.linspace(0.0, 1.0, 5)[:-1, None, None] if len(corners) < 12 else np.zeros((1, 1, 1))
        )
        steps = corners[:-1] + parts * (corners[1:] - corners[:-1])
        points = np.concatenate([steps.transpose(1, 0, 2).reshape(-1, 2), corners[-1:]])
        placed = points * (1.0, -1.0) @ self.matrix.T + self.at
        placed += self.bend * np.sin(placed @ self.waves * 2 + self.phases)
        placed += np.array([self.dice.uniform(-self.off, self.off) for _ in range(2)])
        return [(x, y) for x, y in placed.tolist()]
