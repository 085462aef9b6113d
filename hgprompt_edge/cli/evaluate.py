"""`hgedge evaluate`: how often models are right on labelled images; no PyTorch needed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, reports_errors
from hgprompt_edge.cli.shared.left_out import as_rows, note_left_out
from hgprompt_edge.cli.shared.opened import check_one_task, note_bf16, open_model
from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.text import as_interval
from hgprompt_edge.cli.shared.training_images import known_document, notes_on_copies
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.data.labelled import Labelled
    from hgprompt_edge.evaluate.figures import Figures
    from hgprompt_edge.evaluate.run import Evaluation
    from hgprompt_edge.runtime.predictor import Predictor


@reports_errors
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Models that `hgedge export` wrote.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Labelled images: a folder of class folders, of VTAB-1k's lists or of parquet "
            "files, or images.zip with labels.csv.",
            show_default=False,
        ),
    ],
    split: options.Split = None,
    class_map: options.Map = None,
    worst: Annotated[int, typer.Option(min=0, help="Mistakes to name, the surest first.")] = 10,
    batch_size: options.BatchSize = 16,
    threads: options.Threads = None,
    device: options.RuntimeDevice = "CPU",
    bf16: options.Bf16 = None,
    state: options.State = None,
    as_csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write a row for each image to this file.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare what models say with the classes of labelled images."""
    from hgprompt_edge.cli.shared.evaluate_tables import print_evaluation
    from hgprompt_edge.cli.shared.outputs import check_output

    if state is not None and len(models) > 1:
        raise UserError(
            "--state: belongs to one model, and several are given; evaluate one, or leave --state "
            "out to use MODEL.state of each"
        )
    if as_csv is not None:
        check_output(as_csv, "--csv")
    for model in models:
        check_one_task(model)
    predictors = [
        open_model(model, threads=threads, device=device, bf16=bf16, state=state)
        for model in models
    ]
    for predictor in predictors:
        note_bf16(predictor, bf16)
    images, found = evaluate_on(predictors, data, split, class_map, batch_size=batch_size)
    notes = notes_on_data(images, found)
    if as_csv is not None:
        _write_csv(as_csv, images, found)
    if json:
        print_json(_as_dict(predictors, images, found, notes, worst))
    else:
        out.print(describe(images, found), soft_wrap=True)
        print_evaluation(found, worst)
    for text in notes:
        note(text)
    note_left_out(found.unreadable, images.left_out)


def evaluate_on(
    predictors: Sequence[Predictor],
    data: Path,
    split: options.SplitName | None,
    class_map: Sequence[str] | None,
    *,
    batch_size: int = 16,
) -> tuple[Labelled, Evaluation]:
    """Find the images that the options name, and run the models over them.

    Raises
    ------
    UserError
        As of `find_labelled`, `parse_map` and `evaluate`.
    """
    from hgprompt_edge.data.labelled import find_labelled
    from hgprompt_edge.evaluate.classes import parse_map
    from hgprompt_edge.evaluate.run import evaluate as run

    tasks = {predictor.metadata.task for predictor in predictors}
    with working("looking for images"):
        images = find_labelled(data, None if split is None else split.value, tasks)
    mapping = parse_map(class_map or (), images.classes)
    with progress_bar() as report:
        found = run(
            predictors,
            images,
            mapping=mapping,
            batch_size=batch_size,
            report=lambda done, total: report("images", done, total),
        )
    return images, found


def describe(images: Labelled, found: Evaluation) -> str:
    """Say which images were used."""
    which = "all" if images.part == "all" else f"the {images.part} part,"
    count, classes = _count(len(found.images), "image"), _count(len(images.classes), "class")
    why = f"; {as_options(images.note)}" if images.note else ""
    return f"{images.data}: {which} {count} of {classes}{why}"


def _count(number: int, what: str) -> str:
    many = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else many}"


def notes_on_data(images: Labelled, found: Evaluation) -> list[str]:
    """Say what about the images may mislead whoever reads the figures.

    Checks of the data belong here: what this returns is printed below the tables and is `notes` in
    the JSON document.
    """
    from hgprompt_edge.errors import some

    notes = []
    for answers, figures in zip(found.answers, found.figures, strict=True):
        absent = [each.name for each in figures.classes if not each.images]
        if absent:
            notes.append(
                f"{images.data}: no images of {len(absent):,} of the {len(figures.classes):,} "
                f"classes of {answers.model} ({some(absent)}); the balanced accuracy is over the "
                "others"
            )
    return [*notes, *notes_on_copies(images, found)]


def _write_csv(path: Path, images: Labelled, found: Evaluation) -> None:
    """Write a row for each model and image, whole or not at all."""
    from hgprompt_edge.files import write_bytes

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("model", "image", "class", "predicted", "probability", "right"))
    for answers in found.answers:
        rows = zip(
            found.images,
            answers.labels,
            answers.predicted,
            answers.confidence,
            answers.right,
            strict=True,
        )
        for name, label, predicted, confidence, right in rows:
            classes = answers.classes[label], answers.classes[predicted]
            writer.writerow((answers.model, name, *classes, f"{confidence:.6f}", int(right)))
    # surrogateescape: names of files need not be UTF-8.
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
    note(f"{path}: {len(found.images):,} images of {images.data}, by name")


def _as_dict(
    predictors: Sequence[Predictor],
    images: Labelled,
    found: Evaluation,
    notes: Sequence[str],
    worst: int,
) -> dict[str, Any]:
    versions = [predictor.version for predictor in predictors]
    return {
        "data": images.data,
        "part": images.part,
        "images": len(found.images),
        "models": [
            {
                "model": answers.model,
                "version": None if version is None else version.id,
                **figures_as_dict(figures),
                "change": as_interval(found.change(place)) if place else None,
                "training_images": known_document(found, place),
                "mistakes": [
                    {
                        "image": found.images[row],
                        "class": answers.classes[answers.labels[row]],
                        "predicted": answers.classes[answers.predicted[row]],
                        "probability": round(float(answers.confidence[row]), 6),
                    }
                    for row in answers.mistakes(worst)
                ],
            }
            for place, (answers, figures, version) in enumerate(
                zip(found.answers, found.figures, versions, strict=True)
            )
        ],
        "two_classes": [[found.images[i] for i in pair] for pair in found.copies.twice.tolist()],
        "notes": [as_options(images.note), *notes] if images.note else list(notes),
        "unreadable": as_rows(found.unreadable),
        "files_left_out": as_rows(images.left_out),
    }


def figures_as_dict(figures: Figures) -> dict[str, Any]:
    """Return all figures of one model for a JSON document."""
    names = [each.name for each in figures.classes]
    return {
        "accuracy": as_interval(figures.accuracy),
        "balanced_accuracy": as_interval(figures.balanced_accuracy),
        "calibration": asdict(figures.calibration),
        "classes": [
            {
                "class": each.name,
                "images": each.images,
                "predicted": each.predicted,
                "right": each.right,
                "recall": None if each.recall is None else as_interval(each.recall),
                "precision": each.precision,
                "f1": each.f1,
            }
            for each in figures.classes
        ],
        "confusion": {
            name: {names[place]: int(row[place]) for place in row.nonzero()[0]}
            for name, row in zip(names, figures.confusion, strict=True)
            if row.any()
        },
    }
