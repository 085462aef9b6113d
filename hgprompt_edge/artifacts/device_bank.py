"""The prompts that a device can mix, `NAME.bank.safetensors`: small, checked, ready to be used.

Tensors: `initial [M]`, `head.weight [K, D]`, `head.bias [K]`; optionally `clean.mean`, `clean.var`,
and for each class `clean.class_mean [K, D]`, `clean.class_count [K]`.
Where there are prompts `keys`, `values [P, L, T, E]`, `gram [L, T, P, P]`, `key_bias`, `value_bias
[L, E]`, `eps [L]` (METHOD eq. 2); with qk-norm `key_norm.weight`, `key_norm.bias [L, d]`,
`key_norm.eps [L]`. Where there are none, only the head can move.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import FOLDED, NO_PROMPT
from hgprompt_edge.artifacts.mixer_tensors import (
    check_numbers,
    mixer_without,
    shared_shapes,
    shared_tensors,
)
from hgprompt_edge.errors import FileError, brief
from hgprompt_edge.files import (
    DAMAGE,
    Array,
    check_format,
    read_safetensors,
    sha256_arrays,
    write_safetensors,
)
from hgprompt_edge.maths.feature_statistics import FeatureStatistics, read_statistics
from hgprompt_edge.maths.head import Head, read_head
from hgprompt_edge.maths.mixing import BankKeysValues

FORMAT = "hgprompt.bank/1"
SUFFIX = ".bank.safetensors"
TASK, TASKS_BANK, TASKS_ADAPT = ".hgtask", "bank.safetensors", "adapt.onnx"
"""In a device folder: suffix of a task's file, and what all tasks have in place of their own."""
TINY = 1e-30
"""Smallest share of the prompts: its logarithm is finite, and no score notices it."""
TOLERANCE = 1e-3
"""How far from 1 the sum of a mix may be."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bank:
    """What a device mixes, and where it starts.

    Attributes
    ----------
    names
        Of the `M` entries. Where the first is `NO_PROMPT`, there are tokens for `P = M - 1`. Of
        several folded prompts there is the one entry `FOLDED`.
    mixer
        Keys and values of the entries that have tokens; None where no entry has any, so that only
        the head can move.
    initial
        The mix `[M]` that the model left the server with.
    head
        `[K, D]`: as the model applies it to its `features`. Of several folded prompts these are the
        logarithm of the averaged probabilities, `[K]`, and the head changes nothing yet: `[K, K]`,
        the identity.
    sha256
        Digest of names and tokens, see `bundle.bank_sha256`.
    clean
        Statistics of the model's `features` on clean images, or None.
    """

    names: tuple[str, ...]
    mixer: BankKeysValues | None
    initial: Floats
    head: Head
    sha256: str
    clean: FeatureStatistics | None = None

    @property
    def gated(self) -> bool:
        """Whether the first entry is the model alone: it has no tokens, its weight is a share."""
        return self.names[0] == NO_PROMPT

    @property
    def why_fixed(self) -> str:
        """Why there is no mix to move, for messages; empty where there is one."""
        if self.mixer is not None:
            return ""
        if self.names == (FOLDED,):
            return (
                "this model averages folded prompts whose mixing weights are fixed (run `hgedge "
                "fit` with `folded=1` and export that to adapt them)"
            )
        return "this model has no prompts to mix"

    def share(self, weights: npt.ArrayLike) -> float:
        """Share in `(0, 1]` that the prompts have of a mix `[M]`, beside the model alone."""
        a = np.asarray(weights, dtype=np.float64)
        return max(float(a[1:].sum()), TINY) if self.gated else 1.0

    def inputs(self, weights: npt.ArrayLike) -> dict[str, Floats]:
        """Return what a model whose weights can change takes beside the image, for a mix `[M]`.

        Nothing where there are no prompts.

        `prefix_k`, `prefix_v` `[L, H, T, d]`, and where the model alone is an entry `prefix_bias
        [1]`, the logarithm of the share that the prompts have: it is added to their scores.
        """
        if self.mixer is None:
            return {}
        a = np.asarray(weights, dtype=np.float64)
        if not self.gated:
            keys, values = self.mixer.keys_values(a)
            return {"prefix_k": keys, "prefix_v": values}
        share = self.share(a)
        keys, values = self.mixer.keys_values(a[1:] / share)
        bias = np.log([share]).astype(np.float32)
        return {"prefix_k": keys, "prefix_v": values, "prefix_bias": bias}


def bank_path(model: Path) -> Path:
    """Where the bank of a model file lies: beside it; the tasks of a device folder have one."""
    if model.suffix == TASK:
        return model.with_name(TASKS_BANK)
    return model.with_name(f"{model.stem}{SUFFIX}")


def adapt_path(model: Path) -> Path:
    """Where the graph of a model's gradient lies: beside it; tasks of a device folder have one."""
    if model.suffix == TASK:
        return model.with_name(TASKS_ADAPT)
    return model.with_name(f"{model.stem}.adapt.onnx")


def write_bank(path: Path, bank: Bank) -> None:
    """Write a bank, whole or not at all. Same bank, same bytes."""
    write_safetensors(path, *_pack(bank))


def content_sha256(bank: Bank) -> str:
    """Hexadecimal sha256 over all that the file of a bank holds.

    `Bank.sha256` is over the prompts alone, so that what was learned over them outlives another
    initial mix. Of banks with the same prompts, this one tells which a model was exported with.
    """
    tensors, metadata = _pack(bank)
    text = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(f"{text}{sha256_arrays(tensors)}".encode()).hexdigest()


def _pack(bank: Bank) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a bank's file."""
    tensors: dict[str, Array] = {"initial": bank.initial, **bank.head.tensors()}
    metadata = {"format": FORMAT, "names": json.dumps(bank.names), "sha256": bank.sha256}
    if bank.clean is not None:
        tensors |= bank.clean.tensors()
    if bank.mixer is not None:
        tensors |= _pack_mixer(bank.mixer)
        metadata |= {"heads": str(bank.mixer.heads), "width": str(bank.mixer.width)}
    return tensors, metadata


def _pack_mixer(mixer: BankKeysValues) -> dict[str, Array]:
    own = {
        "keys": np.asarray(mixer.keys),
        "values": np.asarray(mixer.values),
        "gram": mixer.gram.astype(np.float32),
    }
    return {**own, **shared_tensors(mixer)}


def read_bank(path: Path) -> Bank:
    """Read and check a bank that may come from anywhere.

    Raises
    ------
    UserError
        Missing, damaged, another format, or shapes, dtypes or numbers that cannot be a bank's.
    """
    if not path.is_file():
        raise FileError(
            path, "no such file; a model that adapts needs its bank beside it: copy both files"
        )
    tensors, metadata = read_safetensors(path)
    found = metadata.get("format", "missing")
    check_format(
        path,
        found,
        FORMAT,
        f"not a bank that this version reads (format '{brief(found)}', not '{FORMAT}'); export "
        "the model again",
    )
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise FileError(path, f"'{brief(name)}' holds NaN or inf; copy or export it again")
    try:
        bank = _parse(tensors, metadata)
        check_bank(bank)
    except DAMAGE as error:
        raise FileError(path, f"damaged bank ({brief(error)}); copy or export it again") from error
    return bank


def _parse(tensors: dict[str, Array], metadata: dict[str, str]) -> Bank:
    floats = cast("dict[str, Floats]", tensors)
    check_numbers({name: tensors[name] for name in tensors if not name.startswith("clean.")})
    names = tuple(json.loads(metadata["names"]))
    head = read_head(tensors)
    return Bank(
        names=names,
        mixer=None if names in ((NO_PROMPT,), (FOLDED,)) else _parse_mixer(tensors, metadata),
        initial=floats["initial"],
        head=head,
        sha256=metadata["sha256"],
        clean=read_statistics(tensors, *head.weight.shape),
    )


def _parse_mixer(tensors: dict[str, Array], metadata: dict[str, str]) -> BankKeysValues:
    floats = cast("dict[str, Floats]", tensors)
    return replace(
        mixer_without(tensors, metadata),
        keys=floats["keys"],
        values=floats["values"],
        gram=tensors["gram"].astype(np.float64),
    )


def check_bank(bank: Bank) -> None:
    """Refuse a bank whose parts do not fit each other: `ValueError`."""
    entries = len(bank.names)
    if not entries or not all(isinstance(name, str) for name in bank.names):
        raise ValueError("'names' holds no names")
    shapes: list[tuple[str, object, object]] = [
        ("initial", bank.initial.shape, (entries,)),
    ]
    if bank.mixer is not None:
        shapes += _shapes_of(bank.mixer, entries - bank.gated, bank.head.weight.shape[1])
    for what, shape, wanted in shapes:
        if shape != wanted:
            raise ValueError(f"'{what}' is {shape}, not {wanted}")
    if bank.initial.min() < 0 or abs(float(bank.initial.sum()) - 1) > TOLERANCE:
        raise ValueError("'initial' is no mix: not below 0, with the sum 1")


def _shapes_of(
    mixer: BankKeysValues, prompts: int, features: int
) -> list[tuple[str, object, object]]:
    """List each part of a mixer with what it is and what it has to be."""
    (sources, layers, tokens, width), own = mixer.keys.shape, mixer.width
    return [
        ("keys", sources, prompts),
        ("values", mixer.values.shape, mixer.keys.shape),
        ("gram", mixer.gram.shape, (layers, tokens, sources, sources)),
        ("key_bias", mixer.key_bias.shape, (layers, width)),
        ("head.weight", features, 2 * own if features == 2 * own else own),
        *shared_shapes(mixer, layers),
    ]
