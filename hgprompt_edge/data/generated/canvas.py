"""What the generated tasks paint with: random numbers, a flat canvas, and backgrounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
"""float32 throughout; some operators of numpy are declared wider."""
Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]
Paint: TypeAlias = Callable[[np.random.Generator, int, int], Pixels]
"""Paints one image `[size, size, 3]` from a random stream, the size and the class."""

T = TypeVar("T")

SUPERSAMPLING = 2
"""Shapes are drawn this much larger and averaged, for smooth edges."""


class Dice:
    """A stream of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._numbers: Iterator[float] = iter(())

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

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def choose(self, choices: Sequence[T]) -> T:
        """Take one of the choices."""
        return choices[self.integer(len(choices))]

    def sign(self) -> float:
        """Take -1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0


class Scene(Dice):
    """One flat image under way: a canvas of unit side on a blotchy background."""

    def __init__(self, image_size: int, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.image_size = image_size
        self.side = image_size * SUPERSAMPLING
        self.background = (self.uniform(), self.uniform(), self.uniform())
        self.canvas = self._texture()
        self.draw = ImageDraw.Draw(self.canvas)

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

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line through points, with round joints and ends; all in units of the side."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        pixels = max(1, round(width * self.side))
        self.draw.line(scaled, fill=colour, width=pixels, joint="curve")
        r = pixels / 2
        if r > 1:
            for x, y in (scaled[0], scaled[-1]):
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

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

    def pixels(self) -> Pixels:
        """`[image_size, image_size, 3]`, with noise of up to a random few grey levels."""
        image = np.asarray(self.canvas.reduce(SUPERSAMPLING), np.int16)
        level = self.integer(24)
        return add_noise(self.rng, image, level)


def add_noise(rng: np.random.Generator, image: npt.NDArray[np.int16], level: int) -> Pixels:
    """Add uniform noise of up to `level / 2` grey levels to an image `[H, W, 3]`."""
    grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    noise = (grain.astype(np.int16) - 128) * level >> 7
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def smooth_noise(dice: Dice, side: int, cells: int, channels: int = 1) -> Floats:
    """Make smooth random blotches in [-1, 1], about `cells` across: `[side, side, channels]`.

    There are 1 or 3 channels: Pillow takes a second or fourth one for transparency.
    """
    grid = dice.rng.random((cells + 3, cells + 3, channels), np.float32) * 255
    small = Image.fromarray(grid.astype(np.uint8).squeeze())
    # The outermost cells are left out: resampling flattens them.
    edge = (1.5, 1.5, cells + 1.5, cells + 1.5)
    large = small.resize((side, side), Image.Resampling.BICUBIC, box=edge)
    values = np.asarray(large, np.float32).reshape(side, side, channels)
    scaled: Floats = values * np.float32(2 / 255) - np.float32(1)
    return scaled


def backdrop(
    dice: Dice, side: int, depth: float = 0.15, *, unlike: tuple[float, float, float] | None = None
) -> Floats:
    """Make a background `[side, side, 3]` in [0, 1]: plain, or with coarse or fine blotches.

    Its brightness differs by 0.25 or more from that of the colour `unlike`.
    """
    colour = np.array([dice.uniform(0.1, 0.9) for _ in range(3)], np.float32)
    if dice.chance(0.4):
        colour[:] = colour[0]
    if unlike is not None:
        other, own = sum(unlike) / 3, float(colour.mean())
        if abs(own - other) < 0.25:
            colour += (other + (0.3 if other < 0.5 else -0.3)) - own
            np.clip(colour, 0, 1, out=colour)
    if dice.chance(0.3):
        return np.tile(colour, (side, side, 1))
    blotches = smooth_noise(dice, side, 2 + dice.integer(12), dice.choose((1, 3)))
    values: Floats = np.clip(colour + np.float32(dice.uniform(0.02, depth)) * blotches, 0, 1)
    return values


def finish(dice: Dice, image: Floats, image_size: int) -> Pixels:
    """Shrink an image `[side, side, 3]` in [0, 1] to `image_size`, and add noise."""
    full = Image.fromarray((np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8))
    small = full.resize((image_size, image_size), Image.Resampling.BOX)
    return add_noise(dice.rng, np.asarray(small, np.int16), dice.integer(16))
