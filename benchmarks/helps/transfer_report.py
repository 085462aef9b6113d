"""docs/results/transfer.md from the rows of `benchmarks/transfer.py`."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from helps.few_images import few_images
from helps.transfer_rows import (
    EACH_SOURCE,
    METHODS,
    OTHER_FAMILIES,
    OTHER_MIXES,
    RESULTS,
    USUAL,
    Groups,
    difference,
    percent,
)
from shared.pages import fill, listed, table
from shared.rows import Rows, distinct, mean_of, read_rows, select
from shared.targets import BACKBONE, GROUPS, SOURCE_TASKS, TEST, TOY, TRAIN

CLAIMS = (
    ("best_source", "none"),
    ("hgprompt", "best_source"),
    ("hgprompt", "none"),
    ("hgprompt", "uniform"),
    ("hgprompt", "soup"),
    *(("hgprompt", other) for other in OTHER_MIXES),
    ("hgprompt_guarded", "none"),
    ("hgprompt_guarded", "best_source"),
    ("hgprompt", "prediction_average"),
    ("two_folded", "prediction_average"),
    ("three_folded", "none"),
    ("three_folded", "best_source"),
    ("three_folded", "prediction_average"),
    ("tune_guarded", "none"),
    ("tune_guarded", "hgprompt_guarded"),
    ("tune_guarded", "prediction_average"),
    ("tune_guarded", "three_folded"),
)
SOURCES = """

## Each source's task as the target

The second protocol: {described}. The tasks of the bank's own prompts, each with the prompts of \
other families. The images that judge are others than the prompts were trained on, but the bank \
was built with these tasks in view.

{accuracies}

{differences}
"""
UNIONS = {
    "natural": ("natural",),
    "specialised": ("specialised",),
    "structured": ("structured",),
    "specialised and structured": ("specialised", "structured"),
    "all": tuple(GROUPS),
}
SIGNIFICANT = 0.05
SOURCE_UNIONS = {**{name: (name,) for name in SOURCE_TASKS}, "all": tuple(SOURCE_TASKS)}


def report() -> str:
    """Make the page: accuracies and differences; for few images, too, and each source's task."""
    both = read_rows(RESULTS)
    rows = select(both, protocol=OTHER_FAMILIES, backbone=BACKBONE)
    sources = select(both, protocol=EACH_SOURCE, backbone=BACKBONE)
    many, toy = select(rows, per_class=None), select(both, backbone=TOY)
    return fill(
        "transfer",
        described=described(many),
        train=TRAIN,
        test=TEST,
        accuracies=accuracies(many),
        differences=differences(many, toy=toy),
        worse=worse(many),
        few=few_images(rows).rstrip("\n"),
        sources=each_source(sources).rstrip("\n"),
    )


def each_source(rows: Rows) -> str:
    """Section of the second protocol, where it has rows."""
    if not rows:
        return ""
    return SOURCES.format(
        described=described(rows),
        accuracies=accuracies(rows, SOURCE_TASKS),
        differences=differences(rows, SOURCE_TASKS, SOURCE_UNIONS),
    )


def described(rows: Rows) -> str:
    seeds = distinct(rows, "seed")
    targets = len(distinct(rows, "task"))
    return f"{targets} targets, seed{'s' * (len(seeds) > 1)} {listed(seeds)}"


def accuracies(rows: Rows, groups: Groups = GROUPS) -> str:
    """Table of the targets, in the order of the groups, by the methods that were run."""
    methods = [name for name in USUAL if select(rows, method=name)]
    return table(
        ("target", "seeds", *(METHODS[name] for name in methods)),
        (
            (
                f"{name} ({group})",
                len(distinct(found, "seed")),
                *(percent(select(found, method=method)) for method in methods),
            )
            for group, names in groups.items()
            for name in names
            if (found := select(rows, task=name))
        ),
    )


def differences(
    rows: Rows, groups: Groups = GROUPS, unions: Groups = UNIONS, toy: Rows | None = None
) -> str:
    """Table of `CLAIMS`, by group and in all; on the `toy` backbone in all only."""
    methods = {row["method"] for row in rows}
    columns = {
        title: [name for group in union for name in groups[group]]
        for title, union in unions.items()
    }
    everything = [name for names in groups.values() for name in names]
    return table(
        ("difference", *columns, *([f"`{TOY}`, all"] if toy else [])),
        (
            (
                f"{METHODS[one]} - {METHODS[other]}",
                *(difference(rows, names, one, other) for names in columns.values()),
                *([difference(toy, everything, one, other)] if toy else []),
            )
            for one, other in CLAIMS
            if methods >= {one, other}
        ),
    )


def worse(rows: Rows) -> str:
    """Say where what `fit` keeps is below no prompt, and whether any of that is beyond chance.

    One-sided tests of two proportions, a target each. Rows do not say which images were right; a
    paired test would be sharper. The smallest probability times their number is Holm's first step.
    """
    below, chances = [], []
    for name in distinct(rows, "task"):
        none, kept = (select(rows, task=name, method=m) for m in ("none", "hgprompt_guarded"))
        before, after = (mean_of(found, "accuracy") for found in (none, kept))
        both = (before + after) / 2
        error = np.sqrt(2 * both * (1 - both) / none[0]["test"])
        chances.append(float(norm.sf((before - after) / error)))
        if after < before:
            below.append((100 * (before - after), name))
    least = min(1.0, min(chances) * len(chances))
    count, (points, name) = len(chances), max(below, default=(0.0, "none"))
    verdict = "None is" if least >= SIGNIFICANT else "Some are"
    return (
        f"What `fit` keeps is below no prompt on {len(below)} of {count} targets, at most by "
        f"{points:.1f} points ({name}). {verdict} significant: the smallest p-value (two "
        f"proportions, unpaired, corrected for {count} targets by Holm) is {least:.2f}."
    )
