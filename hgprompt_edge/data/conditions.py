"""Images as another light, camera or place would make them: corruptions of decoded pixels.

Two families that share no parameters. `training_corruption` draws a strength for each image from a
range, for condition prompts to be trained on. `corrupt` has three fixed severities and makes them
in another way, so that what is measured with it was never seen in training; `rotation` and `fog`
exist there alone. A small set of our own, not ImageNet-C.

| condition | training | study, severity 1, 2, 3 |
| --- | --- | --- |
| dark | gain and contrast in linear light | gain and gamma on the stored values |
| blur | Gaussian kernel | disc, as of a lens out of focus |
| noise | Gaussian, one deviation a image | Poisson counts, as of a short exposure |
| cast | gain of each channel in linear light | stored values filtered by one of three fixed tints |
| jpeg | colour at full resolution | colour at half resolution, other qualities |
| lowres | bilinear reduction and enlargement | area reduction, bicubic enlargement |
| rotation | - | about the centre, edges mirrored |
| fog | - | blended with pale grey, thicker in places |

Lengths are in pixels of a 64-pixel image and grow with its side. The border of a letterbox stays as
it is, since a device adds it to what its camera saw; the picture within is mirrored at its edges.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from hgprompt_edge.errors import ParameterError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Colour = tuple[int, int, int]
Operation = Callable[[Pixels, np.random.Generator], Pixels | Floats]
"""One image `[S, S, 3]` to its corrupted version; floats are in [0, 255]."""

CONDITIONS = ("dark", "blur", "noise", "cast", "jpeg", "lowres")
SHIFTS = (*CONDITIONS, "rotation", "fog")
SEVERITIES = (1, 2, 3)

STUDY: dict[str, tuple[tuple[float, ...], ...]] = {
    "dark": ((0.7, 1.2), (0.5, 1.5), (0.35, 1.9)),
    "blur": ((0.9,), (1.6,), (2.4,)),
    "noise": ((60.0,), (20.0,), (8.0,)),
    "cast": ((0.4,), (0.65,), (0.9,)),
    "jpeg": ((19,), (11,), (6,)),
    "lowres": ((0.55,), (0.38,), (0.26,)),
    "rotation": ((10.0,), (20.0,), (40.0,)),
    "fog": ((0.3,), (0.5,), (0.7,)),
}
"""Gain and gamma; radius of the disc; photons of white; share of the tint; quality; scale;
degrees; share of the fog."""
TRAINING: dict[str, tuple[float, float]] = {
    "dark": (0.015, 0.6),
    "blur": (0.4, 2.0),
    "noise": (6.0, 90.0),
    "cast": (0.4, 4.0),
    "jpeg": (3.0, 30.0),
    "lowres": (0.2, 0.7),
}
"""Gain; standard deviation in pixels; standard deviation in grey levels; distance of the channels'
gains as an exponent of two; quality; scale. Drawn evenly in the logarithm."""
TINTS = ((255, 150, 40), (60, 200, 120), (120, 90, 255))
"""Of a sodium lamp, of foliage, of a screen; the seed picks one for all images of a call."""
FOG = np.array([214, 220, 226], np.float32)


def corrupt(
    pixels: Pixels, name: str, severity: int, seed: int = 0, fill: Colour | None = None
) -> Pixels:
    """Pixels `[n, S, S, 3]` under a shift of the study, one of `SHIFTS`, at severity 1 to 3.

    The same seed gives the same pixels; an image's do not depend on those behind it. The sign of
    the rotation and the tint are the seed's and alike for all images, as of one camera. `fill` is
    the border's colour where images are letterboxed.
    """
    if name not in SHIFTS:
        raise ValueError(f"The 'name' must be one of {', '.join(SHIFTS)}. Got '{name}' instead.")
    if severity not in SEVERITIES:
        raise ValueError(f"The 'severity' must be 1, 2 or 3. Got {severity} instead.")
    values = STUDY[name][severity - 1]
    if name == "rotation":
        values = (values[0] * (-1) ** seed,)
    elif name == "cast":
        values = (*values, *TINTS[seed % len(TINTS)])
    rng = np.random.default_rng([seed, SHIFTS.index(name), severity])
    return _each(pixels, partial(_STUDY_OPERATIONS[name], values=values), rng, fill)


def training_corruption(
    pixels: Pixels, name: str, rng: np.random.Generator, fill: Colour | None = None
) -> Pixels:
    """Pixels `[n, S, S, 3]` under one of `CONDITIONS`, each image at a strength of its own.

    `fill` is the border's colour where images are letterboxed.
    """
    if name not in CONDITIONS:
        known = ", ".join(CONDITIONS)
        raise ValueError(f"The 'name' must be one of {known}. Got '{name}' instead.")
    low, high = np.log(TRAINING[name])

    def operation(image: Pixels, rng: np.random.Generator) -> Pixels | Floats:
        return _TRAINING_OPERATIONS[name](image, rng, float(np.exp(rng.uniform(low, high))))

    return _each(pixels, operation, rng, fill)


def _each(
    pixels: Pixels, operation: Operation, rng: np.random.Generator, fill: Colour | None
) -> Pixels:
    result: Pixels = pixels.copy()
    for image, place in zip(pixels, result, strict=True):
        seen, around = _inside(image, fill)
        changed = operation(np.pad(image[seen], around, mode="symmetric"), rng)[seen]
        place[seen] = np.clip(np.rint(changed), 0, 255) if changed.dtype.kind == "f" else changed
    return result


def _inside(
    image: Pixels, fill: Colour | None
) -> tuple[tuple[slice, slice], tuple[tuple[int, int], ...]]:
    """Rows and columns of the picture in a letterbox, and the widths of the border around it.

    The border is centred, on two opposite sides. A picture whose own rim has that colour is taken
    for smaller than it is, which leaves that rim as it is.
    """
    side, widths = len(image), [(0, 0), (0, 0)]
    if fill is not None:
        same = (image == np.array(fill, np.uint8)).all(-1)
        for axis, lines in enumerate((same.all(1), same.all(0))):
            if lines.all():  # nothing but the border's colour: the picture has it, too
                break
            first, last = int(lines.argmin()), int(lines[::-1].argmin())
            before = min(first, last)
            widths[axis] = (before, min(last, before + 1))
    rows, columns = (slice(before, side - after) for before, after in widths)
    return (rows, columns), (*widths, (0, 0))


def _darken(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Floats:
    gain, gamma = values
    dark: Floats = np.float32(255 * gain) * (image.astype(np.float32) / 255) ** np.float32(gamma)
    return dark


def _defocus(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Floats:
    radius = values[0] * len(image) / 64
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Pixels that the rim cuts count in part, so that radii between whole numbers differ.
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return _filter(image.astype(np.float32), kernel / kernel.sum())


def _filter(image: Floats, kernel: Floats) -> Floats:
    """Filter `[S, S, 3]` with a small odd kernel `[k, k]`, edges mirrored."""
    reach, side = len(kernel) // 2, len(image)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    result = np.zeros_like(image)
    for (row, column), weight in np.ndenumerate(kernel):
        result += weight * padded[row : row + side, column : column + side]
    return result


def _count_photons(image: Pixels, rng: np.random.Generator, values: tuple[float, ...]) -> Floats:
    white = values[0]
    return (rng.poisson(image / 255 * white) * (255 / white)).astype(np.float32)


def _tint(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Floats:
    share, tint = values[0], np.array(values[1:], np.float32)
    tinted: Floats = image.astype(np.float32) * (
        np.float32(1 - share) + np.float32(share / 255) * tint
    )
    return tinted


def _halve_colour(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Pixels:
    return _jpeg(image, int(values[0]), subsampling=2)


def _reduce(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Pixels:
    return _resample(image, values[0], Image.Resampling.BOX, Image.Resampling.BICUBIC)


def _rotate(image: Pixels, _: np.random.Generator, values: tuple[float, ...]) -> Pixels:
    side = len(image)
    padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="symmetric")
    turned = Image.fromarray(padded).rotate(values[0], Image.Resampling.BICUBIC)
    return np.asarray(turned, np.uint8)[side : 2 * side, side : 2 * side]


def _fog(image: Pixels, rng: np.random.Generator, values: tuple[float, ...]) -> Floats:
    """Blend with grey; the share varies by a quarter over the image, smoothly."""
    side = len(image)
    coarse = Image.fromarray(rng.uniform(-1, 1, (4, 4)).astype(np.float32))
    thickness = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    share = np.clip(values[0] * (1 + 0.25 * thickness), 0, 1)[..., None]
    foggy: Floats = (1 - share) * image.astype(np.float32) + share * FOG
    return foggy


def _underexpose(image: Pixels, rng: np.random.Generator, strength: float) -> Floats:
    """Less light, through a tone curve that may be steeper."""
    return _encode(np.float32(strength) * _linear(image) ** np.float32(rng.uniform(1, 1.6)))


def _smooth(image: Pixels, _: np.random.Generator, strength: float) -> Pixels:
    blur = ImageFilter.GaussianBlur(strength * len(image) / 64)
    return np.asarray(Image.fromarray(image).filter(blur), np.uint8)


def _add_noise(image: Pixels, rng: np.random.Generator, strength: float) -> Floats:
    noise = rng.standard_normal(image.shape, np.float32)
    noisy: Floats = image.astype(np.float32) + np.float32(strength) * noise
    return noisy


def _weigh_channels(image: Pixels, rng: np.random.Generator, strength: float) -> Floats:
    """Light of a colour: exposed for what is left of it, or for white light, or in between."""
    exponents = rng.uniform(-1, 1, 3)
    exponents *= strength / np.ptp(exponents)
    exposed = exponents - exponents.mean()
    gains = np.exp2(exposed - rng.uniform() * exposed.max())
    return _encode(_linear(image) * gains.astype(np.float32))


def _compress(image: Pixels, _: np.random.Generator, strength: float) -> Pixels:
    return _jpeg(image, round(strength), subsampling=0)


def _shrink(image: Pixels, _: np.random.Generator, strength: float) -> Pixels:
    return _resample(image, strength, Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)


def _linear(image: Pixels) -> Floats:
    """Turn stored values (sRGB, close enough) into light in [0, 1]."""
    light: Floats = (image.astype(np.float32) / 255) ** np.float32(2.2)
    return light


def _encode(light: Floats) -> Floats:
    stored: Floats = 255 * np.clip(light, 0, 1) ** np.float32(1 / 2.2)
    return stored


def _jpeg(image: Pixels, quality: int, subsampling: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer), np.uint8)


def _resample(image: Pixels, scale: float, down: Image.Resampling, up: Image.Resampling) -> Pixels:
    side = len(image)
    small = max(1, round(scale * side))
    reduced = Image.fromarray(image).resize((small, small), down)
    return np.asarray(reduced.resize((side, side), up), np.uint8)


_STUDY_OPERATIONS: dict[str, Callable[..., Pixels | Floats]] = {
    "dark": _darken,
    "blur": _defocus,
    "noise": _count_photons,
    "cast": _tint,
    "jpeg": _halve_colour,
    "lowres": _reduce,
    "rotation": _rotate,
    "fog": _fog,
}
_TRAINING_OPERATIONS: dict[str, Callable[[Pixels, np.random.Generator, float], Pixels | Floats]] = {
    "dark": _underexpose,
    "blur": _smooth,
    "noise": _add_noise,
    "cast": _weigh_channels,
    "jpeg": _compress,
    "lowres": _shrink,
}


def check_names(names: Sequence[str]) -> None:
    """Refuse conditions that there are no corruptions for, and an empty list."""
    unknown = [name for name in names if name not in CONDITIONS]
    if unknown or not names:
        what = f"unknown condition '{unknown[0]}'" if unknown else "names no condition"
        raise ParameterError("conditions", None, f"{what}; choose from {', '.join(CONDITIONS)}")
