"""`hgedge adapt`: on the device, move the mixing weights and nothing else; no PyTorch needed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    fail,
    note,
    out,
    print_json,
    progress_bar,
    reports_errors,
)
from hgprompt_edge.cli.left_out import as_rows, note_left_out
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.device.adapting import Adapted
    from hgprompt_edge.device.journal import Journal, Version
    from hgprompt_edge.device.predictor import Predictor


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
    model: Annotated[Path, typer.Option(help="Model that `hgedge export --adapt` wrote.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images that the device has seen: one folder a class, or any folder with "
            "--unlabelled.",
            show_default=False,
        ),
    ] = None,
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
    history: Annotated[
        bool, typer.Option("--history", help="List what the device has learned.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the version before.")
    ] = False,
    to: Annotated[
        int | None, typer.Option(min=1, help="--rollback: to this version.", show_default=False)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to the factory weights.")] = False,
    send: Annotated[
        Path | None,
        typer.Option(
            help="Write the version in force to this file (under 1 KB, no images), for "
            "`hgedge fit --merge`.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Re-learn the mixing weights from images that the device has seen, and keep what is better."""
    from hgprompt_edge.device.adapting import bank_of
    from hgprompt_edge.device.predictor import Predictor, open_journal, state_folder

    _check_options(data, history, rollback or to is not None, reset, send)
    predictor = Predictor(model, threads=threads)
    bank, folder = bank_of(predictor), state or state_folder(model)
    asks = data is None and not (rollback or to or reset)
    if asks and state is not None and not state.exists():
        raise UserError(f"--state {state}: no such folder; name the one that `adapt` printed")
    with open_journal(folder, bank, predictor.classes, read_only=asks) as journal:
        if data is None:
            _go_back(journal, rollback or to is not None, to, reset)
            if send is not None:
                _send(journal, predictor, send, json)
                return
            _print_history(journal, bank.names, json)
            return
        from hgprompt_edge.device.adapting import Request, adapt_model
        from hgprompt_edge.device.descend import Settings

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
        try:
            with journal.exclusive(), progress_bar() as report:
                adapted = adapt_model(predictor, journal, request, report)
        except KeyboardInterrupt:
            number = journal.current().id
            fail(f"interrupted; version {number} is in force ({folder})", EXIT_INTERRUPTED)
    note_left_out(adapted.seen.unreadable, adapted.seen.left_out)
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


def _names(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Split a list with commas; a class whose name holds a comma can be given by itself."""
    if text in classes:
        return (text,)
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_options(
    data: Path | None, history: bool, back: bool, reset: bool, send: Path | None
) -> None:
    asked = {
        "--data": data is not None,
        "--history": history,
        "--rollback": back,
        "--reset": reset,
        "--send": send is not None,
    }
    given = [name for name, there in asked.items() if there]
    if not given:
        raise UserError(
            "--data: needs the folder of images to adapt to; or ask for --history, --rollback, "
            "--reset or --send"
        )
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]}: choose one of them")


def _go_back(journal: Journal, back: bool, to: int | None, reset: bool) -> None:
    if not (back or reset):
        return
    with journal.exclusive():
        version = journal.reset() if reset else journal.rollback(to)
    note(f"version {version.id} is in force: {version.method}")


def _send(journal: Journal, predictor: Predictor, path: Path, json: bool) -> None:
    from hgprompt_edge.device.adapting import bank_of
    from hgprompt_edge.device.parcel import write_parcel

    bank, version = bank_of(predictor), journal.current()
    if bank.why_fixed:
        raise UserError(f"--send: sends a mix, and {bank.why_fixed}; its head stays on the device")
    data = write_parcel(
        path,
        version,
        bank.sha256,
        bank.names,
        classes=predictor.classes,
        device=journal.device(),
    )
    if not version.images:
        note(
            f"version {version.id} ({version.method}) was learned from no images, so "
            "`hgedge fit --merge` will leave it out"
        )
    if json:
        print_json({"file": str(path), "version": _as_dict(version, bank.names), "bytes": data})
        return
    out.print(f"{path}: version {version.id} in {data} bytes, no images", soft_wrap=True)


def _print_history(journal: Journal, names: Sequence[str], json: bool) -> None:
    current, versions = journal.current(), journal.history()
    if json:
        print_json([{**_as_dict(v, names), "in_force": v.id == current.id} for v in versions])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("version", "from", "when (UTC)", "method", "images", "mix"):
        table.add_column(title)
    for version in versions:
        mark = "*" if version.id == current.id else ""
        when = datetime.fromtimestamp(version.time, timezone.utc).strftime("%Y-%m-%d %H:%M")
        parent = "" if version.parent is None else str(version.parent)
        mix = _shares(version, names)
        table.add_row(f"{version.id}{mark}", parent, when, version.method, str(version.images), mix)
    out.print(table)


def _print_adapted(
    adapted: Adapted, names: Sequence[str], folder: Path, json: bool, hint: str | None
) -> None:
    proposal, verdict = adapted.proposal, adapted.proposal.verdict
    if json:
        document = {"taken": verdict.taken, "reason": verdict.reason, **verdict.figures}
        spent = {"steps": proposal.steps, "seconds": round(proposal.seconds, 2)}
        unused = {
            "unreadable": as_rows(adapted.seen.unreadable),
            "files_left_out": as_rows(adapted.seen.left_out),
        }
        version = {"version": _as_dict(adapted.after, names)}
        print_json({**document, **spent, **version, **unused})
        return
    if len(names) > 1:  # else there is no mix, and the head has moved
        out.print(_mix_table(adapted, names))
    out.print(
        f"{proposal.images} images, {proposal.steps} steps, {proposal.seconds:.0f} s: "
        f"{verdict.reason}",
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


def _as_dict(version: Version, names: Sequence[str]) -> dict[str, object]:
    return {
        "id": version.id,
        "parent": version.parent,
        "time": version.time,
        "method": version.method,
        "images": version.images,
        "weights": {n: round(float(w), 6) for n, w in zip(names, version.weights, strict=True)},
        "figures": version.figures,
    }


def _shares(version: Version, names: Sequence[str]) -> str:
    """Name the three largest shares of a mix."""
    largest = sorted(zip(version.weights, names, strict=True), reverse=True)[:3]
    return ", ".join(f"{name} {share:.2f}" for share, name in largest if share > 0.005)
