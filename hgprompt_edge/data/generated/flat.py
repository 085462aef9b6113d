"""Flat shapes on a blotchy background: orientation of a bar, count of shapes, place of a target."""

from __future__ import annotations

import math

import numpy as np

from hgprompt_edge.data.generated.canvas import Colour, Pixels, Point, Scene

ANGLES = 8
MOST_SHAPES = 8
GRID = 3


def paint_orientation(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint a bar at `label` * 22.5 degrees, give or take 5, over round or square distractors."""
    scene = Scene(image_size, rng)
    _orientation(scene, label)
    return scene.pixels()


def paint_count(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint `label + 1` shapes that do not touch, alike or of mixed sizes and colours."""
    scene = Scene(image_size, rng)
    _count(scene, label)
    return scene.pixels()


def paint_location(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint one target (a disc in a ring) in cell `label` of a 3 x 3 grid, among plain shapes."""
    scene = Scene(image_size, rng)
    _location(scene, label)
    return scene.pixels()


def _orientation(scene: Scene, label: int) -> None:
    length, thickness = scene.uniform(0.22, 0.4), scene.uniform(0.035, 0.07)
    centre = (scene.uniform(length, 1 - length), scene.uniform(length, 1 - length))
    for _ in range(2 + scene.integer(6)):
        radius = scene.uniform(0.04, 0.1)
        point = (scene.uniform(radius, 1 - radius), scene.uniform(radius, 1 - radius))
        scene.shape(point, radius, scene.colour())
    angle = math.radians(label * 180.0 / ANGLES + scene.uniform(-5.0, 5.0))
    along = (length * math.cos(angle), -length * math.sin(angle))
    across = (thickness * math.sin(angle), thickness * math.cos(angle))
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    scene.polygon(
        [
            (centre[0] + s * along[0] + t * across[0], centre[1] + s * along[1] + t * across[1])
            for s, t in signs
        ],
        scene.colour(),
    )


def _count(scene: Scene, label: int) -> None:
    largest = scene.uniform(0.07, 0.13)
    smallest = largest * scene.uniform(0.5, 1.0)
    mixed = scene.integer(2) == 1
    colour = scene.colour()
    taken: list[tuple[Point, float]] = []
    for _ in range(label + 1):
        radius = scene.uniform(smallest, largest)
        point = scene.place(radius, taken)
        while point is None:
            radius *= 0.8
            point = scene.place(radius, taken)
        scene.shape(point, radius, scene.colour() if mixed else colour)


def _location(scene: Scene, label: int) -> None:
    radius = scene.uniform(0.08, 0.12)
    row, column = divmod(label, GRID)
    margin = 0.04
    low, high = margin, 1.0 / GRID - margin
    centre = (
        min(max(column / GRID + scene.uniform(low, high), radius), 1.0 - radius),
        min(max(row / GRID + scene.uniform(low, high), radius), 1.0 - radius),
    )
    taken = [(centre, radius)]
    for _ in range(3 + scene.integer(6)):
        size = scene.uniform(0.05, 0.11)
        point = scene.place(size, taken)
        if point is not None:
            scene.shape(point, size, scene.colour())
    inner = scene.colour()
    outer: Colour = (255 - inner[0] // 4, 255 - inner[1] // 4, 255 - inner[2] // 4)
    if sum(inner) > 382:
        outer = (inner[0] // 8, inner[1] // 8, inner[2] // 8)
    scene.disc(centre, radius, outer)
    scene.disc(centre, 0.5 * radius, inner)
