"""The prompts of a device folder, `bank.safetensors`: each once, whatever tasks mix it.

Tensors: for each prompt `keys.DIGEST`, `values.DIGEST` `[L, T, E]`; and what all prompts of a
backbone share, `key_bias`, `value_bias [L, E]`, `eps [L]`, with qk-norm `key_norm.*`. The digest is
over all of these, so that a task file that names it says exactly what it mixes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.mixer_tensors import read_shared, shared_tensors
from hgprompt_edge.artifacts.tasks.device_files import BANK
from hgprompt_edge.errors import FileError, MismatchError, brief
from hgprompt_edge.files import (
    DAMAGE,
    Array,
    check_format,
    read_safetensors,
    sha256_arrays,
    write_safetensors,
)
from hgprompt_edge.maths.mixing import BankKeysValues, Rows

FORMAT = "hgprompt.prompts/1"
KEYS, VALUES = "keys.", "values."

Floats = npt.NDArray[np.float32]
Pair = tuple[Floats, Floats]


@dataclass(frozen=True)
class FolderBank:
    """The prompts that the tasks of a device folder mix.

    Attributes
    ----------
    backbone_sha256
        Of the frozen weights that they were projected for.
    constants
        What they have in common: a mixer without a prompt.
    prompts
        Keys and values `[L, T, E]` of each, by digest.
    """

    backbone_sha256: str
    constants: BankKeysValues
    prompts: Mapping[str, Pair]

    def mixer(self, digests: Collection[str], gram: npt.NDArray[np.float64]) -> BankKeysValues:
        """Return what mixes these prompts; their keys and values are not copied."""
        pairs = [self.prompts[digest] for digest in digests]
        keys, values = (Rows([pair[part] for pair in pairs]) for part in (0, 1))
        return replace(self.constants, keys=keys, values=values, gram=gram)

    def joined(self, other: FolderBank) -> FolderBank:
        """Return the bank with the prompts of another one for the same backbone."""
        return replace(self, prompts={**self.prompts, **other.prompts})

    def only(self, digests: Collection[str]) -> FolderBank:
        """Return the bank with no other prompts than these."""
        kept = {name: pair for name, pair in self.prompts.items() if name in set(digests)}
        return replace(self, prompts=kept)


def folder_bank(backbone_sha256: str, mixer: BankKeysValues) -> tuple[FolderBank, tuple[str, ...]]:
    """Make a bank of a mixer's prompts; returns it with their digests, in the mixer's order."""
    shape = mixer.keys.shape
    none = np.zeros((0, *shape[1:]), np.float32)
    shared = replace(mixer, keys=none, values=none, gram=np.zeros((shape[1], shape[2], 0, 0)))
    pairs = list(zip(np.asarray(mixer.keys), np.asarray(mixer.values), strict=True))
    digests = tuple(_digest(shared, pair) for pair in pairs)
    return FolderBank(backbone_sha256, shared, dict(zip(digests, pairs, strict=True))), digests


def write_folder_bank(path: Path, bank: FolderBank) -> None:
    """Write a bank, whole or not at all. Same bank, same bytes."""
    tensors: dict[str, Array] = dict(shared_tensors(bank.constants))
    for digest, (keys, values) in bank.prompts.items():
        tensors |= {f"{KEYS}{digest}": keys, f"{VALUES}{digest}": values}
    sizes = {"heads": str(bank.constants.heads), "width": str(bank.constants.width)}
    metadata = {"format": FORMAT, "backbone_sha256": bank.backbone_sha256}
    write_safetensors(path, tensors, {**metadata, **sizes})


def count_prompts(path: Path) -> int:
    """Return how many prompts the bank of a device folder holds."""
    return sum(name.startswith(KEYS) for name in read_safetensors(path)[0])


def add_prompts(folder: Path, bank: FolderBank | None, new: FolderBank) -> None:
    """Write the bank of a folder, None: it has none yet, with the prompts of a new one.

    Raises
    ------
    UserError
        What all prompts of the two have in common differs, or it cannot be written.
    """
    if bank is None:
        write_folder_bank(folder / BANK, new)
        return
    if _constants_digest(bank) != _constants_digest(new):
        raise FileError(
            folder / BANK,
            "was rounded otherwise than the prompts that are to join it; add the task's bundle on "
            "the server",
        )
    if new.prompts.keys() - bank.prompts.keys():
        write_folder_bank(folder / BANK, bank.joined(new))


def _constants_digest(bank: FolderBank) -> str:
    return sha256_arrays(shared_tensors(bank.constants))


def read_folder_bank(path: Path, backbone_sha256: str) -> FolderBank:
    """Read and check the bank of a device folder, which may come from anywhere.

    Raises
    ------
    UserError
        Missing, damaged, another format, or of another backbone than `backbone_sha256`.
    """
    if not path.is_file():
        raise FileError(
            path,
            "no such file; tasks that adapt need the bank of their folder beside them: copy it",
        )
    tensors, metadata = read_safetensors(path)
    found = metadata.get("format", "missing")
    check_format(
        path, found, FORMAT, f"not the bank of a device folder (format '{brief(found)}'); export "
        "the folder again",
    )  # fmt: skip
    try:
        bank = _parse(tensors, metadata)
    except DAMAGE as error:
        raise FileError(path, f"damaged bank ({brief(error)}); copy or export it again") from error
    if bank.backbone_sha256 != backbone_sha256:
        raise MismatchError(
            path,
            path.parent,
            f"it was made for the backbone {brief(bank.backbone_sha256)[:12]}, not for "
            f"{backbone_sha256[:12]}",
            "copy all files of one export",
        )
    return bank


def _parse(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> FolderBank:
    shared = read_shared(tensors, metadata)
    layers, width = shared.key_bias.shape
    digests = sorted(name.removeprefix(KEYS) for name in tensors if name.startswith(KEYS))
    prompts = {}
    for digest in digests:
        pair = cast("Pair", (tensors[f"{KEYS}{digest}"], tensors[f"{VALUES}{digest}"]))
        keys, values = pair
        if keys.ndim != 3 or keys.shape != values.shape or 0 in keys.shape:
            raise ValueError(f"'{digest[:12]}' is {keys.shape} and {values.shape}")
        if (keys.shape[0], keys.shape[2]) != (layers, width):
            raise ValueError(f"'{digest[:12]}' is {keys.shape}, not [{layers}, T, {width}]")
        if not all(a.dtype == np.float32 and np.isfinite(a).all() for a in pair):
            raise ValueError(f"'{digest[:12]}' must be finite and float32")
        if _digest(shared, pair) != digest:
            raise ValueError(f"'{digest[:12]}' is not what its digest says")
        prompts[digest] = pair
    return FolderBank(metadata["backbone_sha256"], shared, prompts)


def _digest(shared: BankKeysValues, pair: Pair) -> str:
    sizes = np.array([shared.heads, shared.width], "<i8")
    parts = {"keys": pair[0], "values": pair[1], "sizes": sizes, **shared_tensors(shared)}
    return sha256_arrays(parts)
