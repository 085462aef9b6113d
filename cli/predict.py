"""`hgedge predict`: classify images with an exported model; no PyTorch needed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import EXIT_BAD_INPUT, fail, note, out, print_json, reports_errors

if TYPE_CHECKING:
    from hgprompt_edge.device.predictor import Prediction


@reports_errors
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[Path, typer.Option(help="Model that `hgedge export` wrote: .onnx or .xml.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads (default: all).", show_default=False)
    ] = None,
    device: Annotated[
        str, typer.Option(help="For OpenVINO models: CPU, GPU, AUTO or another of its devices.")
    ] = "CPU",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="For OpenVINO models: compute in bfloat16.")
    ] = False,
    json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Classify images: class and probability for each."""
    from hgprompt_edge.device.predictor import Predictor, find_images

    if json and as_csv:
        fail("--json and --csv: choose one of them", EXIT_BAD_INPUT)
    predictor = Predictor(model, threads=threads, device=device, bf16=bf16)
    paths = find_images(images)
    if predictor.assumed:
        note(
            f"{model}: not from `hgedge export`: it lacks class names and the resize rule; classes "
            "are numbers, the shorter side is resized to the model's and the centre cropped"
        )
    if bf16:
        note(f"bfloat16: {predictor.compare_probe()}")
    predictions = list(predictor.predict_paths(paths, top=top, batch_size=batch_size))
    if json:
        print_json([_as_dict(prediction) for prediction in predictions])
    elif as_csv:
        _print_csv(predictions)
    else:
        _print_table(predictions)
    unreadable = [p for p in predictions if p.error]
    for prediction in unreadable:
        note(f"{prediction.path}: {prediction.error}")
    if unreadable:
        fail(f"{len(unreadable)} of {len(predictions)} images are unreadable", EXIT_BAD_INPUT)


def _as_dict(prediction: Prediction) -> dict[str, object]:
    classes = [{"label": label, "probability": round(p, 6)} for label, p in prediction.labels]
    return {"image": str(prediction.path), "classes": classes, "error": prediction.error}


def _print_csv(predictions: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(("image", "rank", "label", "probability"))
    for prediction in predictions:
        for rank, (label, probability) in enumerate(prediction.labels, start=1):
            writer.writerow((prediction.path, rank, label, f"{probability:.6f}"))


def _print_table(predictions: Iterable[Prediction]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for prediction in predictions:
        for rank, (label, probability) in enumerate(prediction.labels):
            name = str(prediction.path) if rank == 0 else ""
            table.add_row(name, label, f"{100 * probability:.1f} %")
    out.print(table)
