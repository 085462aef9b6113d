"""A small ray caster for boxes, ellipsoids and cylinders, with Lambert shading and highlights.

World coordinates are right-handed with z upwards. Each solid is cast as a unit cube, ball or
cylinder in its own coordinates, for the pixels of its bounding rectangle only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.generated.canvas import Floats

Vector: TypeAlias = npt.NDArray[np.float64]
Triple: TypeAlias = tuple[float, float, float]

BOX, BALL, ROD = "box", "ball", "rod"
FAR = np.float32(1e6)
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


@dataclass(frozen=True)
class Solid:
    """A box, ball or rod (a cylinder along its third axis).

    Attributes
    ----------
    axes
        `[3, 3]`: columns are the solid's axes in the world, of length one.
    half
        Half its size along each axis.
    colour
        Red, green and blue in [0, 1].
    gloss
        0 is matt, 1 shines like metal.
    """

    shape: str
    centre: Vector
    axes: Vector
    half: Vector
    colour: Triple
    gloss: float = 0.0

    def into(self, vector: Vector) -> Vector:
        """Express a direction of the world in the coordinates in which the solid has size one."""
        result: Vector = (self.axes.T @ vector) / self.half
        return result


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks from `azimuth` and `elevation` (radians) at `target`.

    Attributes
    ----------
    distance
        From the target to the pinhole.
    spread
        Half the picture's side at distance one.
    side
        Pixels a side.
    """

    azimuth: float
    elevation: float
    distance: float
    spread: float
    side: int
    target: Triple = (0.0, 0.0, 0.0)

    @cached_property
    def axes(self) -> Vector:
        """Right, up and forward: the rows of `[3, 3]`."""
        ca, sa = math.cos(self.azimuth), math.sin(self.azimuth)
        ce, se = math.cos(self.elevation), math.sin(self.elevation)
        return np.array([(-sa, ca, 0.0), (-se * ca, -se * sa, ce), (-ce * ca, -ce * sa, -se)])

    @cached_property
    def origin(self) -> Vector:
        """Where the pinhole is."""
        result: Vector = np.asarray(self.target) - self.distance * self.axes[2]
        return result

    @cached_property
    def steps(self) -> Floats:
        """Offsets of the pixels' centres from the middle, at distance one: `[side]`."""
        middle = (np.arange(self.side, dtype=np.float32) + np.float32(0.5)) * np.float32(2)
        steps: Floats = (middle / np.float32(self.side) - np.float32(1)) * np.float32(self.spread)
        return steps

    def project(self, points: Vector) -> Vector:
        """Return where points `[..., 3]` appear: column and row in [-1, 1], and depth."""
        seen = (points - self.origin) @ self.axes.T
        scale = 1.0 / (self.spread * seen[..., 2])
        return np.stack([seen[..., 0] * scale, -seen[..., 1] * scale, seen[..., 2]], axis=-1)


@dataclass(frozen=True)
class Frame:
    """What the camera sees, each `[side, side]`.

    Attributes
    ----------
    index
        Number of the solid in a pixel, from 1; 0 where there is none.
    light
        Cosine between the surface and the light, at least 0.
    shine
        Strength of the highlight, in [0, 1].
    """

    index: npt.NDArray[np.uint8]
    light: Floats
    shine: Floats


def cast(solids: Sequence[Solid], camera: Camera, light: Vector) -> Frame:
    """Cast rays at solids that all lie in front of the camera.

    Parameters
    ----------
    light
        Direction from the scene to the light, of length one.
    """
    side = camera.side
    depth = np.full((side, side), FAR, np.float32)
    index = np.zeros((side, side), np.uint8)
    lit = np.zeros((side, side), np.float32)
    shine = np.zeros((side, side), np.float32)
    centres = np.stack([s.centre for s in solids])
    reach = np.stack([(s.axes * s.half) @ CORNERS.T for s in solids])
    seen = camera.project(centres[:, None] + reach.transpose(0, 2, 1))[..., :2]
    low = np.clip(np.floor((seen.min(axis=1) + 1) * side / 2), 0, side).astype(int).tolist()
    high = np.clip(np.ceil((seen.max(axis=1) + 1) * side / 2), 0, side).astype(int).tolist()
    half_way = light - camera.axes[2]
    half_way /= np.linalg.norm(half_way)
    for number, (solid, (c0, r0), (c1, r1)) in enumerate(zip(solids, low, high, strict=True), 1):
        if c0 >= c1 or r0 >= r1:
            continue
        window = (slice(r0, r1), slice(c0, c1))
        near, cosine, gleam = _CASTERS[solid.shape](
            solid, camera, camera.steps[c0:c1], -camera.steps[r0:r1, None], light, half_way
        )
        visible = near < depth[window]
        np.copyto(depth[window], near, where=visible)
        np.copyto(index[window], number, where=visible, casting="unsafe")
        np.copyto(lit[window], cosine, where=visible)
        np.copyto(shine[window], gleam if solid.gloss else 0.0, where=visible)
    return Frame(index, lit, shine)


Hit: TypeAlias = tuple[Floats, Floats | float, Floats | float]


def _rays(solid: Solid, camera: Camera, u: Floats, v: Floats) -> tuple[list[float], list[Floats]]:
    """Return the rays' origin and directions in the solid's coordinates."""
    origin: list[float] = solid.into(camera.origin - solid.centre).tolist()
    right, up, forward = ((solid.axes.T @ a / solid.half).tolist() for a in camera.axes)
    return origin, [u * right[k] + (v * up[k] + forward[k]) for k in range(3)]


def _box(
    solid: Solid, camera: Camera, u: Floats, v: Floats, light: Vector, half_way: Vector
) -> Hit:
    origin, rays = _rays(solid, camera, u, v)
    enters, leaves = [], []
    for o, d in zip(origin, rays, strict=True):
        inverse = np.reciprocal(d)
        width = np.abs(inverse)
        middle = inverse * -o
        enters.append(middle - width)
        leaves.append(middle + width)
    near = np.maximum(np.maximum(enters[0], enters[1]), enters[2])
    far = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
    facing = np.sign(origin)
    cosines = np.maximum(facing * (solid.axes.T @ light), 0.0).tolist()
    gleams = (np.maximum(facing * (solid.axes.T @ half_way), 0.0) ** 12).tolist()
    first, second = near == enters[0], near == enters[1]
    cosine = np.where(first, cosines[0], np.where(second, cosines[1], cosines[2]))
    gleam = np.where(first, gleams[0], np.where(second, gleams[1], gleams[2]))
    return np.where(near < far, near, FAR), cosine.astype(np.float32), gleam.astype(np.float32)


def _ball(
    solid: Solid, camera: Camera, u: Floats, v: Floats, light: Vector, half_way: Vector
) -> Hit:
    origin, rays = _rays(solid, camera, u, v)
    (ox, oy, oz), (dx, dy, dz) = origin, rays
    a = dx * dx + dy * dy + dz * dz
    b = dx * ox + dy * oy + dz * oz
    root = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    near = (-b - np.sqrt(np.maximum(root, 0))) / a
    point = [o + near * d for o, d in zip(origin, rays, strict=True)]
    hit = np.where(root > 0, near, FAR)
    return hit, *_shade(solid, point, light, half_way)


def _rod(
    solid: Solid, camera: Camera, u: Floats, v: Floats, light: Vector, half_way: Vector
) -> Hit:
    origin, rays = _rays(solid, camera, u, v)
    (ox, oy, oz), (dx, dy, dz) = origin, rays
    a = dx * dx + dy * dy
    b = dx * ox + dy * oy
    root = b * b - a * (ox * ox + oy * oy - 1.0)
    reach = np.sqrt(np.maximum(root, 0))
    wall = (-b - reach) / a
    inverse = np.reciprocal(dz)
    middle, width = inverse * -oz, np.abs(inverse)
    cap = middle - width
    near = np.maximum(wall, cap)
    far = np.minimum((reach - b) / a, middle + width)
    point = [ox + near * dx, oy + near * dy, np.float32(0)]
    cosine, gleam = _shade(solid, point, light, half_way)
    facing = math.copysign(1.0, oz)
    on_cap = cap > wall
    flat_light = max(0.0, facing * float(solid.axes[:, 2] @ light))
    flat_gleam = max(0.0, facing * float(solid.axes[:, 2] @ half_way)) ** 12
    cosine = np.where(on_cap, np.float32(flat_light), cosine)
    gleam = np.where(on_cap, np.float32(flat_gleam), gleam)
    return np.where((root > 0) & (near < far), near, FAR), cosine, gleam


def _shade(
    solid: Solid, point: list[Floats], light: Vector, half_way: Vector
) -> tuple[Floats, Floats | float]:
    """Shade points whose normal is, in the solid's coordinates, the point itself."""
    length = sum((p * p) * (1 / h**2) for p, h in zip(point, solid.half.tolist(), strict=True))
    scale = np.float32(1) / np.sqrt(length)
    lx, ly, lz = solid.into(light).tolist()
    cosine = np.maximum((point[0] * lx + point[1] * ly + point[2] * lz) * scale, 0)
    if not solid.gloss:
        return cosine, 0.0
    hx, hy, hz = solid.into(half_way).tolist()
    gleam = np.maximum((point[0] * hx + point[1] * hy + point[2] * hz) * scale, 0)
    gleam = gleam * gleam
    gleam = gleam * gleam
    return cosine, gleam * gleam * gleam


_CASTERS = {BOX: _box, BALL: _ball, ROD: _rod}


def colour_in(frame: Frame, solids: Sequence[Solid], background: Floats, ambient: float) -> Floats:
    """Put the solids' colours before a background `[side, side, 3]`, both in [0, 1]."""
    colours = np.zeros((len(solids) + 1, 3), np.float32)
    gloss = np.zeros(len(solids) + 1, np.float32)
    for number, solid in enumerate(solids, 1):
        colours[number], gloss[number] = solid.colour, solid.gloss
    seen = np.flatnonzero(frame.index)
    index = frame.index.ravel()[seen]
    strength = frame.light.ravel()[seen] * np.float32(1 - ambient) + np.float32(ambient)
    shine = frame.shine.ravel()[seen] * gloss[index]
    image = background.reshape(-1, 3).copy()
    image[seen] = colours[index] * strength[:, None] + shine[:, None]
    result: Floats = image.reshape(background.shape)
    return result


def unit(vector: Sequence[float] | Vector) -> Vector:
    """Scale a vector to length one."""
    values = np.asarray(vector, np.float64)
    result: Vector = values / math.sqrt(float(values @ values))
    return result


def along(direction: Vector) -> Vector:
    """Return axes `[3, 3]` whose third column is `direction`, a vector of length one."""
    other = np.array((1.0, 0.0, 0.0) if abs(direction[0]) < 0.9 else (0.0, 1.0, 0.0))
    first = unit(np.cross(other, direction))
    return np.stack([first, np.cross(direction, first), direction], axis=1)


def turned(angle: float) -> Vector:
    """Return axes `[3, 3]` turned by `angle` radians about the vertical."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([(c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)])


def render_side(image_size: int) -> int:
    """Pixels a side that a picture is rendered at, before it is shrunk for smooth edges."""
    return max(image_size, min(2 * image_size, 168))
