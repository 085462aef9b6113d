"""`hgedge predict`: classify images with an exported model; no PyTorch needed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    fail,
    note,
    out,
    print_json,
    reports_errors,
)
from hgprompt_edge.cli.shared.left_out import note_left_out
from hgprompt_edge.cli.shared.monitored import document, kept, monitors_of, note_alarm
from hgprompt_edge.cli.shared.opened import note_bf16, note_limits, open_model, tasks_of
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.images.listing import Listing
    from hgprompt_edge.runtime.prediction import Limits, Prediction, Way
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.runtime.watching.monitored import Watched
    from hgprompt_edge.state.version import Version


@reports_errors
def predict(
    context: typer.Context,
    model: Annotated[
        Path, typer.Option(help="Model that `hgedge export` wrote: .onnx, .xml, a device folder.")
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them.", show_default=False),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task of a device folder; may be given several times, each image is read once.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 1,
    batch_size: options.BatchSize = 16,
    threads: options.Threads = None,
    device: options.RuntimeDevice = "CPU",
    bf16: options.Bf16 = None,
    state: options.State = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Share of the task's own images, in %, that may be called unknown; 0: none is.",
        ),
    ] = 5.0,
    min_confidence: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Call unknown, too, what no class has with this probability, in %."
        ),
    ] = 0.0,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Serve a folder: classify each new image in it, with the newest weights, until "
            "Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    monitor: Annotated[
        bool,
        typer.Option(
            "--monitor",
            help="Watch the same images for a shift, as `hgedge monitor` does, and say so on "
            "stderr.",
        ),
    ] = False,
    json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Classify images: class and probability for each."""
    from hgprompt_edge.images.listing import list_images
    from hgprompt_edge.runtime.prediction import Limits, predict_files

    if json and as_csv:
        fail("--json and --csv: choose one of them", EXIT_BAD_INPUT)
    if bool(images) == (watch is not None):
        both = "--watch: does not go with image files; leave one of the two out"
        raise UserError(both if images else "name images to classify, or a folder with --watch")
    listing = list_images(images or [] if watch is None else [watch])
    if watch is None and not listing.images:
        raise UserError(f"{listing.missing[0]}; name image files, or folders of them")
    opened = open_model(
        model, task, threads=threads, device=device, bf16=bf16, state=state, monitored=monitor
    )
    predictors = tasks_of(opened, model, task)
    predictor = predictors[0]
    limits = Limits(false_alarms / 100, min_confidence / 100)
    note_limits(predictors, limits, asked=options.is_given(context, "false_alarms"))
    if watch is not None:
        if len(predictors) > 1:
            raise UserError("--watch: serves one task; give one --task")
        note_left_out((), listing.left_out)
        try:
            with monitors_of(predictors if monitor else (), state) as watched:
                _serve(predictor, watch, top, limits, json, as_csv, *watched)
        except KeyboardInterrupt:  # the way to end it
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return
    note_bf16(predictor, bf16)
    predictions: list[Prediction] = []
    with (
        monitors_of(predictors if monitor else (), state) as watched,
        progress_bar() as report,
    ):
        ways = [each.way() for each in watched or predictors]
        found = predict_files(
            ways, predictor.preprocessing, listing.images, top, batch_size, limits
        )
        for done, several in enumerate(found, start=1):
            predictions += several
            report("images", done, len(listing.images))
        for each in watched:
            each.write()
    if json:
        rows = [_as_dict(prediction) for prediction in (*predictions, *_unused(listing))]
        reports = [document(each) for each in watched]
        print_json({"predictions": rows, "monitors": reports} if monitor else rows)
    elif as_csv:
        _print_csv(predictions, bool(ways[0].task))
    else:
        _print_table(predictions)
    note_left_out((), listing.left_out)
    failed = [p for p in predictions if p.error]
    for prediction in failed:
        note(_failure(prediction))
    for each in watched:
        note_alarm(each)
    for item in listing.missing:
        note(str(item))
    if failed or listing.missing:
        once = list({prediction.path: prediction for prediction in failed}.values())
        fail(_what_is_wrong(once, len(listing.images), listing), EXIT_BAD_INPUT)


def _failure(prediction: Prediction) -> str:
    """Say why an image has no class; for which task, where that is why."""
    from hgprompt_edge.runtime.prediction import NO_PROBABILITIES

    task = f", task {prediction.task}" if prediction.task else ""
    return f"{prediction.path}{task * (prediction.error == NO_PROBABILITIES)}: {prediction.error}"


def _what_is_wrong(failed: Sequence[Prediction], images: int, listing: Listing) -> str:
    """Count what could not be classified, in words that fit one and many."""
    from hgprompt_edge.runtime.prediction import NO_PROBABILITIES

    found = []
    undecided = sum(prediction.error == NO_PROBABILITIES for prediction in failed)
    for count, what in (
        (len(failed) - undecided, "cannot be read"),
        (undecided, "got no probabilities"),
    ):
        if count:
            which = "the image" if images == 1 else f"{count:,} of {images:,} images"
            found.append(f"{which} {what}")
    if listing.missing:
        one = len(listing.missing) == 1
        found.append(f"{len(listing.missing):,} path{' holds' if one else 's hold'} no image")
    rest = "; the others were classified" if len(failed) < images else ""
    return f"{' and '.join(found)}{rest}"


def _unused(listing: Listing) -> list[Prediction]:
    """Return what stands in the JSON document for files without a prediction."""
    from hgprompt_edge.runtime.prediction import Prediction

    left_out = [(item.name, f"left out: {item.reason}") for item in listing.left_out]
    missing = [(item.name, item.reason) for item in listing.missing]
    return [Prediction(Path(name), (), why) for name, why in (*missing, *left_out)]


def _serve(
    predictor: Predictor,
    folder: Path,
    top: int,
    limits: Limits,
    json: bool,
    as_csv: bool,
    watched: Watched | None = None,
) -> None:
    """Print each new image as soon as it is whole: a line of JSON or prose, or its rows of CSV."""
    from hgprompt_edge.runtime.watching.serving import Serving
    from hgprompt_edge.runtime.watching.watch import watch

    found: Iterable[tuple[Prediction, Version | None]]
    if watched is None:
        found = watch(predictor, folder, top, limits=limits)
    else:
        serving = Serving(watched, folder)

        def way(running: Predictor, path: Path) -> Way:
            return watched.way(running) if serving.is_new(path) else running.way()

        found = kept(watch(predictor, folder, top, limits=limits, way=way), serving)
    if as_csv:
        _print_csv((prediction for prediction, _ in found), bool(predictor.way().task))
        return
    for prediction, version in found:
        number = None if version is None else version.id
        if json:
            more = {} if watched is None else {"monitor": document(watched)}
            print_json({**_as_dict(prediction), "version": number, **more}, indent=None)
        elif prediction.error:
            out.print(f"{prediction.path}: {prediction.error}", soft_wrap=True)
        else:
            labels = ", ".join(f"{label} {100 * p:.1f} %" for label, p in prediction.labels)
            labels = f"unknown ({labels})" if prediction.unknown else labels
            which = f" (version {number})" if number else ""
            out.print(f"{prediction.path}: {labels}{which}", soft_wrap=True)


def _as_dict(prediction: Prediction) -> dict[str, object]:
    classes = [{"label": label, "probability": round(p, 6)} for label, p in prediction.labels]
    task = {"task": prediction.task} if prediction.task else {}
    image = {"image": str(prediction.path)}
    share = prediction.share_beyond
    known = {
        "unknown": prediction.unknown,
        "share_beyond": None if share is None else round(share, 6),
    }
    return {**image, **task, "classes": classes, **known, "error": prediction.error}


def _print_csv(predictions: Iterable[Prediction], with_task: bool) -> None:
    writer = csv.writer(sys.stdout)
    tasks = ("task",) if with_task else ()
    writer.writerow(("image", *tasks, "rank", "label", "probability", "unknown", "share_beyond"))
    sys.stdout.flush()
    for prediction in predictions:
        task = (prediction.task,) if with_task else ()
        for rank, (label, probability) in enumerate(prediction.labels, start=1):
            row = (prediction.path, *task, rank, label, f"{probability:.6f}")
            writer.writerow((*row, _yes_no(prediction.unknown), _number(prediction.share_beyond)))
        sys.stdout.flush()  # for whoever reads a watched folder


def _yes_no(unknown: bool | None) -> str:
    return "" if unknown is None else "yes" if unknown else "no"


def _number(share: float | None) -> str:
    return "" if share is None else f"{share:.6f}"


def _print_table(predictions: Sequence[Prediction]) -> None:
    with_task = any(prediction.task for prediction in predictions)
    table = Table(box=None, pad_edge=False)
    table.add_column("image")
    if with_task:
        table.add_column("task")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        for rank, (label, probability) in enumerate(prediction.labels):
            names = [str(prediction.path), *([prediction.task] if with_task else [])]
            shown = names if rank == 0 else [""] * len(names)
            named = f"unknown ({label})" if prediction.unknown else label
            table.add_row(*shown, named, f"{100 * probability:.1f} %")
    out.print(table)
