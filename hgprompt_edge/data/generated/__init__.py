"""Generated tasks without end, each of one kind of picture that is painted when it is needed.

Image `i` of a split and seed is always the same, whatever the size of the batch that it is drawn
in, and its random stream is its own: no image of one split is an image of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.generated import (
    characters,
    curves,
    drawings,
    flat,
    objects,
    shading,
    sprites,
    tabletop,
    textures,
)
from hgprompt_edge.data.generated.canvas import Paint, Pixels
from hgprompt_edge.data.task import Images
from hgprompt_edge.errors import ParameterError

SPLITS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Kind:
    """A generated task: how a class is painted, what the classes are called.

    Attributes
    ----------
    flips
        Whether a horizontal flip keeps the class.
    family
        Tasks of one family never serve each other as source and target.
    """

    paint: Paint
    classes: tuple[str, ...]
    flips: bool
    family: str


# The place in this table is part of the random stream: new kinds go to the end.
KINDS = {
    "generated-orientation": Kind(
        flat.paint_orientation,
        tuple(f"{180 * k / flat.ANGLES:05.1f} degrees" for k in range(flat.ANGLES)),
        False,
        "generated",
    ),
    "generated-count": Kind(
        flat.paint_count, tuple(str(k + 1) for k in range(flat.MOST_SHAPES)), True, "generated"
    ),
    "generated-location": Kind(
        flat.paint_location,
        tuple(f"row {r + 1} column {c + 1}" for r in range(flat.GRID) for c in range(flat.GRID)),
        False,
        "generated",
    ),
    "generated-sprite-orientation": Kind(
        sprites.paint_sprite_orientation,
        tuple(f"{360 * k / sprites.CLASSES:05.1f} degrees" for k in range(sprites.CLASSES)),
        False,
        "dsprites",
    ),
    "generated-sprite-location": Kind(
        sprites.paint_sprite_location,
        tuple(f"column {k + 1:02d}" for k in range(sprites.CLASSES)),
        False,
        "dsprites",
    ),
    "generated-object-azimuth": Kind(
        objects.paint_azimuth,
        tuple(f"{360 * k // objects.AZIMUTHS:03d} degrees" for k in range(objects.AZIMUTHS)),
        False,
        "norb",
    ),
    "generated-object-elevation": Kind(
        objects.paint_elevation,
        tuple(f"{degrees:.0f} degrees" for degrees in objects.ELEVATIONS),
        True,
        "norb",
    ),
    "generated-solid-count": Kind(
        tabletop.paint_solid_count, tuple(str(k) for k in tabletop.COUNTS), True, "clevr"
    ),
    "generated-solid-distance": Kind(
        tabletop.paint_solid_distance, tabletop.DISTANCE_NAMES, True, "clevr"
    ),
    "generated-texture": Kind(textures.paint_texture, tuple(textures.TEXTURES), True, "texture"),
    "generated-character": Kind(
        characters.paint_character, tuple(characters.LETTERS), False, "characters"
    ),
    "generated-drawing": Kind(drawings.paint_drawing, tuple(drawings.DRAWINGS), True, "drawings"),
    "generated-gradient": Kind(shading.paint_light_direction, shading.DIRECTIONS, False, "shading"),
    "generated-intersections": Kind(
        curves.paint_intersections,
        tuple(f"{k} crossings" for k in range(curves.MOST_CROSSINGS + 1)),
        True,
        "curves",
    ),
}


def generate(kind: str, count: int, image_size: int, seed: int, split: str) -> Images:
    """Make the first `count` images of a split: pixels `[count, size, size, 3]` uint8.

    Training draws fresh images with a new seed for each epoch. Image `i` has class `i mod K`.

    Parameters
    ----------
    kind
        A key of `KINDS`.
    split
        `train`, `validation` or `test`: separate random streams.

    Raises
    ------
    UserError
        The kind or the split is unknown.
    """
    if kind not in KINDS:
        raise ParameterError("task", kind, f"unknown; generated tasks are {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ParameterError("split", split, f"unknown; splits are {', '.join(SPLITS)}")
    stream = (list(KINDS).index(kind), SPLITS[split], seed)
    described = KINDS[kind]
    pixels, labels = paint(described.paint, len(described.classes), count, image_size, stream)
    return Images(pixels, labels, tuple(f"{split}/{seed}/{i:06d}" for i in range(count)))


def paint(
    painter: Paint, classes: int, count: int, image_size: int, stream: tuple[int, ...]
) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Paint `count` images, of class `i mod classes` each, and return them with their labels.

    Parameters
    ----------
    stream
        Integers that seed the random numbers; image `i` uses those of `(*stream, i)`.
    """
    labels = np.arange(count, dtype=np.int64) % classes
    pixels = np.empty((count, image_size, image_size, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*stream, i))))
        pixels[i] = painter(rng, image_size, label)
    return pixels, labels
