"""docs/ADAPT.md and its figure, drawn from benchmarks/results/adapt.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rows import read_rows

from hgprompt_edge.device.guard import (
    MAX_RISE,
    MIN_AGREEMENT,
    MIN_CLASSES,
    MIN_DISTANCE,
    MIN_ERRORS,
    MIN_ERRORS_NEARER,
    MIN_FALL,
    SLACK,
    judge_clean,
)
from hgprompt_edge.tasks.conditions import CONDITIONS, SHIFTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "adapt.json"
PAGE = ROOT / "docs" / "ADAPT.md"
GUARD = ROOT / "benchmarks" / "results" / "guard.json"
GUARD_RETURN = ROOT / "benchmarks" / "results" / "guard_return.json"
GUARD_LABELLED = ROOT / "benchmarks" / "results" / "guard_labelled.json"
LEAST_LOSS = 0.02
"""Shares of less than this are noise by noise."""
WORST = 0.5
"""Points that no case should lose."""
ERRORS = ((0, 0), (1, 1), (2, 2), (1, 0), (1.5, 1), (1.5, 0), (1.5, -1), (2, 0))
"""Standard errors asked for, and asked for where the statistics come back."""
CLASSES = (0.0, 0.5, 0.9, 1.0)
FALLS = (-np.inf, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FIGURE = ROOT / "docs" / "images" / "adapt.png"
METHODS = {
    "mix": "mix, with labels",
    "mix_sources": "mix of the sources alone",
    "head": "head alone",
    "prompt_full": "whole prompt (PyTorch)",
    "feature_mean": "feature mean, no labels",
    "mix_unlabelled": "mix, no labels",
    "mix_unlabelled_bias": "mix and bias, no labels",
    "forward_only": "tokens by CMA-ES (FOA), no labels",
}
PAGE_TEXT = """# What adapting on the device recovers

Written by `benchmarks/adapt.py` from [its rows](../benchmarks/results/adapt.json): {rows} rows,
{tasks}; {seeds}.
A device sees some labelled images a class (or 100 without labels) of a shifted test part, and is
measured on the rest of it. *Recovered* is the share of the accuracy lost to the
shift that comes back: the sum of the gains by the sum of the losses, over tasks, severities and
seeds, with a 95 % bootstrap interval over tasks and shifts. *Mean case* is the mean of the shares
of the cases that lost more than two points, in which digits, whose losses are the largest, count
as much as any. After the guard: where it keeps the old weights, nothing is recovered. The whole
prompt, the feature mean and FOA's search have no guard. FOA's makes 224 passes over the images,
eight generations.
Rows of `mix` with no `figures` (seed 1, and two and ten images a class) are of an earlier training
of the condition prompts and of a guard that asked for one standard error. Below severity 3 the
sources alone, the whole prompt and FOA's search were not run.

## Five images a class, severity 3

{table}

![Recovered accuracy by shift](images/adapt.png)

{worst}

Condition prompts were trained with other operations and parameters than the shifts have
([the module](../hgprompt_edge/tasks/conditions.py) lists both); none are for rotation and fog.

## By severity

Of what a shift with a condition prompt costs, on the seeds and tasks that have all of them:

{by_severity}

## By number of images

Severity 3, shifts with a condition prompt:

{by_images}

## By task

Accuracy under the guard, severity 3, five images a class, mean of the seeds:

{details}

## The guard with labels

New weights are taken where the log-loss of images that were held out falls by more than so many
standard errors of the difference, accuracy does not fall, and the statistics of the features do not
go far. Where those statistics come back, by the bounds of the next section, that is evidence of its
own, and the labels have to say less. How much was chosen on validation images
([rows](../benchmarks/results/guard_labelled.json) of `benchmarks/guard_labelled.py`): five images a
class, {labelled_severities}, heads that were fitted on the training images alone, measured on the
other validation images. Points, mean over all cells with what is not taken as none, and how often
the log-loss of the measured images rises:

{labelled}

## The guard without labels

Its bounds were chosen on validation images ([rows](../benchmarks/results/guard.json) of
`benchmarks/guard.py`): severities 3 and 1, {guard_tasks}, heads that
were fitted on the training images alone. New weights are taken where the distance of the
features' statistics from those of clean images is {min_distance:g} or more and falls by a share of
it under the new mix. Mean gain in points over all cells, with what is not taken as none, and that
of the worst that is taken:

{guard}

By the effective number of classes that are predicted, of that under the factory weights:

{classes}

This bound was 0.5 until test images showed a case that all bounds let pass, with condition prompts
of an earlier training: digits under mild noise lost 2.7 points while predictions fell on fewer
classes.

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
bias, too, but on weather4 eight to ten points less than the mix alone, as the bias takes the mean
to that of all classes; so it moves on request only (severity 3; points over all classes):

{half}

A device that has adapted goes back to the factory weights where images look clean under these, and
under the weights in force do not, by the same two bounds. `benchmarks/guard_return.py`
([rows](../benchmarks/results/guard_return.json)), validation images, {tasks}: in force is nine
tenths of each condition prompt. Points of going back over staying, mean and worst where it does,
and the mean where it does not:

{returns}

It never leaves a prompt while its condition lasts. Where it stays in daylight, the prompt in force
costs a point on average, 5.5 at worst (flowers17, the prompt for casts): too little for the bounds.
"""


def write_report() -> None:
    rows = whole(read_rows(RESULTS))
    if not rows:
        return
    usual = [row for row in rows if row["images_per_class"] in (5, None)]
    severe = [row for row in usual if row["severity"] == 3]
    labelled = [row for row in rows if row["severity"] == 3 and row["images_per_class"]]
    guarded = read_rows(GUARD_LABELLED)
    severities = sorted({row["severity"] for row in guarded})
    draw(severe)
    PAGE.write_text(
        PAGE_TEXT.format(
            rows=len(rows),
            tasks=", ".join(sorted({row["task"] for row in rows})),
            seeds=f"seed {', '.join(map(str, sorted({row['seed'] for row in rows})))}",
            table="\n".join(table(severe)),
            worst="\n".join(worst(rows)),
            by_severity="\n".join(by_value(usual, "severity", "severity {}")),
            by_images="\n".join(by_value(labelled, "images_per_class", "{} images a class")),
            guard="\n".join(guard_table(read_rows(GUARD))),
            clean="\n".join(clean_table(read_rows(GUARD))),
            classes="\n".join(classes_table(read_rows(GUARD))),
            starts="\n".join(start_table(read_rows(GUARD))),
            returns="\n".join(return_table(read_rows(GUARD_RETURN))),
            half="\n".join(half_table(read_rows(GUARD))),
            labelled="\n".join(labelled_table(guarded)),
            labelled_severities=f"severities {' and '.join(map(str, severities))}",
            guard_tasks=", ".join(sorted({row["task"] for row in read_rows(GUARD)})),
            min_distance=MIN_DISTANCE,
            details="\n".join(details(severe)),
        )
    )


def whole(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a method where it was run on fewer tasks under a shift than ours was."""

    def tasks(method: str, shift: str) -> int:
        return len({r["task"] for r in rows if (r["method"], r["shift"]) == (method, shift)})

    return [row for row in rows if tasks(row["method"], row["shift"]) >= tasks("mix", row["shift"])]


def recovered(rows: list[dict[str, Any]], method: str, shifts: tuple[str, ...]) -> float:
    """Sum of the gains by the sum of the losses; NaN where there are none."""
    chosen = [row for row in rows if row["method"] == method and row["shift"] in shifts]
    lost = sum(row["accuracy_clean"] - row["accuracy_before"] for row in chosen)
    gained = sum(row["accuracy_after"] - row["accuracy_before"] for row in chosen)
    return gained / lost if lost > 0 else float("nan")


def mean_share(rows: list[dict[str, Any]], method: str) -> float:
    """Mean over the cases with a condition prompt that lost something of what each recovers."""
    shares = [
        (row["accuracy_after"] - row["accuracy_before"])
        / (row["accuracy_clean"] - row["accuracy_before"])
        for row in rows
        if row["method"] == method
        and row["shift"] in CONDITIONS
        and row["accuracy_clean"] - row["accuracy_before"] > LEAST_LOSS
    ]
    return float(np.mean(shares)) if shares else float("nan")


def with_interval(rows: list[dict[str, Any]], method: str, shifts: tuple[str, ...]) -> str:
    """Recovered share with its interval; seeds of a task and shift are drawn together."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] == method and row["shift"] in shifts:
            groups.setdefault((row["task"], row["shift"]), []).append(row)
    if not groups:
        return "-"
    rng, cells = np.random.default_rng(0), list(groups.values())
    drawn = [
        recovered([row for i in rng.integers(len(cells), size=len(cells)) for row in cells[i]],
                  method, shifts)
        for _ in range(2000)
    ]  # fmt: skip
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{percent(recovered(rows, method, shifts))} ({100 * low:.0f} to {100 * high:.0f})"


def by_value(rows: list[dict[str, Any]], key: str, title: str) -> list[str]:
    """Recovered share of each method by the value of a key, a column a value."""
    values = sorted({row[key] for row in rows})
    if len(values) == 1:
        return [f"Only {title.format(values[0])} was run."]
    lines = [f"| recovered | {' | '.join(title.format(value) for value in values)} |"]
    lines.append("| --- |" + " --- |" * len(values))
    for method in METHODS:
        shared = shared_rows(rows, method, key, values)
        cells = [percent(recovered(shared[value], method, CONDITIONS)) for value in values]
        if any(shared.values()):
            lines.append(f"| {METHODS[method]} | {' | '.join(cells)} |")
    return lines


def shared_rows(
    rows: list[dict[str, Any]], method: str, key: str, values: list[Any]
) -> dict[Any, list[dict[str, Any]]]:
    """Rows of a method by the value of a key: the tasks, shifts and seeds with all it was run at.

    Values at which it was not run have none.
    """
    found: dict[Any, dict[tuple[Any, ...], dict[str, Any]]] = {value: {} for value in values}
    for row in rows:
        if row["method"] == method:
            found[row[key]][row["task"], row["shift"], row["seed"]] = row
    cases = [set(rows) for rows in found.values() if rows]
    common = set.intersection(*cases) if len(cases) > 1 else set()
    return {
        value: [rows[case] for case in sorted(common)] if rows else []
        for value, rows in found.items()
    }


def present(rows: list[dict[str, Any]]) -> list[str]:
    return [shift for shift in SHIFTS if any(row["shift"] == shift for row in rows)]


def percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f} %"


def table(rows: list[dict[str, Any]]) -> list[str]:
    shifts = present(rows)
    lines = [
        f"| recovered | {' | '.join(shifts)} | with a condition prompt | mean case | without | "
        "seeds |",
        "| --- |" + " --- |" * (len(shifts) + 4),
    ]
    without = tuple(shift for shift in SHIFTS if shift not in CONDITIONS)
    for method, title in METHODS.items():
        if not any(row["method"] == method for row in rows):
            continue
        cells = [percent(recovered(rows, method, (shift,))) for shift in shifts]
        cells += [
            with_interval(rows, method, CONDITIONS),
            percent(mean_share(rows, method)),
            with_interval(rows, method, without),
            str(len({row["seed"] for row in rows if row["method"] == method})),
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def worst(rows: list[dict[str, Any]]) -> list[str]:
    """List the worst change of each guarded method, in points."""
    lines = []
    for method in ("mix", "mix_unlabelled", "mix_unlabelled_bias"):
        changes = [
            (100 * (row["accuracy_after"] - row["accuracy_before"]), row)
            for row in rows
            if row["method"] == method
        ]
        if not changes:
            continue
        change, row = min(changes, key=lambda pair: pair[0])
        taken = sum(row["taken"] for _, row in changes)
        harmed = sum(change < -WORST for change, _ in changes)
        mean = np.mean([change for change, _ in changes])
        free = [
            100 * (row["accuracy_unguarded"] - row["accuracy_before"])
            for row in rows
            if row["method"] == method
        ]
        lines.append(
            f"- {METHODS[method]}: taken over in {taken} of {len(changes)} cases, {mean:+.1f} "
            f"points on average, worst {change:+.1f} ({row['task']}, {row['shift']}, severity "
            f"{row['severity']}), by more than {WORST:g} points worse in {harmed}; all that was "
            f"proposed, taken or not, is worth {np.mean(free):+.1f}, worst {min(free):+.1f}."
        )
    return lines


def details(rows: list[dict[str, Any]]) -> list[str]:
    titles = ("mix", "mix_unlabelled", "mix_unlabelled_bias", "feature_mean", "prompt_full")
    lines = [f"| task | shift | clean | before | {' | '.join(METHODS[t] for t in titles)} |"]
    lines.append("| --- |" + " --- |" * (3 + len(titles)))
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        cell = found.setdefault((row["task"], row["shift"]), {})
        cell.setdefault(row["method"], []).append(row)
    for (task, shift), cell in sorted(found.items()):
        if "mix" not in cell:
            continue
        values = [mean(cell["mix"], f"accuracy_{when}") for when in ("clean", "before")]
        values += [mean(cell.get(title, []), "accuracy_after") for title in titles]
        shown = " | ".join("-" if np.isnan(value) else f"{100 * value:.1f}" for value in values)
        lines.append(f"| {task} | {shift} | {shown} |")
    return lines


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows])) if rows else float("nan")


def guard_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the bound on the fall, the other bounds as they are."""
    rules = [("any" if np.isinf(fall) else f"{100 * fall:.0f} %", fall, MIN_CLASSES)
             for fall in FALLS]  # fmt: skip
    return rule_table("falls by", rules, rows)


def classes_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the bound on the predicted classes, the other bounds as they are."""
    return rule_table("classes left", [(f"{c:g}", MIN_FALL, c) for c in CLASSES], rows)


def rule_table(
    title: str, rules: list[tuple[str, float, float]], rows: list[dict[str, Any]]
) -> list[str]:
    """Mean gain over the cells, that of the worst cell taken, and how many are taken."""
    rows = [row for row in rows if row["severity"] and row["classes"] == "all"]
    titles = (title, "taken", "mix", "worst", "taken", "mix and bias", "worst")
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * 6]
    for name, fall, classes in rules:
        cells = [f"**{name}**" if (fall, classes) == (MIN_FALL, MIN_CLASSES) else name]
        for head in ("mix", "bias"):
            taken = [row for row in rows if is_sound(row, head, fall, classes)]
            gains = [100 * (row[f"accuracy_{head}"] - row["accuracy_before"]) for row in taken]
            cells += [f"{len(taken)} of {len(rows)}", f"{sum(gains) / len(rows):+.1f}"]
            cells.append(f"{min(gains, default=0):+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def labelled_table(rows: list[dict[str, Any]]) -> list[str]:
    """Gain in points by the standard errors asked for: mean over the cells, worst, how many taken.

    "Loss rises" counts the cells taken in which the log-loss of the measured images is higher.
    """
    titles = ("falls by", "where statistics come back", "taken", "mean", "worst",
              f"worse by > {WORST:g}", "loss rises")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for rule in ERRORS:
        mark = "**" if rule == (MIN_ERRORS, MIN_ERRORS_NEARER) else ""
        taken = [row for row in rows if would_take(row, *rule)]
        gains = [100 * (row["accuracy_after"] - row["accuracy_before"]) for row in taken]
        cells = [f"{mark}{errors:g} errors{mark}" for errors in rule]
        cells += [
            f"{len(taken)} of {len(rows)}",
            f"{sum(gains) / max(len(rows), 1):+.1f}",
            f"{min(gains, default=0):+.1f}",
            str(sum(gain < -WORST for gain in gains)),
            str(sum(row["gain"] < 0 for row in taken)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def would_take(row: dict[str, Any], errors: float, nearer: float) -> bool:
    """Whether the guard takes what a cell learned when it asks for so many standard errors."""
    gain = row["held_out_log_loss_before"] - row["held_out_log_loss_after"]
    before, after = (row[f"held_out_distance_{when}"] for when in ("before", "after"))
    asked = nearer if before >= MIN_DISTANCE and after <= (1 - MIN_FALL) * before else errors
    return bool(
        gain > asked * row["held_out_standard_error"]
        and row["held_out_accuracy_after"] >= row["held_out_accuracy_before"]
        and after <= MAX_RISE * before + SLACK
    )


def is_sound(
    row: dict[str, Any], key: str, fall: float = MIN_FALL, classes: float = MIN_CLASSES
) -> bool:
    """Whether the guard without labels takes the `mix`, the `start`, or either with its bias.

    Statistics that were off have come back by so much, predictions stay on so many of the classes,
    and are not surer and different.
    """
    mix = "start" if key.startswith("start") else "mix"
    before = row["distance_before"]
    if before < MIN_DISTANCE or not row[f"distance_{mix}"] <= (1 - fall) * before:
        return False
    spread = row[f"{key}_classes_after"] >= classes * row[f"{key}_classes_before"]
    surer = row[f"{key}_entropy_after"] < row[f"{key}_entropy_before"]
    return bool(spread and not (surer and row[f"{key}_agreement"] < MIN_AGREEMENT))


def start_table(rows: list[dict[str, Any]]) -> list[str]:
    """Where the end of a descent is refused: what it and the start are worth, in points."""
    titles = ("task", "shift", "severity", "distance", "at the end", "at the start",
              "end", "start", "end, with bias", "start, with bias")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for row in rows:
        off = row["distance_before"] >= MIN_DISTANCE and "accuracy_start" in row
        refused = [head for head in ("mix", "bias") if off and not is_sound(row, head)]
        if not row["severity"] or not refused:
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
    """How often a device goes back to the factory weights, and what that changes, in points."""
    titles = (
        "what the device sees",
        "goes back",
        "mean",
        "worst",
        "stays",
        "going back would change",
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
            f"{min(back, default=0):+.1f} | {len(stay)} | {_mean(stay)} |"
        )
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


def draw(rows: list[dict[str, Any]]) -> None:
    shifts = present(rows)
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    shown = {m: title for m, title in METHODS.items() if any(row["method"] == m for row in rows)}
    width = 0.8 / len(shown)
    for index, (method, title) in enumerate(shown.items()):
        shares = [100 * recovered(rows, method, (shift,)) for shift in shifts]
        places = np.arange(len(shifts)) + (index - len(shown) / 2 + 0.5) * width
        axes.bar(places, np.clip(shares, -60, 110), width, label=title)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(np.arange(len(shifts)), shifts)
    axes.set_ylabel("recovered of what was lost (%)")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center")
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    plt.close(figure)
