"""What a device can mix of a bundle: its entries in the order of the weights, and where to start.

`N` sources, `C` condition prompts, `M` entries, `L` layers, `T` tokens, width `D`.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bundle import Bundle, Floats
from hgprompt_edge.artifacts.folded import pack_more
from hgprompt_edge.errors import UserError
from hgprompt_edge.files import sha256_arrays

NO_PROMPT, TUNED, LEARNED = "no prompt", "tuned", "learned"
"""Entries of a device's bank that are no sources."""
FOLDED = "folded prompts"
"""The only entry of the bank of several folded prompts: their mixing weights are fixed."""

Halves = npt.NDArray[np.float16]


def has_prompts(bundle: Bundle) -> bool:
    """Whether a device can mix anything: prompts that it was fitted with, or condition prompts.

    Several folded prompts it cannot: their mixing weights are fixed.
    """
    return not bundle.more and bool(bundle.sources or bundle.conditions or bundle.choice == TUNED)


class Entry(NamedTuple):
    """One of the prompts that a device mixes: `tokens [L, T, D]`, None for no prompt at all."""

    name: str
    tokens: Halves | None


def bank_entries(bundle: Bundle) -> tuple[Entry, ...]:
    """List what a device mixes, in the order of its weights `[M]`.

    First what was chosen, where it is no mix with one weight a source (`no prompt`, `tuned`, or
    `learned` with a weight for each layer), then the sources, then the condition prompts. Of
    several folded prompts there is the one entry `FOLDED`.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    if bundle.more:
        return (Entry(FOLDED, None),)
    sources = kept_sources(bundle) if bundle.sources else None
    chosen = chosen_entry(bundle)
    entries = [] if chosen is None else [chosen]
    named = (
        (bundle.sources, sources),
        (bundle.conditions, bundle.condition_tokens),
    )
    for about, tokens in named:
        if tokens is not None:
            names = (source["name"] for source in about)
            entries += [Entry(name, prompt) for name, prompt in zip(names, tokens, strict=True)]
    return tuple(entries)


def chosen_entry(bundle: Bundle) -> Entry | None:
    """Return what was chosen as an entry of its own; None where its weights are over the sources.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    if bundle.more:
        return Entry(FOLDED, None)
    if bundle.choice == "none":
        return Entry(NO_PROMPT, None)
    if bundle.choice == "tuned" and bundle.prompt is not None:
        return Entry(TUNED, bundle.prompt.astype(np.float16))
    if bundle.choice == "learned" and bundle.learned_mix.by_layer:
        # From what was learned, since `prompt` moves on when devices are merged.
        learned = bundle.learned_mix.mix(kept_sources(bundle).astype(np.float32))
        return Entry(LEARNED, learned.astype(np.float16))
    return None


def kept_sources(bundle: Bundle) -> Halves:
    """Return the sources that a bundle holds, `[N, L, T, D]`.

    Raises
    ------
    UserError
        It holds none.
    """
    if bundle.source_tokens is None:
        raise UserError(
            f"the bundle of {bundle.task} does not hold its sources, so there is nothing for a "
            "device to mix; run `hgedge fit` with `keep_sources=True`"
        )
    return bundle.source_tokens


def bank_sha256(bundle: Bundle) -> str:
    """Hexadecimal sha256 over names, shapes and float16 tokens of the bank, in its order.

    What a device learned is weights over this bank, and means nothing over another one. Of several
    folded prompts it is over all of them and their heads.

    Raises
    ------
    UserError
        The bundle does not hold its sources.
    """
    digest = hashlib.sha256()
    for name, tokens in bank_entries(bundle):
        shape = None if tokens is None else list(tokens.shape)
        digest.update(json.dumps([name, shape]).encode())
        if tokens is not None:
            digest.update(np.ascontiguousarray(tokens, "<f2").tobytes())
    if bundle.more:
        digest.update(sha256_arrays(pack_more(bundle.folded)).encode())
    return digest.hexdigest()


def bank_tokens(bundle: Bundle) -> tuple[tuple[str, ...], Floats]:
    """Names `[M]` of `bank_entries`, and tokens `[P, L, T, D]` of those that have any.

    Raises
    ------
    UserError
        The bundle does not hold its sources, or its prompts are shallow.
    """
    if bundle.mode == "shallow":
        raise UserError(
            f"the bundle of {bundle.task} holds shallow prompts, whose tokens every image "
            "transforms; only deep prompts can be mixed on a device"
        )
    entries = bank_entries(bundle)
    tokens = [entry.tokens for entry in entries if entry.tokens is not None]
    names = tuple(entry.name for entry in entries)
    return names, np.stack(tokens).astype(np.float32) if tokens else np.zeros(
        (0, 0, 0, 0), np.float32
    )


def initial_mix(bundle: Bundle) -> Floats:
    """Weights `[M]` over `bank_entries` that a device starts from.

    What many devices came to, where they have been asked, else what fit chose.
    """
    if bundle.initial is not None:
        return bundle.initial
    names, _ = bank_tokens(bundle)
    initial = np.zeros(len(names), np.float32)
    if chosen_entry(bundle) is not None:
        initial[0] = 1
    else:
        initial[: len(bundle.weights)] = bundle.weights / bundle.weights.sum()
    return initial
