"""`hgedge compare --image-sizes`: what prompts are worth beside more pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hgprompt_edge.cli.shared.console import note, note_choice, out, print_json
from hgprompt_edge.cli.shared.leaks import leaks_document, note_leaks
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.cli.shared.text import as_json
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.backbones.fastest import Choice
    from hgprompt_edge.compare.image_sizes import Point
    from hgprompt_edge.data import Task
    from hgprompt_edge.images.preprocess import Preprocessing
    from hgprompt_edge.prompts.bank import PromptBank

IGNORED = {"methods": "--methods", "tune_steps": "--tune-steps", "image_size": "--image-size"}
"""Options of `compare` that mean nothing with `--image-sizes`."""


def parse_sizes(
    first: Sequence[str] | None, more: Sequence[str] | None, given: Sequence[str]
) -> tuple[int, ...]:
    """Image sizes in ascending order; none where `--image-sizes` was not given.

    Parameters
    ----------
    first, more
        Values of the option, and the words behind them: an option takes one value, so that
        `--image-sizes 112 168 224` leaves two words over.
    given
        Other options that were given, by the names of `IGNORED`.

    Raises
    ------
    UserError
        Words without the option, words that are no numbers, or options that would be ignored.
    """
    if not first:
        if more:
            raise UserError(
                f"{more[0]}: unexpected argument; `hgedge compare` takes only options (sizes "
                "follow --image-sizes)"
            )
        return ()
    if given:
        raise UserError(f"{given[0]}: cannot be combined with --image-sizes; leave one of them out")
    words = [word for text in (*first, *(more or ())) for word in text.split(",") if word]
    for word in words or first:
        if not (word.isascii() and word.isdecimal()):
            raise UserError(
                f"--image-sizes {word}: must be whole numbers of pixels, such as 112 168 224"
            )
    return tuple(sorted({int(word) for word in words}))


def check_sizes(sizes: Sequence[int], backbone: Backbone) -> None:
    """Refuse sizes that the backbone's patches do not fill.

    Raises
    ------
    UserError
        A size is no multiple of the patch.
    """
    patch = backbone.patch_size
    for size in sizes:
        if size < patch or size % patch:
            raise UserError(
                f"--image-sizes {size}: {backbone.name} cuts images into patches of {patch} "
                f"pixels; give multiples of {patch}"
            )


def load_sizes(
    sizes: Sequence[int],
    home: Backbone,
    name: str | None,
    checkpoint: Path | None,
    rule: str | None = None,
) -> dict[int, Backbone]:
    """Load the backbone for each size; that of the bank, `home`, is there already.

    Images of all sizes are normalised as those of `home` and, where a `rule` is given, made square
    by it.

    Raises
    ------
    UserError
        A size is no multiple of the patch, or the backbone cannot be built for other sizes.
    """
    from hgprompt_edge.backbones.load import load_backbone

    check_sizes(sizes, home)
    found = {home.image_size: home}
    for size in sizes:
        if size not in found:
            other = load_backbone(name, checkpoint=checkpoint, image_size=size)
            found[size] = other.normalized(home.normalization).with_rule(rule)
    own = home.image_size
    note(
        f"the mix is learned at {own} px, the size of the prompts; at other sizes the same mix is "
        "used, with heads fitted at that size"
    )
    return found


def compare_sizes(
    bank: PromptBank,
    backbones: Mapping[int, Backbone],
    choice: Choice,
    load: Callable[..., Task],
    path: Path,
    seed: int,
    json: bool,
    began: float,
) -> None:
    """Measure, write the JSON file and the figure, print the table.

    Parameters
    ----------
    backbones
        By image size, that of the bank among them.
    choice
        How images run through them.
    load
        Reads the images for a preprocessing, as `FoundTask.load`.
    began
        When the command did, by `time.perf_counter`.
    """
    from hgprompt_edge.compare.contest import Budget
    from hgprompt_edge.compare.estimate import sizes_passes
    from hgprompt_edge.compare.image_sizes import measure_sizes
    from hgprompt_edge.compare.image_sizes_figure import draw_image_sizes
    from hgprompt_edge.files import write_bytes
    from hgprompt_edge.fit.checks import leave_out_family
    from hgprompt_edge.runtime.cpu import cpu_name

    tasks: list[str] = []
    said: dict[str, Any] = {}
    budget = Budget()
    with progress_bar() as report:

        def read(rule: Preprocessing) -> Task:
            name = f"reading images at {rule.image_size} px"
            task = load(rule, progress=lambda done, total: report(name, done, total))
            if not tasks:
                home = backbones[bank.image_size]
                usable, _ = leave_out_family(bank, task)
                passes = sizes_passes(task, usable, home, backbones.keys(), budget)
                note_choice(choice, passes)
                note_left_out(task.unreadable, task.left_out)
                said.update(of_task(task), **leaks_document(note_leaks(task)))
            tasks.append(task.name)
            return task

        running = {
            size: backbone.with_compute(choice.compute) for size, backbone in backbones.items()
        }
        points = measure_sizes(bank, running, read, budget=budget, seed=seed, progress=report)
    document = {
        "task": tasks[0],
        "seed": seed,
        "learned_at": bank.image_size,
        "cpu": cpu_name(),
        "rows": [_row(point) for point in points],
    }
    write_bytes(path, f"{as_json(document)}\n".encode())
    figure = path.with_suffix(".png")
    draw_image_sizes(tasks[0], points, figure)
    if json:
        print_json({**document, **said, "figure": str(figure)})
        return
    out.print(_table(points))
    out.print("latency: one image, one thread of this CPU, float32; ratio to the first row")
    out.print(f"{path}, {figure} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)


def _row(point: Point) -> dict[str, Any]:
    """Return what the JSON file says of a point."""
    return {
        "image_size": point.image_size,
        "folded": point.folded,
        "choice": point.choice,
        "passes": point.passes,
        "pooling": point.pooling,
        "val_accuracy": point.val_accuracy,
        "accuracy": point.accuracy,
        "low": point.low,
        "high": point.high,
        "latency_ratio": round(point.ratio, 3),
        "milliseconds": round(point.milliseconds, 3),
    }


def _table(points: Sequence[Point]) -> Table:
    """Accuracy and latency of each way at each size."""
    from hgprompt_edge.artifacts.bundle import ROW_TITLES

    tested = any(point.accuracy is not None for point in points)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    columns = ["pixels", "way", "kept", "held out"]
    columns += ["test", "95 % interval"] if tested else []
    for name in (*columns, "latency", "ms"):
        left = name in ("way", "kept")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for point in points:
        kept = ROW_TITLES[point.choice] if point.passes == 1 else f"{point.passes} prompts"
        cells = [f"{100 * point.val_accuracy:.1f} %"]
        if point.accuracy is not None and point.low is not None and point.high is not None:
            cells.append(f"{100 * point.accuracy:.1f} %")
            cells.append(f"{100 * point.low:.1f} to {100 * point.high:.1f}")
        table.add_row(
            f"{point.image_size}",
            way(point.folded),
            kept if point.folded else "",
            *cells,
            f"{point.ratio:.2f}",
            f"{point.milliseconds:.1f}",
        )
    return table


def way(folded: int) -> str:
    """Name the command that a point is of."""
    if folded == 0:
        return "no prompt"
    return "fit" if folded == 1 else f"fit --folded {folded}"
