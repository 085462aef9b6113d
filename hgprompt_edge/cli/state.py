"""`hgedge state`: what a device has learned, and the way back; no PyTorch needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.device.adapters import note_old_adapter
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, reports_errors
from hgprompt_edge.cli.shared.opened import one_task
from hgprompt_edge.errors import UserError
from hgprompt_edge.paths import why_not

if TYPE_CHECKING:
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.state.history import History, Version

app = typer.Typer(help="List, undo and send what a device has learned.", no_args_is_help=True)

Model = Annotated[
    Path, typer.Option(help="Model, or device folder, that `hgedge export --adapt` wrote.")
]
State = Annotated[
    Path | None, typer.Option(help="State folder (default: MODEL.state).", show_default=False)
]


@app.command()
@reports_errors
def history(
    model: Model, task: options.DeviceTask = None, state: State = None, json: options.Json = False
) -> None:
    """List the versions of the mixing weights; the one in force is marked with a star."""
    with _opened(one_task(model, task), state, read_only=True) as (_, history, names):
        _print_history(history, names, json)


@app.command()
@reports_errors
def rollback(
    model: Model,
    task: options.DeviceTask = None,
    state: State = None,
    to: Annotated[
        int | None,
        typer.Option(min=1, help="Version (default: the one before).", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Put an earlier version in force again."""
    with _opened(one_task(model, task), state) as (predictor, history, names):
        with history.exclusive():
            version = history.rollback(to)
        note(f"version {version.id} is in force: {version.method}")
        note_old_adapter(predictor.path)
        _print_history(history, names, json)


@app.command()
@reports_errors
def reset(
    model: Model,
    task: options.DeviceTask = None,
    state: State = None,
    json: options.Json = False,
) -> None:
    """Put the initial mixing weights in force again, those of the export."""
    with _opened(one_task(model, task), state) as (predictor, history, names):
        with history.exclusive():
            version = history.reset()
        note(f"version {version.id} is in force: {version.method}")
        note_old_adapter(predictor.path)
        _print_history(history, names, json)


@app.command()
@reports_errors
def send(
    file: Annotated[Path, typer.Argument(help="File to write; it holds no images.")],
    model: Model,
    task: options.DeviceTask = None,
    state: State = None,
    json: options.Json = False,
) -> None:
    """Write the version in force to a file under 1 KB, for `hgedge merge` at home."""
    with _opened(one_task(model, task), state, read_only=True) as (predictor, history, _):
        _send(history, predictor, file, json)


@contextmanager
def _opened(
    model: Path, state: Path | None, *, read_only: bool = False
) -> Iterator[tuple[Predictor, History, Sequence[str]]]:
    from hgprompt_edge.runtime.learned import open_history, state_folder
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.state.history import FILE

    predictor = Predictor(model)
    bank = predictor.require_bank()
    if state is not None and not state.is_dir():
        raise UserError(
            f"--state {state}: {why_not(state, 'folder')}; name the folder that `hgedge adapt` "
            "printed"
        )
    folder = state or state_folder(predictor.path)
    if not read_only and not (folder / FILE).exists():
        raise UserError(f"{folder}: nothing was learned here, so there is nothing to go back to")
    with open_history(folder, bank, predictor.metadata, read_only=read_only) as history:
        yield predictor, history, bank.names


def _send(history: History, predictor: Predictor, path: Path, json: bool) -> None:
    from hgprompt_edge.state.update_file import write_update

    bank, version = predictor.require_bank(), history.current()
    if bank.why_fixed:
        raise UserError(
            f"{path}: nothing to send, since {bank.why_fixed}; its head stays on the device"
        )
    data = write_update(
        path,
        version,
        bank.sha256,
        bank.names,
        classes=predictor.classes,
        device=history.device(),
        resize=predictor.preprocessing.crop_mode,
    )
    if not version.images:
        note(
            f"version {version.id} ({version.method}) was learned from no images, so "
            "`hgedge merge` will leave it out"
        )
    if json:
        print_json({"file": str(path), "version": as_dict(version, bank.names), "bytes": data})
        return
    out.print(f"{path}: version {version.id} in {data} bytes, no images", soft_wrap=True)


def _print_history(history: History, names: Sequence[str], json: bool) -> None:
    current, versions = history.current(), history.versions()
    if json:
        print_json([{**as_dict(v, names), "in_force": v.id == current.id} for v in versions])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("version", "from", "when (UTC)", "method", "images", "mix"):
        table.add_column(title)
    for version in versions:
        mark = "*" if version.id == current.id else ""
        when = datetime.fromtimestamp(version.time, timezone.utc).strftime("%Y-%m-%d %H:%M")
        parent = "" if version.parent is None else str(version.parent)
        mix = _largest(version, names)
        table.add_row(f"{version.id}{mark}", parent, when, version.method, str(version.images), mix)
    out.print(table)


def as_dict(version: Version, names: Sequence[str]) -> dict[str, object]:
    """Make the JSON document of a version."""
    return {
        "id": version.id,
        "parent": version.parent,
        "time": version.time,
        "method": version.method,
        "images": version.images,
        "weights": {n: round(float(w), 6) for n, w in zip(names, version.weights, strict=True)},
        "figures": version.figures,
    }


def _largest(version: Version, names: Sequence[str]) -> str:
    """Name the three largest mixing weights."""
    largest = sorted(zip(version.weights, names, strict=True), reverse=True)[:3]
    return ", ".join(f"{name} {weight:.2f}" for weight, name in largest if weight > 0.005)
