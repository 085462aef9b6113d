"""A bundle with the mix that many devices came to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hgprompt_edge.artifacts.bank_entries import LEARNED, bank_entries, chosen_entry
from hgprompt_edge.artifacts.bundle import Bundle, Floats, check_one_prompt
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.fit.assemble import token_logits

MIXES = ("best_source", "uniform", "learned")


def is_folded(bundle: Bundle) -> bool:
    """Whether the bundle's prompt is a mix of its bank, so that another mix can take its place.

    A share of no prompt at all is not exact in one prompt, and a tuned prompt is itself an entry of
    the bank: folding would change the bank that devices have learned over.
    """
    return bundle.choice in MIXES


def with_mix(bundle: Bundle, mix: Floats, about: dict[str, Any], backbone: Backbone) -> Bundle:
    """Put a mix over the bank in force: what devices start from and, where exact, the prompt.

    Parameters
    ----------
    mix
        `[M]` over `bank_entries`.
    about
        Where it comes from; goes into the objective under `merged`.
    backbone
        The bundle's; gives the logits of the probe images under the new prompt.

    Raises
    ------
    UserError
        The backbone has other weights than the bundle's.
    """
    check_one_prompt(bundle, "merge")
    backbone = as_fitted(bundle, backbone)
    updated = replace(bundle, initial=mix, objective={**bundle.objective, "merged": about})
    if not is_folded(bundle):
        return updated
    shares = zip(mix.astype(np.float64), bank_entries(bundle), strict=True)
    tokens = [share * entry.tokens for share, entry in shares if entry.tokens is not None]
    prompt = np.sum(tokens, axis=0).astype(np.float32)
    return replace(
        updated,
        prompt=prompt,
        weights=_over_sources(bundle, mix),
        probe_logits=token_logits(backbone, bundle.probe_images, prompt, bundle.head),
    )


def _over_sources(bundle: Bundle, mix: Floats) -> Floats:
    """Weights `[N]` or `[N, L]` of the sources in a mix `[M]` over the bank's entries."""
    count, chosen = len(bundle.sources), chosen_entry(bundle)
    if chosen is None or chosen.name != LEARNED:
        return mix[:count]
    own: Floats = mix[0] * bundle.learned_weights + mix[1 : count + 1, None]
    return own
