"""The section of docs/ADAPT.md on what better condition prompts could bring back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rows import read_rows

from hgprompt_edge.tasks.conditions import CONDITIONS

LIMITS = Path(__file__).parent / "results" / "condition_limits.json"
OWN, EXACT = "condition_prompt", "exact_prompt"
TEXT = """## What better condition prompts could bring back

`benchmarks/condition_limits.py`
([rows](../benchmarks/results/condition_limits.json)) trains a prompt with the recipe of `hgedge
condition` under the very shift it is measured under, severity 3 and seed 0, on all training images:
what no bundle has, since nobody knows the shift before. Accuracy of validation images under a head
that was fitted on the training images alone: before, with the bundle's condition prompt alone, with
the prompt for this shift. Nothing is mixed here, so it is no upper bound: digits in the dark reach
more with a mix (above, on test images).

{table}

{longer}With the condition prompts {own} of all that is lost comes back, with prompts for the very
shifts {exact}. One prompt has to undo casts of every colour, and it shows: that is where a prompt
for one of them is ahead the most."""


def limits_section() -> str:
    """Write the section; empty where there are no rows."""
    rows = read_rows(LIMITS)
    if not rows:
        return ""
    usual = [row for row in rows if row["epochs"] == min(row["epochs"] for row in rows)]
    longer = [row for row in rows if row not in usual]
    own, exact = (f"{100 * share(usual, name):.0f} %" for name in (OWN, EXACT))
    said = [
        f"{row['task']} under {row['shift']} {row[EXACT]:.1f} ({row['epochs']} epochs)"
        for row in longer
    ]
    sentence = f"Trained for longer: {', '.join(said)}.\n" if said else ""
    return TEXT.format(table="\n".join(table(usual)), longer=sentence, own=own, exact=exact)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines: a row a shift, a column a task."""
    tasks = sorted({row["task"] for row in rows})
    yield f"| shift | {' | '.join(tasks)} | condition prompt | a prompt for this shift |"
    yield "|" + " --- |" * (len(tasks) + 3)
    for shift in CONDITIONS:
        of = {row["task"]: row for row in rows if row["shift"] == shift}
        cells = [", ".join(f"{of[t][key]:.1f}" for key in ("before", OWN, EXACT)) for t in tasks]
        shares = [f"{100 * share(list(of.values()), name):.0f} %" for name in (OWN, EXACT)]
        yield f"| {' | '.join([shift, *cells, *shares])} |"


def share(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Part of what is lost that comes back under a prompt."""
    lost = sum(row["clean"] - row["before"] for row in rows)
    return float(sum(row[name] - row["before"] for row in rows) / lost)
