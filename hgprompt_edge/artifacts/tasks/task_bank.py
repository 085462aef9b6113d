"""What a task file holds to be adapted, beside what the bank of its folder has.

Tensors: `adapt.initial [M]`, and where there are prompts to mix `adapt.gram [L, T, P, P]`;
`clean.*` as in a bank. Metadata: `hgprompt.bank_sha256`, and under `hgprompt.adapt` the names of
the entries and the digests of those that have tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from hgprompt_edge.artifacts.bank_entries import FOLDED
from hgprompt_edge.artifacts.device_bank import Bank, check_bank
from hgprompt_edge.artifacts.metadata import PREFIX
from hgprompt_edge.artifacts.tasks.folder_bank import FolderBank
from hgprompt_edge.artifacts.tasks.task_tensors import TaskTensors
from hgprompt_edge.files import Array
from hgprompt_edge.maths.feature_statistics import FeatureStatistics, read_statistics
from hgprompt_edge.maths.head import Head

ADAPT = f"{PREFIX}adapt"
INITIAL, GRAM = "adapt.initial", "adapt.gram"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TaskBank:
    """A task's own part of what it mixes.

    Attributes
    ----------
    names
        Of the `M` entries, as of `Bank`.
    digests
        Of the `P` entries that have tokens, in the bank of the folder.
    gram
        `[L, T, P, P]` float32; None where no entry has tokens.
    initial
        The mix `[M]` that it left the server with.
    head
        As of `Bank`.
    sha256
        Of names and tokens, as of `Bank`.
    clean
        Statistics of the features of clean images, or None.
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    gram: Floats | None
    initial: Floats
    head: Head
    sha256: str
    clean: FeatureStatistics | None

    def whole(self, folder: FolderBank | None) -> Bank:
        """Return what an exported model's own bank would be, on the prompts of the folder.

        Raises
        ------
        LookupError
            The folder lacks a prompt.
        ValueError
            The parts do not fit each other.
        """
        mixer = None
        if self.gram is not None:
            if folder is None:
                raise LookupError("there is no bank")
            mixer = folder.mixer(self.digests, self.gram.astype(np.float64))
        bank = Bank(self.names, mixer, self.initial, self.head, self.sha256, self.clean)
        check_bank(bank)
        return bank


def pack_task_bank(bank: Bank, digests: tuple[str, ...]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return tensors and metadata of a task file that can be adapted."""
    tensors: dict[str, Array] = {INITIAL: bank.initial}
    if bank.mixer is not None:
        tensors[GRAM] = bank.mixer.gram.astype(np.float32)
    if bank.clean is not None:
        tensors |= bank.clean.tensors()
    text = json.dumps({"names": bank.names, "prompts": digests})
    return tensors, {f"{PREFIX}bank_sha256": bank.sha256, ADAPT: text}


def read_task_bank(
    arrays: Mapping[str, Array], entries: Mapping[str, str], given: TaskTensors, width: int
) -> TaskBank | None:
    """Read and check what `pack_task_bank` gave; None: the task was not exported to be adapted.

    Parameters
    ----------
    given
        Of the same file; its head is that of the bank.
    width
        Of the features that the task's own head sees.

    Raises
    ------
    ValueError, LookupError
        It is damaged.
    """
    if ADAPT not in entries:
        return None
    found = TypeAdapter(dict[str, tuple[str, ...]]).validate_json(entries[ADAPT])
    names, digests = found["names"], found["prompts"]
    classes = given.head_bias.shape[1]
    head = Head(given.head_weight[0].T[:, :width], given.head_bias[0])
    if names == (FOLDED,):  # on top of the logarithm of the averaged probabilities
        head = Head(np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32))
    numbers = {name: arrays[name] for name in (INITIAL, GRAM) if name in arrays}
    for name, array in numbers.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"'{name}' must be finite and float32")
    if bool(digests) != (GRAM in numbers):
        raise ValueError(f"'{GRAM}' and the prompts do not fit")
    return TaskBank(
        names,
        digests,
        cast("Floats | None", numbers.get(GRAM)),
        cast("Floats", numbers[INITIAL]),
        head,
        entries[f"{PREFIX}bank_sha256"],
        read_statistics(arrays, *head.weight.shape),
    )


def given_at(tensors: TaskTensors, bank: Bank, weights: npt.ArrayLike) -> TaskTensors:
    """Return what a backbone takes for a mix `[M]` of a task's bank; `tensors` where none moves."""
    found = bank.inputs(weights)
    if not found:
        return tensors
    keys, values = (_rows(found[name]) for name in ("prefix_k", "prefix_v"))
    share = found.get("prefix_bias", np.zeros(1, np.float32))
    mask = np.full((1, keys.shape[2]), share[0], np.float32)
    return TaskTensors(keys, values, mask, tensors.head_weight, tensors.head_bias)


def _rows(x: Floats) -> Floats:
    """`[L, H, T, d]` to the `[L, 1, T, D]` of one folded prompt."""
    layers, heads, tokens, width = x.shape
    rows: Floats = x.transpose(0, 2, 1, 3).reshape(layers, 1, tokens, heads * width)
    return rows
