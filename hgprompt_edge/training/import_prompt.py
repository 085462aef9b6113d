"""Prompts that others trained, read from files that hgedge did not write.

Three layouts are known, in safetensors files and in files of `torch.save` alike:

- that of the VPT code (KMnP/vpt, `prompt_ep*.pth`): `shallow_prompt [1, T, D]` for the first block
  and, of a deep prompt, `deep_prompt [L-1, T, D]` for the others;
- its complete checkpoints (see `vpt_checkpoint.py`);
- one tensor `[T, D]` or `[1, T, D]` a layer under names that differ in one number
  (`layers.0.prompt`, `layers.1.prompt`, ...), the first block's perhaps under a name without one
  (`shallow_prompt`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)

from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.errors import FileError, MismatchError, first_line
from hgprompt_edge.files import sha256_file
from hgprompt_edge.prompts.prompt import DEEP, SHALLOW, Floats, Normalization, Prompt
from hgprompt_edge.training.vpt_checkpoint import prompt_of_checkpoint

NORMALIZATIONS = {
    "imagenet": Normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "inception": Normalization(IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    "none": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""The two that nearly everybody uses (torchvision's and the VPT code's; most ViTs' of timm), and
pixels in [0, 1] as they are."""

VPT_SHALLOW, VPT_DEEP = "shallow_prompt", "deep_prompt"
SHOWN_NAMES = 5

# numpy 1 pickles its arrays under one name, numpy 2 under the other.
_reconstruct = np.zeros(0).__reduce__()[0]
ARRAY_GLOBALS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64")),
]
"""What an array of floats needs beyond the tensors that torch allows by itself; nothing more."""


def import_prompt(
    path: Path,
    backbone: Backbone,
    normalization: Normalization | None,
    *,
    name: str,
    task: str = "",
    family: str = "",
) -> Prompt:
    """Read the prompt of another program from `path` and check that it fits `backbone`.

    Its `init_seed` is unknown, so that a bank matches its tokens to those of other prompts.

    Parameters
    ----------
    normalization
        Of the pixels that the prompt was trained on; None: the backbone's own. Files of others do
        not say.

    Raises
    ------
    UserError
        The file is missing or damaged, wants more than arrays, holds no known layout, numbers that
        are not finite, or a prompt of another width or depth than the backbone's.
    """
    foreign = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    content = foreign(path)
    content = prompt_of_checkpoint(path, content, backbone) or content
    tensors = {key: value for key, value in content.items() if value is not None}
    tokens = _tokens(path, tensors)
    _check_fits(path, tokens, backbone)
    return Prompt(
        tokens=tokens,
        name=name,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        image_size=backbone.image_size,
        mode=SHALLOW if len(tokens) == 1 else DEEP,
        init_seed=None,
        task=task,
        family=family,
        recipe={"imported": path.name, "imported_sha256": sha256_file(path)},
        normalization=None if normalization == backbone.normalization else normalization,
    )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get("format", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            path,
            f"cannot be read as a safetensors file ({_brief(error)}); copy or download it again",
        ) from error
    if version.startswith("hgprompt."):
        raise FileError(path, f"already a prompt of hgedge ({version}); copy it into the bank")
    return tensors


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(ARRAY_GLOBALS):
            # Remarks on old pickles; what is wrong with one is an exception.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(path, f"cannot be read ({_brief(error)}); check the path") from error
    except Exception as error:  # what torch raises on damaged bytes has no common base
        wanted = re.search(r"(?:GLOBAL |<class ')([\w.]+)", str(error))
        if wanted is None:
            message = "truncated or not a file of torch.save; copy or save it again"
        else:
            message = (
                f"asks to call {wanted[1]}, and hgedge reads only arrays of floats; save only the "
                "arrays of the prompt"
            )
        raise FileError(path, message) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise FileError(path, f"holds a {kind}; save a dictionary of the prompt's arrays")
    return {str(key): value for key, value in content.items()}


def _tokens(path: Path, tensors: Mapping[str, Any]) -> Floats:
    """Bring the tensors of a layout to `[L, T, D]`, the first block's first."""
    if tensors.keys() == {VPT_SHALLOW, VPT_DEEP}:
        names = [VPT_SHALLOW, VPT_DEEP]
    else:
        names = _names_by_layer(path, list(tensors))
    layers = [_layers(path, name, tensors[name]) for name in names]
    for name, layer in zip(names, layers, strict=True):
        if layer.shape[1:] != layers[0].shape[1:]:
            raise FileError(
                path,
                f"{name!r} is {list(layer.shape)}, {names[0]!r} {list(layers[0].shape)}; all "
                "layers of a prompt have the same tokens and width",
            )
    return np.concatenate(layers)


def _names_by_layer(path: Path, names: list[str]) -> list[str]:
    # Nine digits at most: a longer number is no layer's, and Python may refuse to read it.
    numbers = {name: re.findall(r"[0-9]{1,9}", name) for name in names}
    first = [name for name in names if not numbers[name]]
    others = [name for name in names if numbers[name]]
    known = (
        len(first) <= 1
        and all(re.search("prompt|shallow|input", name) and name != VPT_DEEP for name in first)
        and all(len(numbers[name]) == 1 for name in others)
        and len({re.sub("[0-9]+", "", name) for name in others}) <= 1
    )
    if not names or not known:
        raise FileError(
            path,
            f"holds neither {VPT_SHALLOW} with {VPT_DEEP} nor one tensor a layer, but "
            f"{_listed(names)}; give a file that holds only the prompt",
        )
    others.sort(key=lambda name: int(numbers[name][0]))
    found = [int(numbers[name][0]) for name in others]
    if found not in (list(range(len(found))), list(range(1, len(found) + 1))):
        raise FileError(
            path,
            f"its layers are numbered {', '.join(map(str, found[:20]))}; give a file with all "
            "layers, from 0 or 1 on",
        )
    return first + others


def _layers(path: Path, name: str, value: object) -> Floats:
    """Return a tensor as `[layers, T, D]` float32; only VPT's deep one holds more than a layer."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        value = value.detach().float().to_dense().numpy()
    if not (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        kind = getattr(value, "dtype", type(value).__name__)
        raise FileError(path, f"{name!r} must be an array of floats, got {kind}")
    with np.errstate(over="ignore"):  # what leaves float32 becomes inf and is refused
        array = value.astype(np.float32)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape or (len(array) > 1 and name != VPT_DEEP):
        shape = "[layers, tokens, width]" if name == VPT_DEEP else "[tokens, width] of one layer"
        raise FileError(path, f"{name!r} must be {shape}, got {list(value.shape)}")
    if not np.isfinite(array).all():
        raise FileError(path, f"{name!r} holds NaN or inf; import the prompt of another epoch")
    return array


def _check_fits(path: Path, tokens: Floats, backbone: Backbone) -> None:
    layers, _, width = tokens.shape
    difference = ""
    if width != backbone.embed_dim:
        difference = f"its tokens have width {width}, not {backbone.embed_dim}"
    elif layers not in (1, backbone.depth):
        difference = f"it has {layers} layers, not {backbone.depth}"
    if difference:
        advice = "name the backbone that the prompt was trained on"
        raise MismatchError(path, f"the backbone {backbone.name}", difference, advice)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:SHOWN_NAMES])
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{shown}{more}" if names else "nothing"


def _brief(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or first_line(error)).lower()
