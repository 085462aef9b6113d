"""Rows of `benchmarks/transfer.py`: protocols, methods, and differences between two methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.intervals import bootstrap
from shared.rows import Rows, mean_of, results_file, select

OTHER_FAMILIES, EACH_SOURCE = "other families", "each source"
"""Protocols: targets whose families have no prompt in the bank; the tasks of its own prompts."""
RESULTS = results_file("transfer")
Groups = Mapping[str, Sequence[str]]
"""Names of targets by group."""
USUAL = {
    "none": "no prompt",
    "best_source": "best source",
    "uniform": "uniform",
    "soup": "greedy soup",
    "prediction_average": "all averaged (N passes)",
    "hgprompt": "learned mix",
    "hgprompt_guarded": "kept by fit",
    "two_folded": "two folded",
    "three_folded": "three folded",
    "tune": "tuned",
    "tune_guarded": "kept by fit --tune",
}
"""Ways that every target is measured with, the tuned ones on some."""
OTHER_MIXES = {
    "h_only": "mix without R",
    "alignment_only": "least R",
    "spot": "SPoT",
    "gradient_free": "LoraHub",
}
METHODS = {**USUAL, **OTHER_MIXES}


def percent(rows: Rows) -> str:
    """Mean accuracy over the seeds in percent; empty without rows."""
    return f"{100 * mean_of(rows, 'accuracy'):.1f}" if rows else ""


def difference(rows: Rows, names: Sequence[str], one: str, other: str) -> str:
    """Mean difference in points over the families of the named targets, with its interval.

    Of the seeds that both methods have.
    """
    families: dict[str, list[float]] = {}
    for name in names:
        found = select(rows, task=name)
        gains = [
            100 * (row["accuracy"] - same["accuracy"])
            for row in select(found, method=one)
            for same in select(found, method=other, seed=row["seed"])
        ]
        if gains:
            families.setdefault(found[0]["family"] or name, []).append(float(np.mean(gains)))
    if not families:
        return ""
    means = [float(np.mean(values)) for values in families.values()]
    if len(means) < 3:
        return f"{np.mean(means):+.1f} ({len(means)} {'family' if len(means) == 1 else 'families'})"
    low, high = bootstrap(means)
    return f"{np.mean(means):+.1f} ({low:+.1f} to {high:+.1f}; {len(means)} families)"
