"""Random crops, flips and colours of training images: drawn for a batch, applied to its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """What happens to each of `n` images.

    Drawn before the images are cut into parts, so that it does not depend on how they are cut.

    Attributes
    ----------
    crops
        Affine maps `[n, 2, 3]` from the output to the image, in coordinates from -1 to 1.
    colours
        Factors `[3, n]` of brightness, contrast and saturation.
    """

    crops: Tensor
    colours: Tensor

    @classmethod
    def draw(
        cls, count: int, min_area: float, flips: bool, strength: float, generator: torch.Generator
    ) -> Augmentation:
        """Draw for `count` images: crops of at least `min_area`, colours within `strength`."""
        crops = draw_crops(count, min_area, flips, generator)
        factors = [draw_factors(count, strength, generator) for _ in range(3)]
        return cls(crops, torch.stack(factors))

    def __call__(self, images: Tensor, part: slice = slice(None)) -> Tensor:
        """Change the images `[m, 3, S, S]` in [0, 1] of a part of the batch."""
        return change_colours(crop(images, self.crops[part]), self.colours[:, part])


def draw_crops(count: int, min_area: float, flips: bool, generator: torch.Generator) -> Tensor:
    """Affine maps `[n, 2, 3]` of crops with an area of at least `min_area`, half of them mirrored.

    `flips`: whether any are.
    """
    side = torch.empty(count).uniform_(min_area, 1, generator=generator).sqrt()
    shift = (torch.rand(2, count, generator=generator) * 2 - 1) * (1 - side)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = side * mirror if flips else side
    maps[:, 1, 1] = side
    maps[:, :, 2] = shift.T
    return maps


def draw_factors(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """Factors `[n]` between `1 - strength` and `1 + strength`."""
    return 1 + (torch.rand(count, generator=generator) * 2 - 1) * strength


def crop(images: Tensor, maps: Tensor) -> Tensor:
    """Crop images `[n, 3, S, S]` by affine maps `[n, 2, 3]`, back to `S`."""
    grid = functional.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def change_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation of images `[n, 3, S, S]` in [0, 1], by `[3, n]`."""
    brightness, contrast, saturation = factors.to(images)[:, :, None, None, None]
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast)
    grey = images.mean(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp_(0, 1)
