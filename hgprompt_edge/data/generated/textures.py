"""Procedural textures of random scale, angle, colours, contrast and light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hgprompt_edge.data.generated.canvas import Dice, Floats, Pixels, finish, smooth_noise


@dataclass(frozen=True)
class _Plane:
    """Turned, scaled and slightly warped coordinates `x, y [side, side]`, one unit a period."""

    dice: Dice
    x: Floats
    y: Floats
    periods: float

    @property
    def side(self) -> int:
        return len(self.x)


def _plane(dice: Dice, side: int) -> _Plane:
    periods = 4.0 * 3.0 ** dice.uniform()
    turn = dice.uniform(0.0, math.pi)
    c, s = math.cos(turn) * periods, math.sin(turn) * periods
    stretch = dice.uniform(0.8, 1.25)
    steps = np.arange(side, dtype=np.float32) / np.float32(side)
    warp = smooth_noise(dice, side, 3, 3) * np.float32(dice.uniform(0.0, 0.35))
    u, v = steps, steps[:, None]
    x = u * c + v * s + warp[..., 0] + dice.uniform(50.0, 60.0)
    y = (v * c - u * s) * stretch + warp[..., 1] + dice.uniform(50.0, 60.0)
    return _Plane(dice, x, y, periods)


def _step(values: Floats, softness: float) -> Floats:
    """Rise from 0 to 1 about 0, over a width of about `softness`."""
    result: Floats = np.clip(values * np.float32(1 / softness) + np.float32(0.5), 0, 1)
    return result


def _wave(values: Floats) -> Floats:
    """Sine of a period of one."""
    result: Floats = np.sin(values * np.float32(math.tau))
    return result


def _fraction(values: Floats) -> Floats:
    return values - np.floor(values)


def _edge(values: Floats) -> Floats:
    """Distance to the nearest integer, at most 0.5."""
    return np.abs(values - np.rint(values))


def _random_per_cell(dice: Dice, i: Floats, j: Floats) -> Floats:
    """One number in [0, 1] for each pair of integers."""
    table = dice.rng.random((32, 32), np.float32)
    result: Floats = table[i.astype(np.intp) % 32, j.astype(np.intp) % 32]
    return result


def _stripes(plane: _Plane) -> Floats:
    softness = plane.dice.choose((0.3, 1.0, 2.0))
    return _step(_wave(plane.x) + plane.dice.uniform(-0.4, 0.4), softness)


def _checks(plane: _Plane) -> Floats:
    return _step(_wave(plane.x * 0.7) * _wave(plane.y * 0.7), plane.dice.uniform(0.2, 0.5))


def _dots(plane: _Plane) -> Floats:
    radius = plane.dice.uniform(0.2, 0.38)
    x = plane.x + (0.5 * (np.floor(plane.y) % 2) if plane.dice.chance(0.5) else 0.0)
    away = np.hypot(_fraction(x) - np.float32(0.5), _fraction(plane.y) - np.float32(0.5))
    return _step(radius - away, 0.12)


def _bricks(plane: _Plane) -> Floats:
    row = np.floor(plane.y)
    x = plane.x * 0.5 + 0.5 * (row % 2)
    gap = np.minimum(2 * _edge(x), _edge(plane.y))
    shade = 0.65 + 0.35 * _random_per_cell(plane.dice, row, np.floor(x))
    return _step(gap - plane.dice.uniform(0.07, 0.12), 0.06) * shade


def _nearest_two(plane: _Plane) -> tuple[Floats, Floats, Floats]:
    """Distances to the two nearest points of a jittered grid, and a number for each cell."""
    x, y = plane.x * np.float32(0.8), plane.y * np.float32(0.8)
    offsets = plane.dice.rng.random((3, 32, 32), np.float32)
    i, j = np.floor(x), np.floor(y)
    fx, fy = x - i, y - j
    rows, columns = i.astype(np.intp), j.astype(np.intp)
    first = np.full(x.shape, 9, np.float32)
    second, shade = first.copy(), first.copy()
    for a in (-1, 0, 1):
        for b in (-1, 0, 1):
            place = ((rows + a) % 32) * 32 + (columns + b) % 32
            dx = fx - a - offsets[0].ravel()[place]
            dy = fy - b - offsets[1].ravel()[place]
            away = dx * dx + dy * dy
            nearer = away < first
            second = np.minimum(np.maximum(first, away), second)
            np.copyto(first, away, where=nearer)
            np.copyto(shade, offsets[2].ravel()[place], where=nearer)
    return np.sqrt(first), np.sqrt(second), shade


def _cells(plane: _Plane) -> Floats:
    first, second, shade = _nearest_two(plane)
    return _step(second - first - 0.08, 0.08) * (0.3 + 0.7 * shade)


def _cracks(plane: _Plane) -> Floats:
    first, second, _ = _nearest_two(plane)
    ragged = smooth_noise(plane.dice, plane.side, 24)[..., 0] * np.float32(0.07)
    return _step(second - first + ragged - plane.dice.uniform(0.03, 0.07), 0.05)


def _weave(plane: _Plane) -> Floats:
    width = plane.dice.uniform(0.36, 0.47)
    across, upright = _edge(plane.y), _edge(plane.x)
    # Threads run above one another in turn.
    over = (np.rint(plane.x) + np.rint(plane.y)) % 2 == 0
    flat = np.maximum(width - across, 0) * _step(width - across, 0.05) * (1 - upright)
    tall = np.maximum(width - upright, 0) * _step(width - upright, 0.05) * (1 - across)
    thread = np.where(over, np.where(across < width, flat, tall * 0.8), tall)
    thread = np.where(~over & (upright >= width), flat * 0.8, thread)
    result: Floats = np.minimum(thread * np.float32(2.4), 1)
    return result


def _scratches(plane: _Plane) -> Floats:
    dice, side = plane.dice, plane.side
    canvas = Image.new("L", (side, side), 30)
    draw = ImageDraw.Draw(canvas)
    main, spread = dice.uniform(0.0, math.pi), dice.choose((0.2, 0.5))
    for _ in range(15 + dice.integer(35)):
        turn = main + dice.uniform(-spread, spread)
        reach = side * dice.uniform(0.1, 0.4)
        x, y = side * dice.uniform(), side * dice.uniform()
        dx, dy = reach * math.cos(turn), reach * math.sin(turn)
        draw.line((x - dx, y - dy, x + dx, y + dy), 110 + dice.integer(146), 1 + dice.integer(2))
    grey: Floats = np.asarray(canvas, np.float32) / np.float32(255)
    return grey


def _marble(plane: _Plane) -> Floats:
    dice, side = plane.dice, plane.side
    swirl = smooth_noise(dice, side, 4) + 0.5 * smooth_noise(dice, side, 9)
    swirl = swirl + 0.25 * smooth_noise(dice, side, 20)
    veins = np.abs(_wave(plane.x * 0.25 + swirl[..., 0] * np.float32(1.1)))
    result: Floats = veins ** np.float32(dice.uniform(0.4, 0.8))
    return result


def _ripples(plane: _Plane) -> Floats:
    dice = plane.dice
    steps = np.arange(plane.side, dtype=np.float32) / np.float32(plane.side)
    dx, dy = steps - dice.uniform(0.2, 0.8), steps[:, None] - dice.uniform(0.2, 0.8)
    away = np.sqrt(dx * dx + dy * dy) * np.float32(plane.periods)
    return _step(_wave(away), dice.choose((0.4, 1.5, 2.0)))


def _grain(plane: _Plane) -> Floats:
    cells = int(plane.side / 5 * plane.dice.uniform(0.5, 1.0))
    return _step(smooth_noise(plane.dice, plane.side, cells)[..., 0], plane.dice.uniform(1.0, 2.5))


def _mesh(plane: _Plane) -> Floats:
    gap = np.minimum(_edge(plane.x), _edge(plane.y))
    return _step(plane.dice.uniform(0.06, 0.13) - gap, 0.06)


TEXTURES: dict[str, Callable[[_Plane], Floats]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "cells": _cells,
    "weave": _weave,
    "scratches": _scratches,
    "marble": _marble,
    "ripples": _ripples,
    "grain": _grain,
    "mesh": _mesh,
    "cracks": _cracks,
}


def texture(dice: Dice, name: str, side: int) -> Floats:
    """Paint a texture in two random colours, `[side, side, 3]` in [0, 1]."""
    plane = _plane(dice, side)
    values = TEXTURES[name](plane)[..., None]
    dark, light = _two_colours(dice)
    if dice.chance(0.5):
        dark, light = light, dark
    result: Floats = dark + (light - dark) * values
    return result


def _two_colours(dice: Dice) -> tuple[Floats, Floats]:
    """Take a darker and a lighter colour, 0.2 to 0.6 apart in brightness."""
    tint = dice.choose((0.0, 0.2, 0.4))
    first, second = (
        np.array([dice.uniform(-tint, tint) for _ in range(3)], np.float32) for _ in range(2)
    )
    contrast = dice.uniform(0.2, 0.6)
    level = dice.uniform(0.1, 0.9 - contrast)
    first += level - float(first.mean())
    second += level + contrast - float(second.mean())
    return np.clip(first, 0, 1), np.clip(second, 0, 1)


def paint_texture(rng: np.random.Generator, image_size: int, label: int) -> Pixels:
    """Paint texture `label` of `TEXTURES`, brighter on one side."""
    dice = Dice(rng)
    side = max(image_size, min(2 * image_size, 144))
    image = texture(dice, tuple(TEXTURES)[label], side)
    slope, turn = dice.uniform(0.0, 0.7), dice.uniform(0.0, math.tau)
    steps = np.arange(side, dtype=np.float32) / np.float32(side) - np.float32(0.5)
    light = 1 + slope * (steps * math.cos(turn) + steps[:, None] * math.sin(turn))
    return finish(dice, image * light[..., None].astype(np.float32), image_size)
