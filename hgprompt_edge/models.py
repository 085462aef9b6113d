"""Where the bundled backbones and banks lie: in the data-only distribution `hgprompt-edge-models`.

The base install holds no weights, so that a device does not carry them.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from hgprompt_edge.errors import UserError

DEFAULT, TINY = "dinov2-small", "tiny"
NAMES = (DEFAULT, TINY)
"""Bundled backbones; each has a prompt bank of the same name."""
PACKAGE, DISTRIBUTION = "hgprompt_edge_models", "hgprompt-edge-models"


def backbone_file(name: str) -> Path:
    """Safetensors file of a bundled backbone, its architecture in the metadata.

    Raises
    ------
    UserError
        `hgprompt-edge-models` is not installed.
    """
    return models_folder(f"the backbone {name}") / name / "backbone.safetensors"


def bank_folder(name: str) -> Path:
    """Folder of the prompt bank of a bundled backbone.

    Raises
    ------
    UserError
        `hgprompt-edge-models` is not installed.
    """
    return models_folder(f"the prompt bank {name}") / name / "bank"


def pictures_folder() -> Path:
    """Folder of the demo's pictures: circuit-board defects (DeepPCB, MIT).

    Raises
    ------
    UserError
        `hgprompt-edge-models` is not installed.
    """
    return models_folder("the demo's pictures") / "deeppcb"


def accuracies() -> dict[str, dict[str, float]]:
    """Test accuracy of each bundled backbone's frozen features, in [0, 1], by data set.

    Written by `python benchmarks backbones`.

    Raises
    ------
    UserError
        `hgprompt-edge-models` is not installed.
    """
    text = (models_folder() / "accuracy.json").read_text()
    return cast("dict[str, dict[str, float]]", json.loads(text))


def are_installed() -> bool:
    """Whether `hgprompt-edge-models` can be found."""
    return find_spec(PACKAGE) is not None


def models_folder(wanted: str = "the bundled models") -> Path:
    """Folder of the installed `hgprompt-edge-models`.

    Parameters
    ----------
    wanted
        What is looked for, for the message.

    Raises
    ------
    UserError
        It is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"{wanted} comes with {DISTRIBUTION}, which is not installed; run "
            f"`pip install {DISTRIBUTION}` (from a checkout: `pip install ./models`)"
        )
    return Path(spec.origin).parent
