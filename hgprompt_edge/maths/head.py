"""The linear classifier on a model's features: one type for server, device and their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
"""Float64 where a head is fitted, float32 in files and on devices."""
Arrays = Mapping[str, npt.NDArray[np.generic]]
HEAD_TENSORS = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Head:
    """A linear classifier; where it is calibrated, the softmax of its logits is probabilities.

    Attributes
    ----------
    weight
        `[K, D]`: one row for each class.
    bias
        `[K]`.
    name
        What it is, such as `LDA 0.10` or `logistic 0.01`; empty where it was not chosen.
    """

    weight: Floats
    bias: Floats
    name: str = ""

    def logits(self, features: Floats) -> Floats:
        """Logits `[n, K]` of features `[n, D]`."""
        found: Floats = features @ self.weight.T + self.bias
        return found

    def following(self, features: Floats, mean: Floats) -> Head:
        """Move the bias by what takes the mean of `features [n, D]` to `mean [D]`.

        As FOA shifts activations (Niu et al., ICML 2024).
        """
        return replace(self, bias=self.bias + self.weight @ (mean - features.mean(axis=0)))

    def as_float32(self) -> Head:
        """Round to float32, as files and devices have it."""
        weight, bias = (np.ascontiguousarray(x, np.float32) for x in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)

    def tensors(self, prefix: str = "") -> dict[str, npt.NDArray[np.generic]]:
        """Return what a file holds of it, float32; `read_head` reads it back."""
        head = self.as_float32()
        parts = zip(HEAD_TENSORS, (head.weight, head.bias), strict=True)
        return {f"{prefix}{name}": array for name, array in parts}


def read_head(tensors: Arrays, prefix: str = "") -> Head:
    """Read what `Head.tensors` returned.

    Raises
    ------
    ValueError
        The parts do not fit each other.
    LookupError
        One is missing.
    """
    weight, bias = (tensors[f"{prefix}{name}"] for name in HEAD_TENSORS)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ValueError(f"'{prefix}head.weight' and '{prefix}head.bias' are {shapes}")
    return Head(weight, bias)
