"""What a model file says of itself against what its graph takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hgprompt_edge.artifacts.device_bank import Bank, bank_path, content_sha256, read_bank
from hgprompt_edge.artifacts.metadata import PREFIX, Metadata, assume_metadata
from hgprompt_edge.errors import FileError, MismatchError, brief
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
    if len(engine.outputs) > 2:  # the second one may be the features
        return None
    shapes = [port.shape for port in (*engine.inputs, *engine.outputs[:1])]
    if [len(shape) for shape in shapes] != [3, 1]:
        return None
    (height, width, _), (classes,) = shapes
    if height is None or height != width or classes is None:
        return None
    return assume_metadata(height, classes)


def read_bank_of(path: Path, metadata: Metadata) -> Bank | None:
    """Read the bank beside a model whose weights can change, or None for another one.

    Raises
    ------
    UserError
        It is missing, damaged or of another model.
    """
    if not metadata.bank_sha256:
        return None
    place = bank_path(path)
    bank = read_bank(place)
    check_same_export(
        place,
        bank,
        path,
        sha256=metadata.bank_sha256,
        content=metadata.bank_content_sha256,
        classes=len(metadata.classes),
    )
    return bank


def check_same_export(
    place: Path, bank: Bank, other: Path, *, sha256: str, content: str, classes: int
) -> None:
    """Refuse a bank at `place` that is not the one of the export that wrote `other`.

    Parameters
    ----------
    sha256, content
        Of the bank at that export.
    classes
        Of `other`.

    Raises
    ------
    MismatchError
        Its prompts, initial mix, head or statistics are not those.
    """
    difference = ""
    if bank.sha256 != sha256:
        difference = f"its prompts have the sha256 {bank.sha256[:12]}..., not {sha256[:12]}..."
    elif len(bank.head.bias) != classes:
        difference = f"its head has {len(bank.head.bias)} classes, not {classes}"
    elif content_sha256(bank) != content:
        difference = "it has the same prompts, but another initial mix, head or statistics"
    if difference:
        raise MismatchError(place, other, difference, "copy all files of one export")


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
    elif len(engine.outputs) == 2:  # the features, for whoever reads them
        outputs.append(Port("features", "float", engine.outputs[1].shape[:1]))
    if (engine.inputs, engine.outputs) != (tuple(inputs), tuple(outputs)):
        takes, gives = (
            brief(", ".join(map(str, ports))) for ports in (engine.inputs, engine.outputs)
        )
        raise FileError(
            path,
            f"takes {takes} and gives {gives}, which does not fit its metadata ({side} px, "
            f"{classes} classes); export it again",
        )
