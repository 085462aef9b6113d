"""How the bounds of the guard were chosen: tables of docs/results/adapt.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hgprompt_edge.adapt.guard.labelled import MIN_ERRORS
from hgprompt_edge.adapt.guard.unlabelled import MIN_CLASSES, MIN_DISTANCE_IN_FORCE, judge_clean
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, MIN_FALL, comes_back
from safe.guard_rules import (
    LITTLE,
    SHARE,
    UNLABELLED,
    WORST,
    is_sound,
    judged_now,
    would_take,
)
from shared.pages import listed, percent, points, table
from shared.rows import Row, Rows, distinct, read_rows, results_file, select

RULES = (
    *((errors, "no") for errors in (0.0, 1.0, 1.5, 2.0)),
    *((errors, "at once") for errors in (1.5, 2.0, 2.5)),
    *((errors, SHARE) for errors in (1.5, 2.0, 2.5, 3.0)),
)
"""Standard errors asked for, and whether fewer are where the statistics come back: none as soon as
they do as far as they must without labels, or ever fewer on the way there."""
CLASSES = (0.0, 0.5, 0.9, 1.0)
IN_FORCE = (0.1, 0.05, 0.03)
"""Distances under the weights in force from which a device goes back."""
SPREADS = (np.inf, 1.4, 1.3, 1.2, 1.1, 1.0)
FALLS = (-np.inf, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def guard_figures() -> dict[str, object]:
    """Figures of the page about adaptation."""
    rows, labelled, back = (
        read_rows(results_file(name)) for name in ("guard", "guard_labelled", "guard_return")
    )
    counts = [row["images"] for row in labelled]
    shifted = [row for row in select(rows, classes="all") if row["severity"]]
    halves = [row for row in select(rows, classes="half") if row["severity"]]
    clean = select(rows, severity=0)
    return {
        "labelled": labelled_table(labelled),
        "labelled_cells": labelled_cells(labelled),
        "image": " to ".join(f"{100 / count:.1f}" for count in (max(counts), min(counts))),
        "min_distance": MIN_DISTANCE,
        "guard": rule_table(
            "falls by", [(f, "any" if np.isinf(f) else percent(f)) for f in FALLS], "fall", shifted
        ),
        "classes": rule_table("classes left", [(c, f"{c:g}") for c in CLASSES], "classes", shifted),
        "spreads": rule_table(
            "where classes grow",
            [(s, "never" if np.isinf(s) else f"{s:g} times") for s in SPREADS],
            "spread",
            shifted,
            shown=False,
        ),
        "little": percent(LITTLE),
        **clean_by_spread(clean),
        **few_classes(shifted, halves),
        "starts": start_table(shifted),
        "clean": case_table(clean, "classes"),
        "half": case_table(halves, "shift"),
        "in_force": MIN_DISTANCE_IN_FORCE,
        "returns": return_table(back),
        "return_bounds": return_bounds_table(back),
    }


def gain(row: Row, after: str, before: str = "accuracy_before") -> float:
    return float(row[after] - row[before])


def summed(gains: Sequence[float], cells: Rows) -> str:
    """Mean gain over all cells, with what is not taken as none, in points."""
    return points(sum(gains) / len(cells))


def worst(gains: Sequence[float]) -> str:
    return points(min(gains, default=0))


def mean(gains: Sequence[float]) -> str:
    return points(float(np.mean(gains))) if gains else "-"


def labelled_cells(rows: Rows) -> str:
    """Say which images a class, severities and seeds the rows have."""
    kinds = sorted({(row["images_per_class"], row["seed"]) for row in rows}, reverse=True)
    return "; ".join(
        f"{images} images a class, seed {seed}, severities "
        f"{listed(distinct(select(rows, images_per_class=images, seed=seed), 'severity'))}"
        for images, seed in kinds
    )


def labelled_table(rows: Rows) -> str:
    """Gain by the standard errors asked for: mean over the cells, worst, how many taken.

    "Loss rises" counts the cells taken in which the log-loss of the measured images is higher.
    """
    body = []
    for errors, less in RULES:
        mark = "**" if (errors, less) == (MIN_ERRORS, SHARE) else ""
        taken = [row for row in rows if would_take(row, errors, less)]
        gains = [gain(row, "accuracy_after") for row in taken]
        body.append(
            (
                f"{mark}{errors:g} errors{mark}",
                f"{mark}{less}{mark}",
                f"{len(taken)} of {len(rows)}",
                summed(gains, rows),
                worst(gains),
                sum(100 * each < -WORST for each in gains),
                sum(row["gain"] < 0 for row in taken),
            )
        )
    heads = ("falls by", "less where statistics come back", "taken", "mean", "worst")
    return table((*heads, f"worse by > {WORST:g}", "loss rises"), body)


def rule_table(
    title: str, bounds: list[tuple[float, str]], key: str, rows: Rows, shown: bool = True
) -> str:
    """Gain by one bound, the others as they are: mean over the cells, worst, how many taken."""
    kept = {"fall": MIN_FALL, "classes": MIN_CLASSES, "spread": np.inf}[key]
    body = []
    for bound, name in bounds:
        cells = [f"**{name}**" if bound == kept else name]
        for head in ("mix", "bias"):
            taken = [row for row in rows if is_sound(row, head, shown=shown, **{key: bound})]
            gains = [gain(row, f"accuracy_{head}") for row in taken]
            cells += [f"{len(taken)} of {len(rows)}", summed(gains, rows), worst(gains)]
        body.append(cells)
    return table((title, "taken", "mix", "worst", "taken", "mix and bias", "worst"), body)


def few_classes(shifted: Rows, halves: Rows) -> dict[str, str]:
    """Say what the rule about the classes that images show refuses of what the others take."""
    found = {}
    for part, rows in (("taken", shifted), ("half", halves)):
        taken = [row for row in rows if is_sound(row, "mix", shown=False)]
        found[part] = [row for row in taken if not is_sound(row, "mix")], len(taken)
    for part, method in (("study", UNLABELLED), ("study_bias", f"{UNLABELLED}_bias")):
        taken = select(read_rows(results_file("adapt")), method=method, taken=True)
        found[part] = [row for row in taken if not judged_now(row)["taken"]], len(taken)
    study, _ = found["study"]
    changes = [100 * gain(row, "accuracy_after") for row in study]
    names = sorted({f"{row['task']} under {row['shift']}" for row in study})
    return {
        **{f"few_{part}": f"{len(rows)} of {of}" for part, (rows, of) in found.items()},
        "few_gains": listed(
            f"{row['task']} {row['shift']} {points(gain(row, 'accuracy_mix'))}"
            for part in ("taken", "half")
            for row in found[part][0]
        ),
        "few_study_gains": f"{listed(names)}, by {min(changes):.0f} to {max(changes):.0f} points",
    }


def clean_by_spread(rows: Rows) -> dict[str, str]:
    """How many cells of clean images are taken where predictions spread, and the worst change."""
    taken = [
        [
            gain(row, "accuracy_mix")
            for row in rows
            if is_sound(row, "mix", spread=spread, shown=False)
        ]
        for spread in SPREADS[1:]
    ]
    counts = [len(found) for found in taken]
    return {
        "clean_taken": f"{min(counts)} to {max(counts)}",
        "clean_worst": points(min(min(found) for found in taken)),
    }


def start_table(rows: Rows) -> str:
    """Where the end of a descent is refused: what it and the start are worth, in points."""
    body = []
    for row in rows:
        off = row["distance_before"] >= MIN_DISTANCE and "accuracy_start" in row
        refused = [head for head in ("mix", "bias") if off and not is_sound(row, head)]
        if not refused:
            continue
        cells = [row["task"], row["shift"], row["severity"]]
        cells += [f"{row[f'distance_{when}']:.2f}" for when in ("before", "mix", "start")]
        for head, start in (("mix", "start"), ("bias", "start_bias")):
            for key in (head, start):
                text = points(gain(row, f"accuracy_{key}"))
                taken = key == start and head in refused and is_sound(row, start)
                cells.append(f"**{text}**" if taken else text)
        body.append(cells)
    heads = ("task", "shift", "severity", "distance", "at the end", "at the start")
    return table((*heads, "end", "start", "end, with bias", "start, with bias"), body)


def return_table(rows: Rows) -> str:
    """How often a device goes back to the initial weights, and what that changes, in points."""
    body = []
    for severity, classes in dict.fromkeys((row["severity"], row["classes"]) for row in rows):
        cells: dict[bool, list[float]] = {True: [], False: []}
        for row in select(rows, severity=severity, classes=classes):
            verdict = judge_clean(row["distance_in_force"], row["distance_factory"])
            change = gain(row, "accuracy_factory", "accuracy_in_force")
            cells[verdict is not None and verdict.taken].append(change)
        back, stay = cells[True], cells[False]
        seen = f"the condition still, severity {severity}"
        if not severity:
            seen = f"clean images, {classes} of the classes"
        most = points(max(stay, default=0))
        count = f"{len(back)} of {len(back) + len(stay)}"
        body.append((seen, count, mean(back), worst(back), len(stay), mean(stay), most))
    heads = ("what the device sees", "goes back", "mean", "worst", "stays")
    return table((*heads, "going back would change", "at most"), body)


def return_bounds_table(rows: Rows) -> str:
    """Gain of going back by the distance under the weights in force."""
    kinds = {
        "clean images, all of the classes": select(rows, severity=0, classes="all"),
        "clean images, half of the classes": select(rows, severity=0, classes="half"),
        "the condition still": [row for row in rows if row["severity"]],
    }
    body = []
    for bound in IN_FORCE:
        cells = [f"**{bound:g}**" if bound == MIN_DISTANCE_IN_FORCE else f"{bound:g}"]
        for group in kinds.values():
            gains = [
                gain(row, "accuracy_factory", "accuracy_in_force")
                for row in group
                if row["distance_factory"] < MIN_DISTANCE
                and row["distance_in_force"] >= bound
                and comes_back(row["distance_in_force"], row["distance_factory"])
            ]
            cells += [f"{summed(gains, group)}, {len(gains)} of {len(group)}", worst(gains)]
        body.append(cells)
    heads = [title for kind in kinds for title in (kind, "worst")]
    return table(("distance in force", *heads), body)


def case_table(rows: Rows, key: str) -> str:
    """Cells: distances, and what the weights are worth, taken or not."""
    body = (
        (
            *(row["task"], row[key], row["seen"]),
            *(f"{row[f'distance_{when}']:.3f}" for when in ("before", "mix")),
            "yes" if is_sound(row, "mix") else "no",
            *(points(gain(row, f"accuracy_{name}")) for name in ("mix", "bias")),
        )
        for row in rows
    )
    heads = ("task", key, "images", "distance", "under the mix", "taken", "mix", "with bias")
    return table(heads, body)
