"""Families of generated pictures that only judge: no prompt is trained on them, nothing chosen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.generated import Kind, paint
from hgprompt_edge.data.generated.canvas import Colour, Paint, Point, Scene, smooth_noise
from hgprompt_edge.data.split import split
from hgprompt_edge.data.task import make_task
from hgprompt_edge.images.preprocess import Preprocessing

TRAINING_IMAGES = 400
TEST_IMAGES = 400
FIRST_STREAM = 1000
"""Well beyond the streams of the generated kinds, which are numbered from 0."""

CORNERS = range(3, 9)
BARS = 6
RINGS = 6
ENDS = 4
HOURS = 12


def load_fresh(name: str, preprocessing: Preprocessing, seed: int) -> Task:
    """Paint a fresh task: 320 training, 80 validation and 400 test images.

    The seed draws training and validation images; the test images are always the same.
    """
    described = FRESH[name]
    size = preprocessing.image_size
    images = _images(name, TRAINING_IMAGES, size, 0, seed)
    train, validation = split(images.labels, seed)
    return make_task(
        name=name,
        family=described.family,
        classes=described.classes,
        splits=(
            images.subset(train),
            images.subset(validation),
            _images(name, TEST_IMAGES, size, 1, 0),
        ),
        flips=described.flips,
    )


def _images(name: str, count: int, image_size: int, part: int, seed: int) -> Images:
    described = FRESH[name]
    stream = (FIRST_STREAM + list(FRESH).index(name), part, seed)
    pixels, labels = paint(described.paint, len(described.classes), count, image_size, stream)
    where = ("train", "test")[part]
    return Images(pixels, labels, tuple(f"{where}/{seed}/{i:06d}" for i in range(count)))


def on_canvas(draw: Callable[[Scene, int], None]) -> Paint:
    """Make a painter of what draws class `label` on a scene."""

    def painter(rng: np.random.Generator, image_size: int, label: int) -> np.ndarray:
        scene = Scene(image_size, rng)
        draw(scene, label)
        return scene.pixels()

    return painter


def _corners(scene: Scene, label: int) -> None:
    """Draw an irregular polygon of 3 to 8 corners on top of a few lines."""
    count = CORNERS[label]
    for _ in range(2 + scene.integer(4)):
        ends = [(scene.uniform(), scene.uniform()) for _ in range(2)]
        scene.line(ends, scene.uniform(0.01, 0.03), scene.colour())
    radius = scene.uniform(0.25, 0.42)
    turns, reach = _polygon(scene, count)
    start, stretch = scene.uniform(0.0, math.tau), scene.uniform(0.75, 1.0)
    tilt = scene.uniform(0.0, math.tau)
    points = []
    for turn, r in zip(turns, reach, strict=True):
        x, y = radius * r * math.cos(turn + start), stretch * radius * r * math.sin(turn + start)
        points.append(
            (x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt))
        )
    free = 0.49 - radius
    centre = (0.5 + scene.uniform(-free, free), 0.5 + scene.uniform(-free, free))
    placed = [(centre[0] + x, centre[1] + y) for x, y in points]
    colour = scene.colour()
    if scene.chance(0.6):
        scene.polygon(placed, colour)
    else:
        # Closed twice over its first side, so that every joint is round.
        scene.line([*placed, *placed[:2]], scene.uniform(0.015, 0.03), colour)


def _polygon(scene: Scene, count: int) -> tuple[list[float], list[float]]:
    """Directions and distances of corners, each of which bends by 25 degrees or more."""
    step = math.tau / count
    while True:
        turns = [step * (k + scene.uniform(-0.25, 0.25)) for k in range(count)]
        reach = [scene.uniform(0.75, 1.0) for _ in range(count)]
        points = [(r * math.cos(t), r * math.sin(t)) for r, t in zip(reach, turns, strict=True)]
        if all(_bend(points[k - 2], points[k - 1], points[k]) > 25.0 for k in range(count)):
            return turns, reach


def _bend(a: Point, b: Point, c: Point) -> float:
    """By how many degrees the way from `a` over `b` to `c` turns to the left."""
    first, second = math.atan2(b[1] - a[1], b[0] - a[0]), math.atan2(c[1] - b[1], c[0] - b[0])
    return (math.degrees(second - first) + 180.0) % 360.0 - 180.0


def _bars(scene: Scene, label: int) -> None:
    """Draw a chart of six bars; number `label` is the tallest by a tenth of the chart or more."""
    left, right = scene.uniform(0.04, 0.15), scene.uniform(0.85, 0.96)
    bottom, top = scene.uniform(0.8, 0.95), scene.uniform(0.05, 0.25)
    tallest = scene.uniform(0.45, 1.0)
    heights = [scene.uniform(0.05, tallest - 0.1) for _ in range(BARS)]
    heights[label] = tallest
    width = (right - left) / BARS
    inset = width * scene.uniform(0.08, 0.3)
    colour, mixed = scene.colour(), scene.chance(0.5)
    for k, height in enumerate(heights):
        x0, x1 = left + k * width + inset, left + (k + 1) * width - inset
        y = bottom - height * (bottom - top)
        ink = scene.colour() if mixed else colour
        scene.polygon([(x0, bottom), (x1, bottom), (x1, y), (x0, y)], ink)
    axis = scene.colour()
    scene.line([(left, bottom), (right, bottom)], 0.012, axis)
    if scene.chance(0.5):
        scene.line([(left, bottom), (left, top)], 0.012, axis)


def _rings(scene: Scene, label: int) -> None:
    """Draw `label + 1` closed curves inside one another."""
    count = label + 1
    outer = scene.uniform(0.33, 0.46)
    least, gap = 0.06, 0.05
    spare = outer - least - gap * RINGS
    free = sorted(scene.uniform(0.0, 1.0) for _ in range(count))
    # Radii spread over all sizes, so that neither the largest nor the smallest tells the count.
    room = spare + gap * (RINGS - count)
    radii = [least + gap * (k + 1) + room * f for k, f in enumerate(free)]
    centre = tuple(0.5 + scene.uniform(-1, 1) * (0.49 - outer) for _ in range(2))
    stretch, tilt = scene.uniform(0.8, 1.0), scene.uniform(0.0, math.pi)
    width = scene.uniform(0.012, 0.02)
    colour, mixed = scene.colour(), scene.chance(0.4)
    turns = [math.tau * k / 60 for k in range(61)]
    for radius in radii:
        off = (scene.uniform(-0.006, 0.006), scene.uniform(-0.006, 0.006))
        points = []
        for t in turns:
            x, y = radius * math.cos(t), stretch * radius * math.sin(t)
            points.append(
                (
                    centre[0] + off[0] + x * math.cos(tilt) - y * math.sin(tilt),
                    centre[1] + off[1] + x * math.sin(tilt) + y * math.cos(tilt),
                )
            )
        scene.line(points, width, scene.colour() if mixed else colour)


SYMMETRIES = ("none", "left as right", "top as bottom", "both")


def _symmetry(scene: Scene, label: int) -> None:
    """Paint a square of random blobs: mirrored in no axis, the upright or level one, or both."""
    side = int(scene.side * scene.uniform(0.6, 0.92))
    noise = smooth_noise(scene, side, 5 + scene.integer(4))[..., 0]
    if label & 1:
        noise[:, side - side // 2 :] = noise[:, : side // 2][:, ::-1]
    if label & 2:
        noise[side - side // 2 :] = noise[: side // 2][::-1]
    colours = _far_apart(scene, 2 + scene.integer(2))
    levels = np.quantile(noise, np.linspace(0, 1, len(colours) + 1)[1:-1])
    blobs = np.asarray(colours, np.uint8)[np.searchsorted(levels, noise)]
    free = scene.side - side
    scene.canvas.paste(Image.fromarray(blobs), (scene.integer(free), scene.integer(free)))


def _far_apart(scene: Scene, count: int) -> list[Colour]:
    """Take colours that differ in brightness, in a random order."""
    colours = []
    for k in range(count):
        red, green, blue = (
            int(255 * (0.15 + 0.7 * k / (count - 1) + scene.uniform(-0.14, 0.14))) for _ in range(3)
        )
        colours.append((red, green, blue))
    return colours[::-1] if scene.chance(0.5) else colours


def _path(scene: Scene, label: int) -> None:
    """Draw four crossing ways from left to right; the one from the marked start ends `label`th."""
    order = list(range(ENDS))
    for k in range(ENDS - 1, 0, -1):
        other = scene.integer(k + 1)
        order[k], order[other] = order[other], order[k]
    start = order.index(label)
    width = scene.uniform(0.014, 0.026)
    colour, mixed = scene.colour(), scene.chance(0.5)
    left, right = (
        [0.14 + 0.24 * k + scene.uniform(-0.05, 0.05) for k in range(ENDS)] for _ in range(2)
    )
    steps = [k / 40 for k in range(41)]
    for begin, end in enumerate(order):
        y0, y1 = left[begin], right[end]
        steep, middle = scene.uniform(5.0, 8.0), scene.uniform(0.38, 0.62)
        low, high = (1 / (1 + math.exp(-steep * (x - middle))) for x in (0.0, 1.0))
        points = []
        for x in steps:
            rise = (1 / (1 + math.exp(-steep * (x - middle))) - low) / (high - low)
            points.append((0.12 + 0.76 * x, y0 + (y1 - y0) * rise))
        scene.line(points, width, scene.colour() if mixed else colour)
    mark = scene.colour()
    for y in right:
        scene.disc((0.9, y), 0.03, mark)
    scene.disc((0.1, left[start]), 0.055, mark)


def _clock(scene: Scene, label: int) -> None:
    """Draw a dial with one hand that points at hour `label`, 0 on top, give or take 8 degrees."""
    radius = scene.uniform(0.3, 0.46)
    free = 0.48 - radius
    x, y = 0.5 + scene.uniform(-free, free), 0.5 + scene.uniform(-free, free)
    lean = scene.uniform(-4.0, 4.0)
    face, ink, hand = scene.colour(), scene.colour(), scene.colour()
    if sum(abs(a - b) for a, b in zip(face, hand, strict=True)) < 220:
        hand = (10, 10, 15) if sum(face) > 382 else (245, 245, 240)

    def at(degrees: float, part: float) -> Point:
        turn = math.radians(degrees + lean)
        return (x + part * radius * math.sin(turn), y - part * radius * math.cos(turn))

    scene.disc((x, y), radius, ink)
    scene.disc((x, y), radius * scene.uniform(0.88, 0.95), face)
    for k in range(0, HOURS, scene.choose((1, 3))):
        scene.line([at(30.0 * k, 0.74), at(30.0 * k, 0.84)], 0.012, ink)
    pointing = 30.0 * label + scene.uniform(-8.0, 8.0)
    scene.line(
        [at(pointing + 180.0, scene.uniform(0.0, 0.15)), at(pointing, scene.uniform(0.5, 0.8))],
        scene.uniform(0.02, 0.045),
        hand,
    )
    scene.disc((x, y), scene.uniform(0.03, 0.05), hand)


def _fresh(
    name: str, draw: Callable[[Scene, int], None], classes: tuple[str, ...], flips: bool
) -> Kind:
    return Kind(on_canvas(draw), classes, flips, name)


FRESH = {
    name: _fresh(name, draw, classes, flips)
    for name, draw, classes, flips in (
        ("fresh-corners", _corners, tuple(f"{k} corners" for k in CORNERS), True),
        ("fresh-bars", _bars, tuple(f"bar {k + 1}" for k in range(BARS)), False),
        ("fresh-rings", _rings, tuple(f"{k + 1} rings" for k in range(RINGS)), True),
        ("fresh-symmetry", _symmetry, SYMMETRIES, True),
        ("fresh-path", _path, tuple(f"end {k + 1}" for k in range(ENDS)), True),
        ("fresh-clock", _clock, tuple(f"{k:02d} o'clock" for k in range(HOURS)), False),
    )
}
"""Each is a family of its own."""
