"""docs/results/adapt.md and its figure from the rows of the studies of adaptation."""

from __future__ import annotations

import numpy as np

from helps.condition_limits import limits_figures
from helps.recovered import gained, lost, of_method, recovered, with_interval
from hgprompt_edge.data.conditions import CONDITIONS, SHIFTS
from hgprompt_edge.figures.style import new_figure, save, style
from safe.guard_report import guard_figures
from safe.guard_rules import WORST, judged_now
from shared.pages import ROOT, fill, listed, percent, table
from shared.rows import Rows, distinct, mean_of, read_rows, results_file, select

RESULTS = results_file("adapt")
FIGURE = ROOT / "docs" / "images" / "adapt.png"
LEAST_LOSS = 0.02
"""Shares of less than this are noise by noise."""
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
GUARDED = ("mix", "mix_unlabelled", "mix_unlabelled_bias")
SHOWN = (*GUARDED, "feature_mean", "prompt_full")
"""Methods of the table by task."""
WITHOUT = tuple(shift for shift in SHIFTS if shift not in CONDITIONS)


def study_rows() -> Rows:
    """Rows of the study as the guard of today takes them.

    A method is left out where it was run on fewer tasks under a shift than ours was.
    """
    rows = [judged_now(row) for row in read_rows(RESULTS)]

    def tasks(method: str, shift: str) -> int:
        return len(distinct(select(rows, method=method, shift=shift), "task"))

    ran = {(row["method"], row["shift"]) for row in rows}
    whole = {(m, shift) for m, shift in ran if tasks(m, shift) >= tasks("mix", shift)}
    return [row for row in rows if (row["method"], row["shift"]) in whole]


def report() -> str:
    """Make the page."""
    rows = study_rows()
    usual = [row for row in rows if row["images_per_class"] in (5, None)]
    severe = select(usual, severity=3)
    labelled = [row for row in select(rows, severity=3) if row["images_per_class"]]
    return fill(
        "adapt",
        rows=len(rows),
        tasks=listed(distinct(rows, "task")),
        seeds=f"seed {listed(distinct(rows, 'seed'))}",
        table=by_shift(severe),
        worst="\n".join(worst(rows, m) for m in GUARDED if select(rows, method=m)),
        **goals(rows, severe),
        by_severity=by_value(usual, "severity", "severity {}"),
        by_images=by_value(labelled, "images_per_class", "{} images a class"),
        details=by_task(severe),
        **limits_figures(),
        **guard_figures(),
    )


def goals(rows: Rows, severe: Rows) -> dict[str, str]:
    """Say what the rows recover of the goals, and whether these are met."""
    labelled, *others = ([100 * gained(row) for row in select(rows, method=m)] for m in GUARDED)
    unlabelled = [change for method in others for change in method]
    worst_change = min(unlabelled, default=0)
    safe = min(labelled, default=0) >= -WORST and worst_change >= -1 and sum(unlabelled) > 0
    half = recovered(severe, "mix", CONDITIONS) >= 0.5
    return {
        "mix": percent(recovered(severe, "mix", CONDITIONS)),
        "mix_mean": percent(mean_share(severe, "mix")),
        "full": percent(recovered(severe, "prompt_full", CONDITIONS)),
        "head": percent(recovered(severe, "head", CONDITIONS)),
        "half_met": "met" if half else "missed",
        "safe_met": "met" if safe else "missed",
    }


def mean_share(rows: Rows, method: str) -> float:
    """Mean over the cases with a condition prompt that lost something of what each recovers."""
    found = [row for row in of_method(rows, method, CONDITIONS) if lost(row) > LEAST_LOSS]
    return float(np.mean([gained(row) / lost(row) for row in found])) if found else float("nan")


def by_shift(rows: Rows) -> str:
    """Recovered share of each method, a column a shift."""
    return table(
        ("recovered", *SHIFTS, "with a condition prompt", "mean case", "without", "seeds"),
        (
            (
                title,
                *(percent(recovered(rows, method, (shift,))) for shift in SHIFTS),
                with_interval(rows, method, CONDITIONS),
                percent(mean_share(rows, method)),
                with_interval(rows, method, WITHOUT),
                len(distinct(found, "seed")),
            )
            for method, title in METHODS.items()
            if (found := select(rows, method=method))
        ),
    )


def by_value(rows: Rows, key: str, title: str) -> str:
    """Recovered share of each method by the value of a key, a column a value.

    Only the tasks, shifts and seeds of a method with all values it was run at count.
    """
    values = distinct(rows, key)
    body = []
    for method, name in METHODS.items():
        found = {
            value: {
                (row["task"], row["shift"], row["seed"]): row
                for row in select(rows, method=method, **{key: value})
            }
            for value in values
        }
        ran = [set(cases) for cases in found.values() if cases]
        if len(ran) > 1:
            common = sorted(set.intersection(*ran))
            shares = [
                recovered([cases[case] for case in common if case in cases], method, CONDITIONS)
                for cases in found.values()
            ]
            body.append((name, *map(percent, shares)))
    return table(("recovered", *(title.format(value) for value in values)), body)


def worst(rows: Rows, method: str) -> str:
    """Say what a guarded method changes, and the worst of it, in points."""
    found = select(rows, method=method)
    least = min(found, key=gained)
    harmed = sum(100 * gained(row) < -WORST for row in found)
    free = [100 * (row["accuracy_unguarded"] - row["accuracy_before"]) for row in found]
    return (
        f"- {METHODS[method]}: taken over in {sum(row['taken'] for row in found)} of {len(found)} "
        f"cases, {np.mean([100 * gained(row) for row in found]):+.1f} points on average, worst "
        f"{100 * gained(least):+.1f} ({least['task']}, {least['shift']}, severity "
        f"{least['severity']}), by more than {WORST:g} points worse in {harmed}; all that was "
        f"proposed, taken or not, is worth {np.mean(free):+.1f}, worst {min(free):+.1f}."
    )


def by_task(rows: Rows) -> str:
    """Accuracies of each task under each shift."""
    body = []
    for task, shift in sorted({(row["task"], row["shift"]) for row in rows}):
        found = select(rows, task=task, shift=shift)
        mix = select(found, method="mix")
        values = [mean_of(mix, f"accuracy_{when}") for when in ("clean", "before")]
        values += [mean_of(select(found, method=method), "accuracy_after") for method in SHOWN]
        body.append((task, shift, *("-" if np.isnan(v) else f"{100 * v:.1f}" for v in values)))
    return table(("task", "shift", "clean", "before", *(METHODS[m] for m in SHOWN)), body)


def draw() -> None:
    """Draw the recovered shares of severity 3 as bars."""
    rows = [row for row in select(study_rows(), severity=3) if row["images_per_class"] in (5, None)]
    with style():
        figure = new_figure(9, 4.2)
        axes = figure.subplots()
        width = 0.8 / len(METHODS)
        for index, (method, title) in enumerate(METHODS.items()):
            shares = [100 * recovered(rows, method, (shift,)) for shift in SHIFTS]
            places = np.arange(len(SHIFTS)) + (index - len(METHODS) / 2 + 0.5) * width
            axes.bar(places, np.clip(shares, -60, 110), width, label=title)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xticks(np.arange(len(SHIFTS)), SHIFTS)
        axes.set_ylabel("recovered of what was lost (%)")
        figure.legend(ncols=4, loc="outside lower center")
        save(figure, FIGURE)
