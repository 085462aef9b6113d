"""`hgedge tune`: train the folded prompt on the task itself."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.bundle import ROW_TITLES
from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import (
    fastest,
    note,
    out,
    print_json,
    print_next,
    progress_bar,
    reports_errors,
    resumes,
    working,
)
from hgprompt_edge.cli.fit_table import accuracy_table
from hgprompt_edge.cli.inputs import find_images_of
from hgprompt_edge.cli.left_out import note_left_out, of_task, write_left_out
from hgprompt_edge.cli.server import load_pytorch, needs_server
from hgprompt_edge.cli.text import command_line

if TYPE_CHECKING:
    from hgprompt_edge.bundle import Bundle


@reports_errors
@resumes
@needs_server
def tune(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle that fit wrote (default: the newest one here).", show_default=False
        ),
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 60,
    batch_size: Annotated[int, typer.Option(min=16, help="Images a step.")] = 400,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="AdamW's step size.")] = 5e-3,
    checkpoint: options.Checkpoint = None,
    device: options.Device = options.DeviceName.AUTO,
    precision: options.Precision = options.PrecisionName.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Bundle file (default: TASK.tuned.hgbundle).", show_default=False
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train the prompt of a bundle on the task, from the mix on; run it again to resume."""
    from hgprompt_edge.bundle import (
        SUFFIX,
        check_one_prompt,
        newest_bundle,
        read_bundle,
        write_bundle,
    )
    from hgprompt_edge.files import check_writable

    began = time.perf_counter()
    if bundle is None:
        bundle = newest_bundle(Path())
        note(f"tuning {bundle}, the newest bundle here")
    fitted = read_bundle(bundle)
    check_one_prompt(fitted, "tune")
    path = output or bundle.with_name(f"{fitted.task}.tuned{SUFFIX}")
    check_writable(path.parent, "--output")

    found = find_images_of(fitted, task, data)
    load_pytorch()

    from hgprompt_edge.transfer.estimate import tune_passes
    from hgprompt_edge.transfer.tune import epochs_for
    from hgprompt_edge.transfer.tune import tune as tune_bundle
    from hgprompt_edge.vit.fastest import check_device
    from hgprompt_edge.vit.fitted import backbone_of
    from hgprompt_edge.vit.train import Recipe

    check_device(device.value)
    with working("loading the backbone"):
        backbone = backbone_of(fitted, checkpoint)
    with progress_bar() as report:
        images = found.load(backbone.preprocessing, progress=partial(report, "reading images"))
        note_left_out(images.unreadable, images.left_out)
        recipe = Recipe(
            epochs=epochs_for(steps, len(images.train), batch_size),
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=fitted.seed,
        )
        validations = recipe.epochs // recipe.validate_every
        passes = tune_passes(images, recipe.epochs, validations)
        state = path.parent / f".{fitted.task}.tuning"
        tuned, trained = tune_bundle(
            fitted,
            fastest(backbone, device, precision, passes),
            images,
            recipe,
            state=state,
            report=lambda done, total: report("epochs", done, total),
        )
    write_bundle(path, tuned)
    write_left_out(images, path)
    state.unlink(missing_ok=True)
    _note_left_out(fitted, tuned, path)
    seconds = time.perf_counter() - began
    if json:
        print_json(
            {
                "bundle": str(path),
                "choice": tuned.choice,
                "table": [vars(row) for row in tuned.table],
                "epoch": trained.epoch,
                "epochs": recipe.epochs,
                "history": list(trained.history),
                **of_task(images),
                "seconds": round(seconds, 2),
            }
        )
        return
    out.print(accuracy_table(tuned, images))
    kept = f"best after {trained.epoch} of {recipe.epochs} epochs"
    which = " as before" if tuned is fitted else ""
    out.print(f"chosen on validation: {ROW_TITLES[tuned.choice]}{which} ({kept})", soft_wrap=True)
    out.print(f"{path} ({seconds:.0f} s)", soft_wrap=True)
    print_next("export", path, "--format", "onnx")


def _note_left_out(fitted: Bundle, tuned: Bundle, path: Path) -> None:
    """Say what of the bundle did not outlive its prompt."""
    conditions = "the condition prompts" if fitted.conditions and not tuned.conditions else ""
    merged = fitted.factory is not None and tuned.factory is None
    gone = " and ".join(filter(None, (conditions, "what devices learned" if merged else "")))
    if gone:
        again = f"; run `{command_line('condition', path)}` again" if conditions else ""
        note(f"left out, as of the prompt before: {gone}{again}")
