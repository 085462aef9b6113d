"""Generated tasks without end: orientation, count and location of shapes.

Image `i` of a split and seed is always the same, whatever the size of the batch that it is drawn
in, and its random stream is its own: no image of one split is an image of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from hgprompt_edge.errors import UserError
from hgprompt_edge.tasks.task import Images

SPLITS = {"train": 0, "validation": 1, "test": 2}
SUPERSAMPLING = 2
"""Shapes are drawn this much larger and averaged, for smooth edges."""

ANGLES = 8
MOST_SHAPES = 8
GRID = 3

Colour = tuple[int, int, int]
Point = tuple[float, float]


class _Scene:
    """One image under way: a canvas of unit side and a stream of uniform random numbers."""

    def __init__(self, image_size: int, rng: np.random.Generator) -> None:
        self.image_size = image_size
        self.side = image_size * SUPERSAMPLING
        self.rng = rng
        self._numbers: Iterator[float] = iter(())
        self.background = (self.uniform(), self.uniform(), self.uniform())
        self.canvas = self._texture()
        self.draw = ImageDraw.Draw(self.canvas)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Take the next number of the stream; drawn in batches, which is much faster."""
        number = next(self._numbers, None)
        if number is None:
            self._numbers = iter(self.rng.random(64).tolist())
            number = next(self._numbers)
        return low + (high - low) * number

    def integer(self, count: int) -> int:
        """Take an integer in [0, count)."""
        return int(self.uniform() * count)

    def colour(self) -> Colour:
        """Take a colour that differs by 0.3 at least from the background, in each channel."""
        red, green, blue = ((c + self.uniform(0.3, 0.7)) % 1.0 for c in self.background)
        return (int(255 * red), int(255 * green), int(255 * blue))

    def _texture(self) -> Image.Image:
        """Make the background: its colour with smooth random blotches, coarse or fine."""
        cells = 2 + self.integer(9)
        depth = self.uniform(0.0, 0.14)
        blotches = self.rng.uniform(-depth, depth, (cells, cells, 1 + 2 * self.integer(2)))
        values = np.clip(np.asarray(self.background) + blotches, 0.0, 1.0)
        small = Image.fromarray((255 * values).astype(np.uint8))
        return small.resize((self.side, self.side), Image.Resampling.BICUBIC)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill a polygon; corners in units of the image's side."""
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """Fill a disc."""
        x, y, r = centre[0] * self.side, centre[1] * self.side, radius * self.side
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def shape(self, centre: Point, radius: float, colour: Colour) -> None:
        """Fill a disc, or a regular triangle, square or pentagon at a random angle."""
        corners = 2 + self.integer(4)
        if corners == 2:
            self.disc(centre, 0.85 * radius, colour)
            return
        start = self.uniform(0.0, math.tau)
        turns = [start + math.tau * k / corners for k in range(corners)]
        self.polygon(
            [(centre[0] + radius * math.cos(t), centre[1] + radius * math.sin(t)) for t in turns],
            colour,
        )

    def place(self, radius: float, taken: list[tuple[Point, float]]) -> Point | None:
        """Find a random centre whose circle touches neither the border nor a taken circle."""
        for _ in range(30):
            point = (self.uniform(radius, 1.0 - radius), self.uniform(radius, 1.0 - radius))
            if all(math.dist(point, other) > radius + r + 0.02 for other, r in taken):
                taken.append((point, radius))
                return point
        return None

    def pixels(self) -> npt.NDArray[np.uint8]:
        """`[image_size, image_size, 3]`, with noise of up to a random few grey levels."""
        image = np.asarray(self.canvas.reduce(SUPERSAMPLING), np.int16)
        level = self.integer(24)
        grain = np.frombuffer(self.rng.bytes(image.size), np.uint8).reshape(image.shape)
        noise = (grain.astype(np.int16) - 128) * level >> 7
        return np.clip(image + noise, 0, 255).astype(np.uint8)


def _orientation(scene: _Scene, label: int) -> None:
    """Paint a bar at `label` * 22.5 degrees, give or take 5, over round or square distractors."""
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


def _count(scene: _Scene, label: int) -> None:
    """Paint `label + 1` shapes that do not touch, alike or of mixed sizes and colours."""
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


def _location(scene: _Scene, label: int) -> None:
    """Paint one target (a disc in a ring) in cell `label` of a 3 x 3 grid, among plain shapes."""
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


@dataclass(frozen=True)
class Kind:
    """A generated task: how a class is painted, what the classes are called."""

    paint: Callable[[_Scene, int], None]
    classes: tuple[str, ...]
    flips: bool


KINDS = {
    "generated-orientation": Kind(
        _orientation, tuple(f"{180 * k / ANGLES:05.1f} degrees" for k in range(ANGLES)), False
    ),
    "generated-count": Kind(_count, tuple(str(k + 1) for k in range(MOST_SHAPES)), True),
    "generated-location": Kind(
        _location,
        tuple(f"row {r + 1} column {c + 1}" for r in range(GRID) for c in range(GRID)),
        False,
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
        raise UserError(f"--task {kind}: unknown; generated tasks are {', '.join(KINDS)}")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; splits are {', '.join(SPLITS)}")
    described = KINDS[kind]
    stream = (list(KINDS).index(kind), SPLITS[split], seed)
    labels = np.arange(count, dtype=np.int64) % len(described.classes)
    pixels = np.empty((count, image_size, image_size, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*stream, i))))
        scene = _Scene(image_size, rng)
        described.paint(scene, label)
        pixels[i] = scene.pixels()
    return Images(pixels, labels, tuple(f"{split}/{seed}/{i:06d}" for i in range(count)))
