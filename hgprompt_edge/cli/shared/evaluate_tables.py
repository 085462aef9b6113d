"""What `evaluate` prints: accuracies side by side; classes, confusions and mistakes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from hgprompt_edge.cli.shared.console import out

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from hgprompt_edge.evaluate.figures import ClassFigures, Figures
    from hgprompt_edge.evaluate.run import Answers, Evaluation
    from hgprompt_edge.maths.proportions import Proportion

MATRIX_CLASSES = 10
"""Of more classes the confusions are named, the most frequent first."""
NAMED_CLASSES = 20
"""Of more classes those with the lowest recall are printed; `--json` has all."""
NAMED_CONFUSIONS = 10


def print_evaluation(found: Evaluation, worst: int) -> None:
    """Print accuracies; classes, confusions and mistakes of one model, or recalls of several."""
    out.print(_accuracies(found))
    out.print()
    if len(found.answers) > 1:
        _print_recalls(found)
        return
    answers, figures = found.answers[0], found.figures[0]
    _print_classes(figures)
    _print_confusions(figures)
    if worst and (rows := answers.mistakes(worst)):
        out.print()
        out.print(_mistakes(found, answers, rows))


def _accuracies(found: Evaluation) -> Table:
    table = _table("", *(answers.model for answers in found.answers), justify="left")
    figures = found.figures
    table.add_row("accuracy", *(str(each.accuracy) for each in figures))
    if len(figures) > 1:
        changes = (_points(found.change(place)) for place in range(1, len(figures)))
        table.add_row("change in points", "", *changes)
    table.add_row("balanced accuracy", *(str(each.balanced_accuracy) for each in figures))
    errors = ((each.calibration.error, each.calibration.by_chance) for each in figures)
    table.add_row(
        "calibration error",
        *(f"{_percent(error)} ({_percent(chance)} by chance)" for error, chance in errors),
    )
    table.add_row("mean confidence", *(_percent(each.calibration.confidence) for each in figures))
    return table


def _print_classes(figures: Figures) -> None:
    table = _table("class", "images", "recall", "precision", "F1")
    here = [each for each in figures.classes if each.images or each.predicted]
    for each in _lowest(here):
        table.add_row(
            each.name,
            f"{each.images:,}",
            "" if each.recall is None else str(each.recall),
            "" if each.precision is None else _percent(each.precision),
            "" if each.f1 is None else _percent(each.f1),
        )
    out.print(table)
    _print_rest(here)


def _print_recalls(found: Evaluation) -> None:
    """Put the recalls of several models side by side, by the names of the first one's classes."""
    table = _table("class", "images", *(answers.model for answers in found.answers))
    recalls = [{e.name: e.recall for e in figures.classes} for figures in found.figures]
    here = [each for each in found.figures[0].classes if each.images]
    for each in _lowest(here):
        cells = (known.get(each.name) for known in recalls)
        table.add_row(
            each.name, f"{each.images:,}", *("" if cell is None else str(cell) for cell in cells)
        )
    out.print(table)
    _print_rest(here)


def _lowest(classes: Sequence[ClassFigures]) -> Sequence[ClassFigures]:
    """Return all classes, or of many those with the lowest recall."""
    if len(classes) <= NAMED_CLASSES:
        return classes
    ranked = sorted(classes, key=lambda each: 0.0 if each.recall is None else each.recall.value)
    return ranked[:NAMED_CLASSES]


def _print_rest(classes: Sequence[ClassFigures]) -> None:
    if (rest := len(classes) - NAMED_CLASSES) > 0:
        out.print(f"{rest:,} classes with no lower recall are left out here; --json has them")


def _print_confusions(figures: Figures) -> None:
    found = figures.confusions()
    if not found:
        return
    out.print()
    matrix = _matrix(figures)
    if matrix is not None and out.measure(matrix).maximum <= out.width:
        out.print(matrix)
        return
    table = _table("class", "taken for", justify="left")
    table.add_column("images", justify="right")
    for each in found[:NAMED_CONFUSIONS]:
        table.add_row(each.name, each.predicted, f"{each.images:,}")
    if len(found) > NAMED_CONFUSIONS:
        rest = sum(each.images for each in found[NAMED_CONFUSIONS:])
        table.add_row(f"({len(found) - NAMED_CONFUSIONS:,} other pairs)", "", f"{rest:,}")
    out.print(table)


def _matrix(figures: Figures) -> Table | None:
    """Images by class and predicted class; None where there are too many classes to read it."""
    here = [i for i, each in enumerate(figures.classes) if each.images or each.predicted]
    if len(here) > MATRIX_CLASSES:
        return None
    table = _table("class \\ taken for", *(figures.classes[i].name for i in here))
    for row in here:
        if figures.classes[row].images:
            counts = (int(figures.confusion[row, column]) for column in here)
            cells = (f"{count:,}" if count else "." for count in counts)
            table.add_row(figures.classes[row].name, *cells)
    return table


def _mistakes(found: Evaluation, answers: Answers, rows: list[int]) -> Table:
    table = _table("worst mistakes", "class", "taken for", justify="left")
    table.add_column("probability", justify="right")
    for row in rows:
        table.add_row(
            found.images[row],
            answers.classes[answers.labels[row]],
            answers.classes[answers.predicted[row]],
            _percent(float(answers.confidence[row])),
        )
    return table


def _table(first: str, *others: str, justify: JustifyMethod = "right") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify=justify)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(change: Proportion) -> str:
    """As in tables: `-0.4 (-1.1 to +0.3)`."""
    value, low, high = (100 * each for each in (change.value, change.low, change.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
