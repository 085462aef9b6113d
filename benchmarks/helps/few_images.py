"""Few training images: the section of docs/results/transfer.md, and its figure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from helps.transfer_rows import METHODS, difference
from hgprompt_edge.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    legend_below,
    new_figure,
    save,
    style,
)
from shared.pages import ROOT, listed, table
from shared.rows import Rows, distinct, mean_of, select
from shared.targets import GROUPS

CLAIMS = (
    ("hgprompt_guarded", "none"),
    ("two_folded", "none"),
    ("three_folded", "none"),
    ("hgprompt", "best_source"),
    ("hgprompt_guarded", "best_source"),
)
SECTION = """
## Few training images

So many images a class, a fifth of which validates (at least one). {targets} targets have five; \
{few} also have other numbers of images, and are in the figure. Differences in points, as above.

![Test accuracy by training images a class](../images/{figure})

{differences}
"""
FIGURE = ROOT / "docs" / "images" / "few-images.png"
COLOURS = {
    "none": GREY,
    "best_source": GREEN,
    "hgprompt": PURPLE,
    "hgprompt_guarded": ORANGE,
    "three_folded": BLUE,
}
"""Of the methods in the figure."""


def few_images(rows: Rows) -> str:
    """Make the section from the rows of all targets; empty where none has few images."""
    rows = [row for row in rows if row["per_class"]]
    if not rows:
        return ""
    heads = ("images a class", "seeds", "difference", *GROUPS, "all")
    return SECTION.format(
        targets=len(distinct(select(rows, per_class=5), "task")),
        few=listed(measured_often(rows)),
        figure=FIGURE.name,
        differences=table(heads, lines(rows)),
    )


def lines(rows: Rows) -> Iterator[tuple[object, ...]]:
    """Lines of the table: each number of images, each difference, by group and over all."""
    everything = [name for names in GROUPS.values() for name in names]
    for count in distinct(rows, "per_class"):
        found = select(rows, per_class=count)
        for one, other in CLAIMS:
            yield (
                count,
                listed(distinct(found, "seed")),
                f"{METHODS[one]} - {METHODS[other]}",
                *(difference(found, names, one, other) for names in GROUPS.values()),
                difference(found, everything, one, other),
            )


def measured_often(rows: Rows) -> list[str]:
    """Targets that have rows for every number of images a class."""
    counts = distinct(rows, "per_class")
    names = distinct(rows, "task")
    return [name for name in names if distinct(select(rows, task=name), "per_class") == counts]


def draw_few(rows: Rows) -> None:
    """Write a PNG: mean accuracy over the targets that have every number of images a class."""
    rows = [row for row in rows if row["per_class"]]
    counts, names = distinct(rows, "per_class"), measured_often(rows)
    if len(counts) < 2 or not names:
        return
    with style():
        figure = new_figure(7, 4.5)
        axes = figure.subplots()
        for method, colour in COLOURS.items():
            found = select(rows, method=method)
            means = [
                np.mean(
                    [mean_of(select(found, task=n, per_class=count), "accuracy") for n in names]
                )
                for count in counts
            ]
            axes.plot(counts, 100 * np.array(means), "o-", color=colour, label=METHODS[method])
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("training images a class")
        axes.set_title(f"test accuracy in %, mean of {', '.join(names)}")
        axes.grid(color="#e6e9ec")
        legend_below(axes)
        save(figure, FIGURE)


def mean_over(rows: Rows, names: list[str]) -> float:
    """Mean accuracy in percent over the targets, each the mean over its seeds."""
    return 100 * float(np.mean([mean_of(select(rows, task=name), "accuracy") for name in names]))
