"""How the bounds of the guard were chosen: the sections of docs/results/adapt.md about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rows import read_rows

from hgprompt_edge.adapt.guard.evidence import least_shown
from hgprompt_edge.adapt.guard.labelled import MAX_RISE, MIN_ERRORS, SLACK, errors_asked
from hgprompt_edge.adapt.guard.unlabelled import (
    MIN_AGREEMENT,
    MIN_CLASSES,
    MIN_DISTANCE_IN_FORCE,
    judge_clean,
)
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, MIN_FALL, comes_back

RESULTS = Path(__file__).parent / "results"
GUARD = RESULTS / "guard.json"
GUARD_RETURN = RESULTS / "guard_return.json"
GUARD_LABELLED = RESULTS / "guard_labelled.json"
STUDY, UNLABELLED = RESULTS / "adapt.json", "mix_unlabelled"
"""Rows of the study on test images, and its method without labels."""
CLASSES_OF = {"digits": 10, "dtd10": 10, "flowers17": 17, "weather4": 4}
WORST = 0.5
"""Points that no case should lose."""
SHARE = "in proportion"
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
SPREADS, LITTLE = (np.inf, 1.4, 1.3, 1.2, 1.1, 1.0), 0.1
"""Tried: a fall by this share is enough where so many times as many classes are predicted."""
FALLS = (-np.inf, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
TEXT = """## The guard with labels

New weights are taken where the log-loss of images that were held out falls by more than so many
standard errors of the difference, accuracy does not fall, and the statistics of the features do not
go far. Where those statistics come back, that is evidence of its own, and the labels have to say
less: nothing beyond a fall where they come back by the bounds of the next section (*at once*), or
ever less on the way there (*in proportion*). How much was chosen on validation images
([rows](../../benchmarks/results/guard_labelled.json) of `benchmarks/guard_labelled.py`):
{labelled_cells}; the bundles of the study, under heads that were fitted on the training images
alone, measured on the other validation images. Points, mean over all cells with what is not taken
as none, and how often the log-loss of the measured images rises, which is the finer measure: one
image is {image} points. Chosen is what gains most of what makes no cell worse; what two
errors give on the test images had been seen by then.

{labelled}

## The guard without labels

Its bounds were chosen on validation images ([rows](../../benchmarks/results/guard.json) of
`benchmarks/guard.py`): severities 3 and 1, {tasks}, heads that
were fitted on the training images alone. New weights are taken where the distance of the
features' statistics from those of clean images is {min_distance:g} or more and falls by a share of
it under the new mix. Mean gain in points over all cells, with what is not taken as none, and that
of the worst that is taken:

{guard}

By the effective number of classes that are predicted, of that under the initial weights:

{classes}

It was 0.5 until test images showed a case that this refuses, on bundles of an older fit: digits
under mild noise lost 2.7 points while predictions fell on fewer classes. Here it refuses one on
validation images.

Whether the images show enough of the classes is asked before anything is learned: half of those
that clean images show, by the effective number of predicted classes under the initial weights.
Images of a few classes and a shift under which predictions fall on a few classes look alike, and
nothing tells them apart without labels. Of the cells above this refuses {few_taken} that the other
bounds take, and {few_half} where the device sees half of the classes; what each was worth, in
points: {few_gains}. In the table of the study at the top of this page it refuses {few_study}
(with the bias {few_study_bias}), all of which had gained: {few_study_gains}.
Where images do show all classes, labels help; where they show a few, `--expect-classes` names
these, and statistics of clean images of just these are what is compared. All tables of this page
are under this rule, but for the next one.

Predictions that had collapsed and spread again could be evidence, too. Tried: a fall of {little} is
enough where so many times as many classes are predicted as under the initial weights, with the
model's own head:

{spreads}

It was not kept, since nothing tells predictions that have collapsed from images of a few classes:
of clean images it takes {clean_taken} of the cells below, at {clean_worst} points in the worst,
where the bounds that are kept take none.

A descent on statistics alone can leave a sound mix for one under which they are better still and
the predictions wrong. Where the bounds refuse its end, they judge the mix that it began at, most
of the way to the prompt that brings the statistics nearest. Cells whose end is refused, with what
a device would gain from either, in points, and those of the starts that are taken in bold:

{starts}

Clean images of a few classes have other statistics than those of all, so a distance alone does not
say that something has changed, and a bias that follows their mean does harm. No mix brings it back,
though, so nothing is taken here (severity 0 of the same rows; points are what it would have cost):

{clean}

Where something has changed and the device sees half of the classes, what is taken gains with the
bias, too, but on weather4 ten to fourteen points less than the mix alone, as the bias takes the
mean to that of all classes; so it moves on request only (severity 3; points over all classes):

{half}

A device that has adapted goes back to the initial weights where images look clean under these, and
under the weights in force do not: where the distance falls by the share above, from {in_force:g} or
more. `benchmarks/guard_return.py` ([rows](../../benchmarks/results/guard_return.json)), validation
images, {tasks}: in force is nine tenths of each condition prompt.
Points of going back over staying, mean and worst where it does, mean and best where it does not:

{returns}

Where it stays in daylight, the last two columns are what the prompt in force costs there. By how
far the statistics have to be off under the weights in force (points over all cells):

{return_bounds}
"""


def guard_sections() -> str:
    """Fill the sections with the tables of the rows."""
    rows, labelled = read_rows(GUARD), read_rows(GUARD_LABELLED)
    return TEXT.format(
        labelled="\n".join(labelled_table(labelled)),
        labelled_cells=labelled_cells(labelled),
        image=" to ".join(f"{100 / count:.1f}" for count in image_counts(labelled)),
        tasks=", ".join(sorted({row["task"] for row in rows})),
        min_distance=MIN_DISTANCE,
        guard="\n".join(guard_table(rows)),
        classes="\n".join(classes_table(rows)),
        little=f"{100 * LITTLE:.0f} %",
        spreads="\n".join(spread_table(rows)),
        **clean_by_spread(rows),
        **few_classes(rows),
        starts="\n".join(start_table(rows)),
        clean="\n".join(clean_table(rows)),
        half="\n".join(half_table(rows)),
        in_force=MIN_DISTANCE_IN_FORCE,
        returns="\n".join(return_table(read_rows(GUARD_RETURN))),
        return_bounds="\n".join(return_bounds_table(read_rows(GUARD_RETURN))),
    )


def labelled_cells(rows: list[dict[str, Any]]) -> str:
    """Say which images a class, severities and seeds the rows have."""
    kinds: dict[tuple[int, int], set[int]] = {}
    for row in rows:
        kinds.setdefault((row["images_per_class"], row["seed"]), set()).add(row["severity"])
    return "; ".join(
        f"{images} images a class, seed {seed}, severities {', '.join(map(str, sorted(found)))}"
        for (images, seed), found in sorted(kinds.items(), reverse=True)
    )


def image_counts(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Give the largest and the smallest number of images that a cell is measured on."""
    counts = [row["images"] for row in rows]
    return max(counts), min(counts)


def guard_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the bound on the fall, the other bounds as they are."""
    rules = [("any" if np.isinf(fall) else f"{100 * fall:.0f} %", {"fall": fall})
             for fall in FALLS]  # fmt: skip
    return rule_table("falls by", rules, rows)


def shows_few(task: str, classes: float) -> bool:
    """Whether the images of a task show too few classes, by the effective number predicted."""
    return classes < least_shown(CLASSES_OF[task])


def judged_now(row: dict[str, Any]) -> dict[str, Any]:
    """Row of the study as the guard of today takes it: nothing from images of too few classes."""
    classes = row["figures"].get("classes_before") if row["method"].startswith(UNLABELLED) else None
    if not row["taken"] or classes is None or not shows_few(row["task"], classes):
        return row
    return row | {"taken": False, "accuracy_after": row["accuracy_before"]}


def few_classes(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Say what the rule about the classes that images show refuses of what the others take."""
    found = {}
    for part in ("all", "half"):
        of_part = [row for row in rows if row["severity"] and row["classes"] == part]
        taken = [row for row in of_part if is_sound(row, "mix", shown=False)]
        found[part] = taken, [row for row in taken if not is_sound(row, "mix")]
    gains = [
        f"{row['task']} {row['shift']} {100 * (row['accuracy_mix'] - row['accuracy_before']):+.1f}"
        for _, refused in found.values()
        for row in refused
    ]
    study: dict[str, list[dict[str, Any]]] = {}
    counts = {}
    for method in (UNLABELLED, f"{UNLABELLED}_bias"):
        taken = [row for row in read_rows(STUDY) if row["method"] == method and row["taken"]]
        study[method] = [row for row in taken if not judged_now(row)["taken"]]
        counts[method] = f"{len(study[method])} of {len(taken)}"
    changes = [100 * (row["accuracy_after"] - row["accuracy_before"]) for row in study[UNLABELLED]]
    span = f"{min(changes):.0f} to {max(changes):.0f} points"
    names = sorted({f"{row['task']} under {row['shift']}" for row in study[UNLABELLED]})
    return {
        "few_taken": f"{len(found['all'][1])} of {len(found['all'][0])}",
        "few_half": f"{len(found['half'][1])} of {len(found['half'][0])}",
        "few_gains": ", ".join(gains),
        "few_study": counts[UNLABELLED],
        "few_study_bias": counts[f"{UNLABELLED}_bias"],
        "few_study_gains": f"{', '.join(names)}, by {span}",
    }


def clean_by_spread(rows: list[dict[str, Any]]) -> dict[str, str]:
    """How many cells of clean images are taken where predictions spread, and the worst change."""
    taken = {
        spread: [
            100 * (row["accuracy_mix"] - row["accuracy_before"])
            for row in rows
            if not row["severity"] and is_sound(row, "mix", spread=spread, shown=False)
        ]
        for spread in SPREADS[1:]
    }
    counts = [len(found) for found in taken.values()]
    return {
        "clean_taken": f"{min(counts)} to {max(counts)}",
        "clean_worst": f"{min(min(found) for found in taken.values()):+.1f}",
    }


def classes_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the bound on the predicted classes, the other bounds as they are."""
    return rule_table("classes left", [(f"{c:g}", {"classes": c}) for c in CLASSES], rows)


def spread_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the bound on how predictions spread, the other bounds as they are."""
    names = ["never" if np.isinf(spread) else f"{spread:g} times" for spread in SPREADS]
    rules = [
        (name, {"spread": spread, "shown": False})
        for name, spread in zip(names, SPREADS, strict=True)
    ]
    return rule_table("where classes grow", rules, rows)


def rule_table(
    title: str, rules: list[tuple[str, dict[str, float]]], rows: list[dict[str, Any]]
) -> list[str]:
    """Mean gain over the cells, that of the worst cell taken, and how many are taken."""
    rows = [row for row in rows if row["severity"] and row["classes"] == "all"]
    titles = (title, "taken", "mix", "worst", "taken", "mix and bias", "worst")
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * 6]
    chosen = {"fall": MIN_FALL, "classes": MIN_CLASSES, "spread": np.inf, "shown": True}
    for name, rule in rules:
        kept = chosen | rule | {"shown": True} == chosen
        cells = [f"**{name}**" if kept else name]
        for head in ("mix", "bias"):
            taken = [row for row in rows if is_sound(row, head, **rule)]
            gains = [100 * (row[f"accuracy_{head}"] - row["accuracy_before"]) for row in taken]
            cells += [f"{len(taken)} of {len(rows)}", f"{sum(gains) / len(rows):+.1f}"]
            cells.append(f"{min(gains, default=0):+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def labelled_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the standard errors asked for: mean over the cells, worst, how many taken.

    "Loss rises" counts the cells taken in which the log-loss of the measured images is higher.
    """
    titles = ("falls by", "less where statistics come back", "taken", "mean", "worst",
              f"worse by > {WORST:g}", "loss rises")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for errors, less in RULES:
        mark = "**" if (errors, less) == (MIN_ERRORS, SHARE) else ""
        taken = [row for row in rows if would_take(row, errors, less)]
        gains = [100 * (row["accuracy_after"] - row["accuracy_before"]) for row in taken]
        cells = [
            f"{mark}{errors:g} errors{mark}",
            f"{mark}{less}{mark}",
            f"{len(taken)} of {len(rows)}",
            f"{sum(gains) / max(len(rows), 1):+.1f}",
            f"{min(gains, default=0):+.1f}",
            str(sum(gain < -WORST for gain in gains)),
            str(sum(row["gain"] < 0 for row in taken)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def would_take(row: dict[str, Any], errors: float, less: str) -> bool:
    """Whether the guard takes what a cell learned when it asks for so many standard errors."""
    gain = row["held_out_log_loss_before"] - row["held_out_log_loss_after"]
    before, after = (row[f"held_out_distance_{when}"] for when in ("before", "after"))
    share = errors_asked((before, after)) / MIN_ERRORS
    asked = errors * {"no": 1, "at once": bool(share), SHARE: share}[less]
    return bool(
        gain > asked * row["held_out_standard_error"]
        and row["held_out_accuracy_after"] >= row["held_out_accuracy_before"]
        and after <= MAX_RISE * before + SLACK
    )


def is_sound(
    row: dict[str, Any],
    key: str,
    fall: float = MIN_FALL,
    classes: float = MIN_CLASSES,
    spread: float = np.inf,
    shown: bool = True,
) -> bool:
    """Whether the guard without labels takes the `mix`, the `start`, or either with its bias.

    Statistics that were off have come back by so much, or by little where predictions spread over
    so many times as many classes; predictions stay on so many of the classes, and are not surer and
    different. Images that show too few classes teach nothing where that is asked (`shown`).
    """
    if shown and shows_few(row["task"], row["mix_classes_before"]):
        return False
    mix = "start" if key.startswith("start") else "mix"
    before = row["distance_before"]
    if row[f"{mix}_classes_after"] >= spread * row[f"{mix}_classes_before"]:
        fall = min(fall, LITTLE)
    if before < MIN_DISTANCE or not row[f"distance_{mix}"] <= (1 - fall) * before:
        return False
    many = row[f"{key}_classes_after"] >= classes * row[f"{key}_classes_before"]
    surer = row[f"{key}_entropy_after"] < row[f"{key}_entropy_before"]
    return bool(many and not (surer and row[f"{key}_agreement"] < MIN_AGREEMENT))


def start_table(rows: list[dict[str, Any]]) -> list[str]:
    """Where the end of a descent is refused: what it and the start are worth, in points."""
    titles = ("task", "shift", "severity", "distance", "at the end", "at the start",
              "end", "start", "end, with bias", "start, with bias")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for row in rows:
        off = row["distance_before"] >= MIN_DISTANCE and "accuracy_start" in row
        refused = [head for head in ("mix", "bias") if off and not is_sound(row, head)]
        if not row["severity"] or row["classes"] != "all" or not refused:
            continue
        cells = [row["task"], row["shift"], str(row["severity"])]
        cells += [f"{row[f'distance_{when}']:.2f}" for when in ("before", "mix", "start")]
        for head, start in (("mix", "start"), ("bias", "start_bias")):
            for key in (head, start):
                gain = f"{100 * (row[f'accuracy_{key}'] - row['accuracy_before']):+.1f}"
                taken = key == start and head in refused and is_sound(row, start)
                cells.append(f"**{gain}**" if taken else gain)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def return_table(rows: list[dict[str, Any]]) -> list[str]:
    """How often a device goes back to the initial weights, and what that changes, in points."""
    titles = (
        "what the device sees",
        "goes back",
        "mean",
        "worst",
        "stays",
        "going back would change",
        "at most",
    )
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    kinds = dict.fromkeys((row["severity"], row["classes"]) for row in rows)
    for severity, classes in kinds:
        cells: dict[bool, list[float]] = {True: [], False: []}
        for row in rows:
            if (row["severity"], row["classes"]) == (severity, classes):
                verdict = judge_clean(row["distance_in_force"], row["distance_factory"])
                gain = 100 * (row["accuracy_factory"] - row["accuracy_in_force"])
                cells[verdict is not None and verdict.taken].append(gain)
        back, stay = cells[True], cells[False]
        seen = f"the condition still, severity {severity}"
        if not severity:
            seen = f"clean images, {classes} of the classes"
        lines.append(
            f"| {seen} | {len(back)} of {len(back) + len(stay)} | {_mean(back)} | "
            f"{min(back, default=0):+.1f} | {len(stay)} | {_mean(stay)} | "
            f"{max(stay, default=0):+.1f} |"
        )
    return lines


def return_bounds_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points of going back by the distance under the weights in force."""
    kinds = (
        "clean images, all of the classes",
        "clean images, half of the classes",
        "the condition still",
    )
    titles = ("distance in force", *(title for kind in kinds for title in (kind, "worst")))
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for bound in IN_FORCE:
        cells = [f"**{bound:g}**" if bound == MIN_DISTANCE_IN_FORCE else f"{bound:g}"]
        for clean, classes in ((True, "all"), (True, "half"), (False, "all")):
            group = [r for r in rows if (not r["severity"], r["classes"]) == (clean, classes)]
            gains = [
                100 * (row["accuracy_factory"] - row["accuracy_in_force"])
                for row in group
                if row["distance_factory"] < MIN_DISTANCE
                and row["distance_in_force"] >= bound
                and comes_back(row["distance_in_force"], row["distance_factory"])
            ]
            cells.append(f"{sum(gains) / len(group):+.1f}, {len(gains)} of {len(group)}")
            cells.append(f"{min(gains, default=0):+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(gains: list[float]) -> str:
    return f"{np.mean(gains):+.1f}" if gains else "-"


def clean_table(rows: list[dict[str, Any]]) -> list[str]:
    """Clean images of all, half and one of the classes."""
    return case_table([row for row in rows if not row["severity"]], "classes")


def half_table(rows: list[dict[str, Any]]) -> list[str]:
    """Images of half of the classes under a shift."""
    halves = [row for row in rows if row["severity"] and row["classes"] == "half"]
    return case_table(halves, "shift")


def case_table(rows: list[dict[str, Any]], key: str) -> list[str]:
    """Cells: distances, and what the weights are worth, taken or not."""
    titles = ("task", key, "images", "distance", "under the mix", "taken", "mix", "with bias")
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for row in rows:
        cells = [row["task"], row[key], str(row["seen"])]
        cells += [f"{row[f'distance_{when}']:.3f}" for when in ("before", "mix")]
        cells.append("yes" if is_sound(row, "mix") else "no")
        for name in ("mix", "bias"):
            cells.append(f"{100 * (row[f'accuracy_{name}'] - row['accuracy_before']):+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
