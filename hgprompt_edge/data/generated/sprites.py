"""Sprites of dSprites: orientation and place of a white square, ellipse or heart on black.

Matthey et al. 2017, "dSprites: disentanglement testing sprites dataset": pictures of 64 x 64
pixels without grey levels, 3 shapes, 6 scales, 40 orientations, 32 x 32 positions. The classes are
those of VTAB-1k: neighbouring values of a factor are grouped into 16.

The published labels are ambiguous: a turned square looks the same four times in a full turn, an
ellipse twice, and of the 40 orientations the last is the first. Here the 40 are 9 degrees apart,
squares take the first quarter of them and ellipses the first half, so that each picture has one
label. Classes 4 to 7 show no squares, classes 8 to 15 only hearts.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from hgprompt_edge.data.generated.canvas import Dice, Pixels, Point

PUBLISHED_SIDE = 64
SCALES = 6
ORIENTATIONS = 40
POSITIONS = 32
CLASSES = 16

SHAPES = ("heart", "ellipse", "square")
"""In the order of their rotational symmetry: 1, 2 and 4 fold."""


def _outline(shape: str) -> tuple[Point, ...]:
    """Corners of a shape of scale 1, in pixels of the published size, about its centre."""
    if shape == "square":
        return ((-11.0, -11.0), (11.0, -11.0), (11.0, 11.0), (-11.0, 11.0))
    turns = [math.tau * k / 48 for k in range(48)]
    if shape == "ellipse":
        return tuple((7.5 * math.cos(t), 14.0 * math.sin(t)) for t in turns)
    return tuple(
        (
            0.82 * 16 * math.sin(t) ** 3,
            -0.82
            * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in turns
    )


OUTLINES = {shape: _outline(shape) for shape in SHAPES}


def paint_sprite_orientation(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint a sprite whose orientation is in bin `label` of 16."""
    dice = Dice(rng)
    values = [v for v in range(ORIENTATIONS) if v * CLASSES // ORIENTATIONS == label]
    shapes = 3 if label < CLASSES // 4 else 2 if label < CLASSES // 2 else 1
    return _sprite(
        image_size,
        shape=SHAPES[dice.integer(shapes)],
        scale=dice.integer(SCALES),
        orientation=dice.choose(values),
        place=(dice.integer(POSITIONS), dice.integer(POSITIONS)),
    )


def paint_sprite_location(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint a sprite whose centre is in column `label` of 16, from left to right."""
    dice = Dice(rng)
    width = POSITIONS // CLASSES
    return _sprite(
        image_size,
        shape=dice.choose(SHAPES),
        scale=dice.integer(SCALES),
        orientation=dice.integer(ORIENTATIONS),
        place=(label * width + dice.integer(width), dice.integer(POSITIONS)),
    )


def _sprite(
    image_size: int, *, shape: str, scale: int, orientation: int, place: tuple[int, int]
) -> Pixels:
    """Paint as published, then resize to `[image_size, image_size, 3]`."""
    size = 0.5 + 0.5 * scale / (SCALES - 1)
    turn = math.tau * orientation / ORIENTATIONS
    cosine, sine = size * math.cos(turn), size * math.sin(turn)
    # Centres lie in the middle half: the largest sprite stays inside at any orientation.
    x, y = (16.0 + 32.0 * (p + 0.5) / POSITIONS for p in place)
    canvas = Image.new("L", (PUBLISHED_SIDE, PUBLISHED_SIDE))
    ImageDraw.Draw(canvas).polygon(
        [(x + cosine * a - sine * b, y + sine * a + cosine * b) for a, b in OUTLINES[shape]],
        fill=255,
    )
    resized = canvas.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(resized)[..., None], 3, axis=-1)
