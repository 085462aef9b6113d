"""Capital letters as on signs: many fonts, colours, backgrounds, and some damage.

The fonts are those that matplotlib brings along (DejaVu, STIX and Computer Modern), so pictures
can differ where its version or that of Pillow does.
"""

from __future__ import annotations

import math
import string
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hgprompt_edge.data.generated.canvas import Dice, Floats, Pixels, Point, backdrop, finish
from hgprompt_edge.data.generated.solids import render_side
from hgprompt_edge.data.generated.textures import TEXTURES, texture
from hgprompt_edge.errors import MissingPackageError, argument

LETTERS = string.ascii_uppercase

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

GLYPH = 72
"""Height in pixels at which glyphs are kept."""


@lru_cache(maxsize=1)
def _folder() -> Path:
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingPackageError(argument("task", "generated-character"), "matplotlib", "server")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def _glyph(font: str, letter: str) -> Image.Image:
    """Return a letter's mask, cut to its outline."""
    face = ImageFont.truetype(str(_folder() / f"{font}.ttf"), GLYPH)
    left, top, right, bottom = face.getbbox(letter)
    mask = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), letter, fill=255, font=face)
    return mask


def paint_character(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint letter `label` of the alphabet."""
    dice = Dice(rng)
    side = render_side(image_size)
    ink = np.array([dice.uniform() for _ in range(3)], np.float32)
    if dice.chance(0.4):
        ink[:] = dice.choose((0.02, 0.97))
    image = _background(dice, side, ink)
    where = Image.new("L", (side, side))
    where.paste(_placed(dice, _glyph(dice.choose(FONTS), LETTERS[label]), side))
    mask = np.asarray(where, np.float32)[..., None] / np.float32(255)
    if dice.chance(0.3):
        # A shadow, or an edge in relief.
        shift = (1 + dice.integer(max(1, side // 40)), 1 + dice.integer(max(1, side // 40)))
        image = image * (1 - np.float32(0.6) * np.roll(mask, shift, axis=(0, 1)))
    image = image + (ink - image) * mask
    canvas = Image.fromarray((np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8))
    if dice.chance(0.2):
        _cross_out(dice, canvas)
    if dice.chance(0.5):
        coarse = max(8, int(side * dice.uniform(0.2, 0.6)))
        small = canvas.resize((coarse, coarse), Image.Resampling.BILINEAR)
        canvas = small.resize((side, side), Image.Resampling.BICUBIC)
    return finish(dice, np.asarray(canvas, np.float32) / np.float32(255), image_size)


def _background(dice: Dice, side: int, ink: Floats) -> Floats:
    """Paint a background that differs from the letter in brightness by 0.3 or so."""
    plain = backdrop(dice, side, unlike=(float(ink[0]), float(ink[1]), float(ink[2])))
    if dice.chance(0.3):
        pattern = texture(dice, dice.choose(tuple(TEXTURES)), side)
        plain = plain + np.float32(dice.uniform(0.1, 0.4)) * (pattern - pattern.mean())
    return plain


def _placed(dice: Dice, glyph: Image.Image, side: int) -> Image.Image:
    """Turn, shear and tilt a glyph, and place it in a picture of `side` pixels."""
    height = dice.uniform(0.45, 0.85)
    width = height * min(1.1, glyph.width / glyph.height) * dice.uniform(0.8, 1.15)
    turn, shear = math.radians(dice.uniform(-15.0, 15.0)), dice.uniform(-0.2, 0.2)
    c, s = math.cos(turn), math.sin(turn)
    corners: list[Point] = []
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        a = x * width / 2 + shear * y * height / 2 + dice.uniform(-0.05, 0.05)
        b = y * height / 2 + dice.uniform(-0.05, 0.05)
        corners.append((c * a - s * b, s * a + c * b))
    reach = [max(abs(corner[k]) for corner in corners) for k in (0, 1)]
    scale = min(1.0, *(0.48 / r for r in reach))
    at = [0.5 + dice.uniform(-1, 1) * max(0.0, 0.48 - scale * r) for r in reach]
    target = [(side * (at[0] + scale * a), side * (at[1] + scale * b)) for a, b in corners]
    w, h = glyph.size
    source: list[Point] = [(0, 0), (w, 0), (w, h), (0, h)]
    return glyph.transform(
        (side, side),
        Image.Transform.PERSPECTIVE,
        _perspective(target, source),
        Image.Resampling.BILINEAR,
    )


def _perspective(target: list[Point], source: list[Point]) -> list[float]:
    """Solve for the eight numbers that map four points of the target to those of the source."""
    rows: list[tuple[float, ...]] = []
    values: list[float] = []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows.append((x, y, 1, 0, 0, 0, -u * x, -u * y))
        rows.append((0, 0, 0, x, y, 1, -v * x, -v * y))
        values += [u, v]
    result: list[float] = np.linalg.solve(np.array(rows), np.array(values)).tolist()
    return result


def _cross_out(dice: Dice, canvas: Image.Image) -> None:
    """Draw one thin line across the picture."""
    side = canvas.width
    start, end = (0, int(side * dice.uniform())), (side, int(side * dice.uniform()))
    if dice.chance(0.5):
        start, end = start[::-1], end[::-1]
    colour = (dice.integer(256), dice.integer(256), dice.integer(256))
    ImageDraw.Draw(canvas).line(
        (*start, *end), colour, max(1, int(side * dice.uniform(0.01, 0.03)))
    )
