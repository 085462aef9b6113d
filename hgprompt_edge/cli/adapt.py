"""`hgedge adapt`: on the device, move the mixing weights and nothing else; no PyTorch needed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.device.adapters import note_old_adapter
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    fail,
    note,
    out,
    print_json,
    reports_errors,
)
from hgprompt_edge.cli.shared.left_out import as_rows, note_left_out
from hgprompt_edge.cli.shared.opened import one_task
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.cli.state import as_dict

if TYPE_CHECKING:
    from hgprompt_edge.adapt.model import Adapted


BIAS_HINT = "if the images show all classes alike, try again with --head bias"


class Method(str, Enum):
    """How the mix is learned."""

    GRADIENT = "gradient"
    CMA = "cma"


class Moving(str, Enum):
    """What of the head moves with the mix."""

    NONE = "none"
    BIAS = "bias"
    WEIGHTS = "weights"


@reports_errors
def adapt(
    model: Annotated[
        Path, typer.Option(help="Model, or device folder, that `hgedge export --adapt` wrote.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Images that the device has seen: one folder a class, or any folder with "
            "--unlabelled.",
        ),
    ],
    task: options.DeviceTask = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Learn without labels, more carefully.")
    ] = False,
    expect_classes: Annotated[
        str | None,
        typer.Option(
            help="Classes that the images can show, separated by commas (default: all). Judged by "
            "clean images of these.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="State folder (default: MODEL.state).", show_default=False),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="cma: forwards only, without the graph of the gradient.")
    ] = Method.GRADIENT,
    head: Annotated[
        Moving | None,
        typer.Option(
            help="What of the head also moves (default: none; where no mix can move, bias).",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of each descent (default: 30, cma 12).", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Time to learn in; judging takes a little more.", show_default=False
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Images to use at most.", show_default=False)
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images in memory at a time (default: by size).", show_default=False
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads (default: all that the process may use).", show_default=False
        ),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Re-learn the mixing weights from images that the device has seen, and keep what is better."""
    from hgprompt_edge.adapt.model import Request, adapt_model, prepare
    from hgprompt_edge.adapt.optimizer import Settings
    from hgprompt_edge.runtime.learned import open_history, state_folder
    from hgprompt_edge.runtime.predictor import Predictor

    predictor = Predictor(one_task(model, task), threads=threads)
    bank, folder = predictor.require_bank(), state or state_folder(predictor.path)
    moving = head or (Moving.NONE if bank.mixer is not None else Moving.BIAS)
    budget = steps or (30 if method is Method.GRADIENT else 12)
    request = Request(
        data,
        unlabelled=unlabelled,
        expected=None if expect_classes is None else _names(expect_classes, predictor.classes),
        forward_only=method is Method.CMA,
        settings=Settings(steps=budget, seconds=seconds, head=moving.value),
        limit=images,
        micro_batch=micro_batch,
        threads=threads,
        seed=seed,
    )
    # First: what is refused here leaves no folder behind.
    seen, expected, learner = prepare(predictor, request)
    with open_history(folder, bank, predictor.metadata) as history:
        try:
            with history.exclusive(), progress_bar() as report:
                adapted = adapt_model(predictor, history, request, seen, expected, learner, report)
        except KeyboardInterrupt:
            number = history.current().id
            fail(f"interrupted; version {number} is in force ({folder})", EXIT_INTERRUPTED)
    note_left_out(adapted.seen.unreadable, adapted.seen.left_out)
    if twice := adapted.seen.twice:
        first, second = twice[0]
        note(
            f"{len(twice):,} image(s) are copies, pixel for pixel, of images of another class, "
            f"such as {second} of {first}; give each picture one class"
        )
    if absent := adapted.seen.absent(predictor.classes):
        note(f"no images of some classes, for which the new weights were not judged: {absent}")
    tries_more = (
        unlabelled
        and expect_classes is None
        and moving is Moving.NONE
        and adapted.proposal.steps > 0
    )
    _print_adapted(adapted, bank.names, folder, json, BIAS_HINT if tries_more else None)
    if not adapted.proposal.verdict.taken:
        raise typer.Exit(EXIT_CHECK_FAILED)
    note_old_adapter(predictor.path)


def _names(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Split a list with commas; a class whose name holds a comma can be given by itself."""
    if text in classes:
        return (text,)
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print_adapted(
    adapted: Adapted, names: Sequence[str], folder: Path, json: bool, hint: str | None
) -> None:
    proposal, verdict = adapted.proposal, adapted.proposal.verdict
    reason = as_options(verdict.reason)
    if json:
        document = {"taken": verdict.taken, "reason": reason, **verdict.figures}
        spent = {"steps": proposal.steps, "seconds": round(proposal.seconds, 2)}
        unused = {
            "unreadable": as_rows(adapted.seen.unreadable),
            "files_left_out": as_rows(adapted.seen.left_out),
            "two_classes": [list(pair) for pair in adapted.seen.twice],
        }
        version = {"version": as_dict(adapted.after, names)}
        print_json({**document, **spent, **version, **unused})
        return
    if len(names) > 1:  # else there is no mix, and the head has moved
        out.print(_mix_table(adapted, names))
    out.print(
        f"{proposal.images} images, {proposal.steps} steps, {proposal.seconds:.0f} s: {reason}",
        soft_wrap=True,
    )
    if "accuracy_before" in verdict.figures:
        before, after = (verdict.figures[f"accuracy_{when}"] for when in ("before", "after"))
        low, high = (100 * verdict.figures[f"change_{end}"] for end in ("low", "high"))
        out.print(
            f"held-out accuracy {100 * before:.1f} % -> {100 * after:.1f} %, a change of "
            f"{100 * (after - before):+.1f} points ({low:+.1f} to {high:+.1f})",
            soft_wrap=True,
        )
    if verdict.taken:
        out.print(f"version {adapted.after.id} is in force ({folder})", soft_wrap=True)
    else:
        out.print(f"the weights stay as they were, version {adapted.after.id}")
        if hint is not None:
            out.print(hint)


def _mix_table(adapted: Adapted, names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt")
    for title in ("before", "learned"):
        table.add_column(title, justify="right")
    rows = zip(names, adapted.before.weights, adapted.proposal.weights.mix, strict=True)
    for name, before, learned in rows:
        table.add_row(name, f"{before:.3f}", f"{learned:.3f}")
    return table
