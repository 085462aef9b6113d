"""What all prompts of a backbone have in common to be mixed, as tensors of a file.

`key_bias`, `value_bias [L, E]`, `eps [L]` (METHOD eq. 2); with qk-norm `key_norm.weight`,
`key_norm.bias [L, d]`, `key_norm.eps [L]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.files import Array
from hgprompt_edge.maths.mixing import BankKeysValues

SHARED = ("key_bias", "value_bias", "eps", "key_norm.")
"""Tensors that all prompts of a backbone have in common."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def shared_tensors(mixer: BankKeysValues) -> dict[str, Array]:
    """Return the tensors of a mixer that all prompts of a backbone have in common."""
    tensors: dict[str, Array] = {
        "key_bias": mixer.key_bias,
        "value_bias": mixer.value_bias,
        "eps": mixer.eps,
    }
    if mixer.key_norm is not None:
        names = ("key_norm.weight", "key_norm.bias", "key_norm.eps")
        tensors |= dict(zip(names, mixer.key_norm, strict=True))
    return tensors


def read_shared(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> BankKeysValues:
    """Read and check what `shared_tensors` gave; returns a mixer without a prompt.

    Raises
    ------
    ValueError, LookupError
        A part is missing, of another dtype, not finite, or does not fit the others.
    """
    check_numbers({name: tensors[name] for name in tensors if name.startswith(SHARED)})
    mixer = mixer_without(tensors, metadata)
    if mixer.key_bias.ndim != 2:
        raise ValueError(f"'key_bias' is {mixer.key_bias.shape}")
    for what, shape, wanted in shared_shapes(mixer, len(mixer.key_bias)):
        if shape != wanted:
            raise ValueError(f"'{what}' is {shape}, not {wanted}")
    return mixer


def mixer_without(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> BankKeysValues:
    """Read what `shared_tensors` gave, unchecked, into a mixer without a prompt."""
    floats = cast("Mapping[str, Floats]", tensors)
    doubles = cast("Mapping[str, Doubles]", tensors)
    norm = None
    if "key_norm.weight" in tensors:
        norm = floats["key_norm.weight"], floats["key_norm.bias"], doubles["key_norm.eps"]
    none = np.zeros((0, 0, 0, 0), np.float32)
    return BankKeysValues(
        keys=none,
        values=none,
        gram=np.zeros((0, 0, 0, 0)),
        key_bias=floats["key_bias"],
        value_bias=floats["value_bias"],
        eps=doubles["eps"],
        heads=int(metadata["heads"]),
        width=int(metadata["width"]),
        key_norm=norm,
    )


def check_numbers(tensors: Mapping[str, Array]) -> None:
    """Refuse other dtypes than a mixer's, NaN, inf, and an epsilon below 0: `ValueError`."""
    for name, tensor in cast("Mapping[str, Floats]", tensors).items():
        dtype = np.dtype(np.float64 if name.endswith("eps") else np.float32)
        if tensor.dtype != dtype:
            raise ValueError(f"'{name}' is {tensor.dtype}, not {dtype}")
        if not np.isfinite(tensor).all():
            raise ValueError(f"'{name}' holds NaN or inf")
        if name.endswith("eps") and (tensor < 0).any():
            raise ValueError(f"'{name}' is below 0")


def shared_shapes(mixer: BankKeysValues, layers: int) -> list[tuple[str, object, object]]:
    """List what belongs to a backbone of so many layers, with what it has to be."""
    if mixer.heads < 1 or mixer.width < 1:
        raise ValueError(f"'heads' is {mixer.heads}, 'width' is {mixer.width}")
    width = mixer.key_bias.shape[-1]
    shapes: list[tuple[str, object, object]] = [
        ("key_bias", mixer.key_bias.shape, (layers, width)),
        ("value_bias", mixer.value_bias.shape, (layers, width)),
        ("eps", mixer.eps.shape, (layers,)),
        ("heads", width % mixer.heads, 0),
    ]
    if mixer.key_norm is not None:
        head = layers, width // mixer.heads
        found = tuple(array.shape for array in mixer.key_norm)
        shapes.append(("key_norm", found, (head, head, (layers,))))
    return shapes
