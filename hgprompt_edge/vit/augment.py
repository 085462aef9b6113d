"""Other views of training images: crops, mirror images, colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def random_crops(
    images: Tensor, min_area: float, flips: bool, generator: torch.Generator
) -> Tensor:
    """Crop images `[n, 3, S, S]` at random, back to `S`; with `flips` mirror half of them."""
    count = len(images)
    side = torch.empty(count).uniform_(min_area, 1, generator=generator).sqrt()
    shift = (torch.rand(2, count, generator=generator) * 2 - 1) * (1 - side)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = side * mirror if flips else side
    theta[:, 1, 1] = side
    theta[:, :, 2] = shift.T
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def colour_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Vary brightness, contrast and saturation of images `[n, 3, S, S]` in [0, 1]."""

    def factor() -> Tensor:
        return 1 + (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1) * strength

    images = images * factor()
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * factor() + mean
    grey = images.mean(1, keepdim=True)
    return ((images - grey) * factor() + grey).clamp(0, 1)


def augmented(
    pixels: npt.NDArray[np.uint8],
    *,
    min_area: float,
    jitter: float,
    flips: bool,
    generator: torch.Generator,
) -> npt.NDArray[np.uint8]:
    """Another view of each of the images `[n, S, S, 3]`: cropped, mirrored, in other colours."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = random_crops(images, min_area, flips, generator)
    images = colour_jitter(images, jitter, generator)
    views: npt.NDArray[np.uint8] = (
        (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    )
    return views
