"""The state of an interrupted training: written whole, read without trust."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from hgprompt_edge.files import atomic_path


def save_state(path: Path | None, state: dict[str, Any]) -> None:
    """Write tensors, numbers and containers of them; nothing where there is no path."""
    if path is not None:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)


def load_state(path: Path | None) -> dict[str, Any] | None:
    """Read a state, None where there is none or it is damaged: that costs time, no more."""
    if path is None or not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError):
        return None
    return state
