"""What a model file says of itself against what its graph takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hgprompt_edge.artifacts.device_bank import Bank, bank_path, difference, read_bank
from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, assume_metadata
from hgprompt_edge.errors import UserError, brief
from hgprompt_edge.maths.parity import TOLERANCES
from hgprompt_edge.runtime.engines.engine import Engine, Port

ASSUMED = (
    "not from `hgedge export`: it lacks class names and the resize rule; classes are numbers, the "
    "shorter side is resized to the model's and the centre cropped"
)
"""What to say of a model of others."""


def tolerance_of(entries: Mapping[str, str]) -> float:
    """How far a model's logits may be from PyTorch's, relative to the largest (METHOD 8)."""
    return TOLERANCES[entries.get(f"{PREFIX}precision", "fp32")]


def assumed_metadata(engine: Engine) -> Metadata | None:
    """Metadata for a model of others, if it takes pixels and gives logits under our names."""
    shapes = [port.shape for port in (*engine.inputs, *engine.outputs)]
    if [len(shape) for shape in shapes] != [3, 1]:
        return None
    (height, width, _), (classes,) = shapes
    if height is None or height != width or classes is None:
        return None
    return assume_metadata(height, classes)


def read_bank_of(path: Path, metadata: Metadata) -> Bank | None:
    """Read the bank beside a model with `--weights runtime`, or None for one without.

    Raises
    ------
    UserError
        It is missing, damaged or of another model.
    """
    if not metadata.bank_sha256:
        return None
    place = bank_path(path)
    bank = read_bank(place)
    content, classes = metadata.bank_content_sha256, len(metadata.classes)
    if found := difference(bank, metadata.bank_sha256, content, classes):
        raise UserError(
            f"{place}: the bank of another model than {path.name} (it has {found}); copy both "
            "files of one export"
        )
    return bank


def check_contract(path: Path, engine: Engine, metadata: Metadata, bank: Bank | None) -> None:
    """Refuse a file whose graph is not what its metadata and its bank say."""
    side, classes = metadata.preprocessing.image_size, len(metadata.classes)
    inputs, outputs = (
        [Port("image", "uint8", (side, side, 3))],
        [Port("logits", "float", (classes,))],
    )
    if bank is not None:
        given = bank.inputs(bank.initial).items()
        inputs += [Port(name, "float", array.shape[1:]) for name, array in given]
        outputs.append(Port("features", "float", bank.head.weight.shape[1:]))
    if (engine.inputs, engine.outputs) != (tuple(inputs), tuple(outputs)):
        takes, gives = (
            brief(", ".join(map(str, ports))) for ports in (engine.inputs, engine.outputs)
        )
        raise UserError(
            f"{path}: takes {takes} and gives {gives}, which does not fit its metadata "
            f"({side} px, {classes} classes); export it again"
        )
