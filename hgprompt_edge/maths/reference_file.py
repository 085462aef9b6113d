"""A reference as the tensors of a file and as text, written and checked when read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hgprompt_edge.maths.reference import PREFIX, STATISTICS, Reference, Seen

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[np.generic]]


def pack_reference(reference: Reference) -> str:
    """Return a reference as text, for the metadata of a model."""
    return base64.b64encode(save(reference.tensors())).decode()


def unpack_reference(text: str, classes: int, width: int) -> Reference | None:
    """Read what `pack_reference` gave, and check it.

    Raises
    ------
    ValueError
        It is damaged, or does not fit; as of `read_reference`.
    """
    try:
        tensors = load(base64.b64decode(text, validate=True))
    except (ValueError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"the reference is damaged ({error})") from error
    return read_reference(tensors, classes, width)


def read_reference(tensors: Arrays, classes: int, width: int) -> Reference | None:
    """Read and check a reference that a file holds; None: it holds none.

    Raises
    ------
    ValueError
        It does not fit `classes` and the `width` of the features, or a part is missing or left
        over, or numbers are not finite. It may be of the first half of the features: of the class
        token, where its model gives the mean of the patch tokens, too.
    """
    centre = tensors.get(f"{PREFIX}centre")
    if centre is not None and 2 * len(centre) == width:
        width = len(centre)
    names = [name for name in tensors if name.startswith(PREFIX)]
    found = {name.removeprefix(PREFIX): tensors[name] for name in names}
    if not found:
        return None
    rank = found["basis"].shape[0] if found.get("basis", np.zeros(())).ndim == 2 else 0
    images = len(found["nearest"]) if "nearest" in found else 0
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "centre": ((width,), np.float32),
        "basis": ((rank, width), np.float16),
        "means": ((classes, rank), np.float32),
        "within": ((rank, rank), np.float32),
        "total": ((rank,), np.float32),
        "rest": ((2,), np.float32),
        "held_out": ((images, len(STATISTICS)), np.float32),
        "nearest": ((images,), np.int64),
        "inside": ((images, rank), np.float16),
    }
    if found.keys() != shapes.keys():
        odd = sorted(found.keys() ^ shapes.keys())
        raise ValueError(f"'{PREFIX}{odd[0]}' is missing or of no use")
    for name, (shape, dtype) in shapes.items():
        array = found[name]
        if array.shape != shape or array.dtype != dtype or 0 in shape:
            raise ValueError(f"'{PREFIX}{name}' is {array.dtype} {list(array.shape)}")
        if array.dtype.kind == "f" and name != "means" and not np.isfinite(array).all():
            raise ValueError(f"'{PREFIX}{name}' holds NaN or inf")
    floats = {name: cast("Floats", found[name]) for name in shapes if name != "nearest"}
    nearest = cast("Integers", found["nearest"])
    if (floats["total"] <= 0).any() or (floats["rest"] <= 0).any():
        raise ValueError(f"'{PREFIX}total' or '{PREFIX}rest' is not above 0")
    if ((nearest < 0) | (nearest >= classes)).any():
        raise ValueError(f"'{PREFIX}nearest' names a class that is not there")
    known = np.isfinite(floats["means"])
    if not known.all(1).any() or (known.all(1) != known.any(1)).any():
        raise ValueError(f"'{PREFIX}means' is of no class, or of half a one")
    basis = floats["basis"].astype(np.float32)
    return Reference(
        floats["centre"], basis, floats["means"], floats["within"], floats["total"],
        floats["rest"], Seen(floats["held_out"], nearest), floats["inside"].astype(np.float32),
    )  # fmt: skip
