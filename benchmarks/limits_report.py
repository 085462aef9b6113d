"""The section of docs/results/adapt.md on what better condition prompts could bring back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rows import read_rows
from shares import percent, recovered, with_interval

from hgprompt_edge.data.conditions import CONDITIONS

LIMITS = Path(__file__).parent / "results" / "condition_limits.json"
OWN, EXACT = "condition_prompt", "exact_prompt"
TEXT = """## What better condition prompts could bring back

`benchmarks/condition_limits.py`
([rows](../../benchmarks/results/condition_limits.json)) trains a prompt with the recipe of `hgedge
condition` under the very shift it is measured under, severity 3 and seed 0, on all training images:
what no bundle has, since nobody knows the shift before. Accuracy of validation images under a head
that was fitted on the training images alone: before, with the bundle's condition prompt alone, with
the prompt for this shift. Nothing is mixed here, so it is no upper bound: digits in the dark reach
more with a mix (above, on test images).

{table}

{longer}With the condition prompts {own} of all that is lost comes back, with prompts for the very
shifts {exact}; intervals over tasks and shifts, one seed. They are furthest apart under {widest}.
Sums in another order move single figures, too: over three severities the condition prompt for
digits in the dark gives 59.7 % where one thread trained it, 64.5 % where two did."""


def limits_section() -> str:
    """Write the section; empty where there are no rows."""
    rows = read_rows(LIMITS)
    if not rows:
        return ""
    usual = usual_rows(rows)
    said = [
        f"{row['task']} under {row['shift']} {100 * row['accuracy_after']:.1f} "
        f"({row['epochs']} epochs)"
        for row in rows
        if row not in usual
    ]
    own, exact = (with_interval(usual, method, CONDITIONS) for method in (OWN, EXACT))
    ahead = {
        shift: recovered(usual, EXACT, (shift,)) - recovered(usual, OWN, (shift,))
        for shift in CONDITIONS
    }
    return TEXT.format(
        table="\n".join(table(usual)),
        longer=f"Trained for another time: {', '.join(said)}.\n" if said else "",
        own=own,
        exact=exact,
        widest=max(ahead, key=lambda shift: ahead[shift]),
    )


def usual_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those trained for as long as `hgedge condition` trains."""
    usual = {row["epochs"] for row in rows if row["method"] == OWN}
    return [row for row in rows if row["epochs"] in usual]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines: a row a shift, a column a task."""
    tasks = sorted({row["task"] for row in rows})
    yield f"| shift | {' | '.join(tasks)} | condition prompt | a prompt for this shift |"
    yield "|" + " --- |" * (len(tasks) + 3)
    found = {(row["task"], row["shift"], row["method"]): row for row in rows}
    for shift in CONDITIONS:
        cells = []
        for task in tasks:
            own, exact = (found[task, shift, method] for method in (OWN, EXACT))
            values = own["accuracy_before"], own["accuracy_after"], exact["accuracy_after"]
            cells.append(", ".join(f"{100 * value:.1f}" for value in values))
        shares = [percent(recovered(rows, method, (shift,))) for method in (OWN, EXACT)]
        yield f"| {' | '.join([shift, *cells, *shares])} |"
