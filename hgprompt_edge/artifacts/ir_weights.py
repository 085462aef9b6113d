"""Where the weights of OpenVINO's IR lie, which its graph does not say."""

from __future__ import annotations

from pathlib import Path

from hgprompt_edge.artifacts.tasks.device_files import OPENVINO


def ir_weights(path: Path) -> Path:
    """Return the file with the weights of `NAME.xml`: `NAME.bin`.

    `default.xml` of a device folder has none of its own: its weights are in those of the backbone.
    """
    own, backbone = path.with_suffix(".bin"), path.with_name(OPENVINO.weights)
    shared = path.name == OPENVINO.default and not own.exists() and backbone.exists()
    return backbone if shared else own


def wanted_weights(path: Path) -> str:
    """Name what `ir_weights` looks for, for a message where it is missing."""
    own = path.with_suffix(".bin").name
    if path.name != OPENVINO.default:
        return own
    return f"{OPENVINO.weights} of its device folder (or {own}, if it is of no folder)"
