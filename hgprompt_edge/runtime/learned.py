"""What a device has learned for a model: where it lies, how it is opened, what of it is at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.device_bank import Bank
from hgprompt_edge.artifacts.metadata import Metadata
from hgprompt_edge.errors import FileError, ParameterError
from hgprompt_edge.maths.head import Head
from hgprompt_edge.paths import why_not
from hgprompt_edge.state.history import History, Version

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AtWork:
    """What one prediction needs beside the image; replaced as a whole, never changed.

    Attributes
    ----------
    given
        What the graph takes beside the image.
    head
        In place of the model's own.
    version
        Where both come from.
    """

    given: Mapping[str, Floats]
    head: Head | None = None
    version: Version | None = None


def head_of(version: Version, bank: Bank) -> Head | None:
    """Head that a version moved, completed by the model's own; None: that one."""
    weight, bias = version.head_weight, version.head_bias
    if weight is None and bias is None:
        return None
    own = bank.head
    return Head(own.weight if weight is None else weight, own.bias if bias is None else bias)


def content_of(version: Version) -> tuple[object, ...]:
    """Return what sets a version apart, also from one of the same number in another history."""
    arrays = (version.weights, version.head_weight, version.head_bias)
    return version.id, *(None if array is None else array.tobytes() for array in arrays)


def state_path(model: Path) -> Path:
    """Where the state folder of a model lies, whatever else lies there."""
    return model.with_name(f"{model.stem}.state")


def state_folder(model: Path) -> Path:
    """Where `hgedge adapt` keeps what it has learned for a model, unless told otherwise.

    Raises
    ------
    UserError
        A file lies there.
    """
    state = state_path(model)
    if state.exists() and not state.is_dir():
        raise FileError(
            state,
            f"a file, where the folder with what is learned for {model.name} belongs; move it away "
            "or name another folder with `state`",
        )
    return state


def open_history(
    state: Path, bank: Bank, metadata: Metadata, *, read_only: bool = False
) -> History:
    """Open what a device has learned for a model, or a task, with this bank and these metadata.

    Raises
    ------
    UserError
        A file lies where the folder would be; or as of `History`.
    """
    if state.exists() and not state.is_dir():
        raise ParameterError(
            "state",
            state,
            f"{why_not(state, 'folder')}; name the folder that `hgedge adapt` printed",
        )
    return History(
        state,
        bank.sha256,
        bank.initial,
        read_only=read_only,
        classes=metadata.classes,
        resize=metadata.preprocessing.crop_mode,
        task=metadata.task,
        backbone=metadata.backbone_sha256,
    )
