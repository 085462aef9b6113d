"""`hgedge monitor`: say when images no longer look like those of the task; no PyTorch needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgprompt_edge.cli.device.adapters import note_old_adapter
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    EXIT_ALARM,
    EXIT_INTERRUPTED,
    note,
    out,
    print_json,
    print_next,
    reports_errors,
)
from hgprompt_edge.cli.shared.left_out import as_rows, note_left_out
from hgprompt_edge.cli.shared.monitored import EVERY, counts, document, mix_line, news, verdict
from hgprompt_edge.cli.shared.opened import one_task
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.errors import FileError, UserError, os_reason

if TYPE_CHECKING:
    from hgprompt_edge.adapt.closed_loop import ClosedLoop, Step
    from hgprompt_edge.images.listing import LeftOut
    from hgprompt_edge.runtime.watching.monitor import Monitor, Report
    from hgprompt_edge.runtime.watching.monitored import Observed, Watched


@reports_errors
def monitor(
    model: Annotated[
        Path, typer.Option(help="Model that `hgedge export` wrote: .onnx, .xml, a device folder.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="What the device has seen since the last call: image files, or folders of them, "
            "in the order of their names; without any, say what was found so far.",
            show_default=False,
        ),
    ] = None,
    task: options.DeviceTask = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Watch a folder: take in each new image in it, until Ctrl-C.", show_default=False
        ),
    ] = None,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="Adapt to a shift without labels, under the guard, and go back when it is gone.",
        ),
    ] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was seen before.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of what was seen (default: MODEL.state).", show_default=False),
    ] = None,
    batch_size: options.BatchSize = 16,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Watch for a shift: say when images look different. Exit code 3 if they do."""
    from hgprompt_edge.images.listing import list_images
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.runtime.watching.monitor_file import read_monitor
    from hgprompt_edge.runtime.watching.monitored import (
        Watched,
        monitor_path,
        only_monitor,
        watchable,
    )

    if images and watch is not None:
        raise UserError("--watch: does not go with image files; leave one of the two out")
    if adapt and not images and watch is None:
        raise UserError("--adapt: name images to take in, or a folder with --watch")
    listing = list_images(images or [])
    if images and not listing.images:
        raise UserError(f"{listing.missing[0]}; name image files, or folders of them")
    # The initial mix, whatever was learned since: what the model knows of its images is under it.
    predictor = Predictor(one_task(model, task), threads=threads)
    reference, path = watchable(predictor), monitor_path(predictor, state)
    if adapt:
        predictor.require_bank()
    # Whoever only asks what was found neither waits for a running monitor nor makes a folder.
    alone = only_monitor(path) if images or watch is not None or reset else nullcontext()
    with alone:
        if reset:
            _forget(path)
        found = read_monitor(path, reference)
        loop = _loop(found, predictor.path, path, threads) if adapt else None
        run = Run(Watched(predictor, found, path), loop, state)
        if watch is not None:
            _watch(run, watch, json)
        unreadable, steps = _observe(run, listing.images, batch_size) if images else ([], [])
        note_left_out(unreadable, (*listing.missing, *listing.left_out))
        if json:
            unreadable += listing.missing
            done = {"steps": [_step_as_dict(step) for step in steps]} if adapt else {}
            print_json({**document(run.watched), **done, "unreadable": as_rows(unreadable)})
        else:
            for step in steps:
                out.print(_step(step), soft_wrap=True)
            _print(found.report(), run, images or ())
        if any(step.taken for step in steps):
            note_old_adapter(predictor.path)
        if found.shift is not None and not run.adapted:
            raise typer.Exit(EXIT_ALARM)


def _forget(path: Path) -> None:
    """Remove what was seen, and say so; raises `UserError` where that fails."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        reason = os_reason(error)
        raise FileError(path, f"cannot be removed ({reason}); remove it yourself") from error
    note(f"{path}: removed; the monitor has seen nothing")


@dataclass(frozen=True)
class Run:
    """A model with its monitor; with --adapt what adapts; the state folder that was named."""

    watched: Watched
    loop: ClosedLoop | None
    state: Path | None

    @property
    def adapted(self) -> bool:
        """Whether weights are in force that were learned for what was found."""
        return self.loop is not None and self.loop.moved

    def observe(
        self, files: Iterable[Path], batch_size: int
    ) -> Iterator[tuple[Observed, Step | None]]:
        """Take in files, and adapt where it is time."""
        from hgprompt_edge.runtime.watching.monitored import observe_files

        predictor, monitor = self.watched.predictor, self.watched.monitor
        before = monitor.report()
        for each in observe_files(predictor, monitor, files, batch_size):
            after = each.report
            aside = (after.skipped, after.unusable) != (before.skipped, before.unusable)
            before, step = after, None
            if self.loop is not None and each.features is not None and not aside:
                step = self.loop.saw(each.path, each.features)
            yield each, step


def _loop(found: Monitor, model: Path, path: Path, threads: int | None) -> ClosedLoop:
    from hgprompt_edge.adapt.closed_loop import ClosedLoop
    from hgprompt_edge.adapt.model import Request

    request = Request(data=(), unlabelled=True, threads=threads)
    return ClosedLoop(found, model, path.parent, request)


def _observe(run: Run, files: Sequence[Path], batch_size: int) -> tuple[list[LeftOut], list[Step]]:
    """Take in files and write the state; returns what cannot be read, and what was done."""
    from hgprompt_edge.images.listing import LeftOut

    unreadable, steps = [], []
    with progress_bar() as report:
        for done, (each, step) in enumerate(run.observe(files, batch_size), start=1):
            if each.error is not None:
                unreadable.append(LeftOut(str(each.path), each.error))
            if step is not None:
                steps.append(step)
                run.watched.write()
            report("images", done, len(files))
    if len(unreadable) == len(files):
        raise UserError(f"{unreadable[0]}; none of the images can be read")
    run.watched.write()
    return unreadable, steps


def _watch(run: Run, folder: Path, json: bool) -> None:
    """Take in each new image; print a line when something is found, or JSON for each image."""
    from hgprompt_edge.runtime.watching.serving import Serving
    from hgprompt_edge.runtime.watching.watch import watch_paths

    watched, serving = run.watched, Serving(run.watched, folder)
    before = news(watched.monitor.report())
    try:
        for each, step in run.observe(serving.new(watch_paths(folder)), 1):
            serving.given(each.path)
            if each.error is not None:
                note(f"{each.path}: {each.error}")
            after = news(watched.monitor.report())
            if after != before or step is not None or each.report.images % EVERY == 0:
                serving.write()
            if json:
                image = {"image": str(each.path), "error": each.error}
                done = {"step": None if step is None else _step_as_dict(step)} if run.loop else {}
                print_json({**image, **document(watched), **done}, indent=None)
            elif step is not None:
                out.print(_step(step), soft_wrap=True)
            elif after != before:
                _print(each.report, run, [folder])
            before = after
    except KeyboardInterrupt:  # the way to end it
        if not json:
            _print(watched.monitor.report(), run, [folder])
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        serving.write()


def _step(step: Step) -> str:
    return f"at image {step.at:,}: {as_options(step.reason)}; version {step.version.id} is in force"


def _step_as_dict(step: Step) -> dict[str, Any]:
    return {
        "at": step.at,
        "taken": step.taken,
        "reason": as_options(step.reason),
        "version": step.version.id,
        "method": step.version.method,
    }


def _print(report: Report, run: Run, images: Sequence[Path]) -> None:
    predictor = run.watched.predictor
    out.print(f"{counts(report)}: {verdict(report.shift)}", soft_wrap=True)
    if report.mix is not None:
        out.print(mix_line(report.mix, predictor.classes, report.shift is not None), soft_wrap=True)
    if report.shift is None or run.loop is not None:
        return
    if predictor.bank is None:
        out.print(
            "the weights are folded into this model; to adapt it here, "
            f"{as_options(predictor.how_to_adapt)}, or fit it again with images such as these",
            soft_wrap=True,
        )
        return
    one = len(images) == 1 and images[0].is_dir()
    data = images[0] if one else "FOLDER"  # `adapt` takes one
    state = () if run.state is None else ("--state", run.state)
    print_next("adapt", "--model", predictor.path, "--data", data, "--unlabelled", *state)
