"""The figure of accuracy against latency, a line for each image size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from hgprompt_edge.compare.image_sizes import Point
from hgprompt_edge.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    drawable,
    new_figure,
    save,
    style,
)

COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE)
"""Of the image sizes, from the smallest on; further ones begin again."""


@dataclass(frozen=True)
class Spot:
    """One marker: latency as a ratio, accuracy in [0, 1] and its interval, if there is one."""

    ratio: float
    accuracy: float
    low: float | None = None
    high: float | None = None


def draw_image_sizes(task: str, points: Sequence[Point], path: Path) -> None:
    """Write a PNG of `measure_sizes`' points: test images, or held-out ones without a test part."""
    curves: dict[int, list[Spot]] = {}
    for point in points:
        tested = point.accuracy is not None
        accuracy = point.accuracy if point.accuracy is not None else point.val_accuracy
        spot = Spot(point.ratio, accuracy, point.low, point.high)
        curves.setdefault(point.image_size, []).append(spot)
    with style():
        figure = new_figure(7, 5)
        axes = figure.subplots()
        draw_curves(axes, curves)
        part = "test images, 95 % interval over them" if tested else "held-out images"
        axes.set_title(drawable(f"{task}: {part}"), parse_math=False)
        save(figure, path)


def draw_curves(axes: Axes, curves: Mapping[int, Sequence[Spot]]) -> None:
    """Draw accuracy against latency; each image size has a spot for 0, 1, 2 and 3 prompts."""
    for index, (size, spots) in enumerate(sorted(curves.items())):
        colour = COLOURS[index % len(COLOURS)]
        x, y = [spot.ratio for spot in spots], [100 * spot.accuracy for spot in spots]
        axes.plot(x, y, "o-", color=colour, label=f"{size} px", markersize=4)
        for spot in spots:
            if spot.low is not None and spot.high is not None:
                ends = [100 * spot.low, 100 * spot.high]
                axes.plot([spot.ratio] * 2, ends, color=colour, alpha=0.3, linewidth=4)
        labels: dict[tuple[float, float], str] = {}
        for prompts, place in enumerate(zip(x, y, strict=True)):  # equal ones share a label
            labels[place] = f"{labels[place]}, {prompts}" if place in labels else f"{prompts}"
        for place, label in labels.items():
            axes.annotate(
                label, place, (4, 4), textcoords="offset points", fontsize=8, color=colour
            )
    axes.set_xlabel("latency of one image, ratio to no prompt at the smallest size")
    axes.set_ylabel("accuracy in %")
    axes.legend(title="numbers: most folded prompts", title_fontsize=8)
