"""`hgedge tune`: train the folded prompt on the task itself."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    fastest,
    note,
    out,
    print_json,
    print_next,
    reports_errors,
    resumes,
)
from hgprompt_edge.cli.shared.fit_table import print_result
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.leaks import leaks_document, note_leaks
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task, write_left_out
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server
from hgprompt_edge.cli.shared.tuning import train_further, tuning_document, tuning_state


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
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Images a step (default: 160, or four a class if these are more).",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(min=1e-6, max=10.0, help="AdamW's step size.")
    ] = 1e-2,
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
    """Train the prompt of a bundle on the task, from the mix on; run it again to resume.

    The tuned prompt is kept if held-out images prove it better.
    """
    from hgprompt_edge.artifacts.bundle import check_one_prompt
    from hgprompt_edge.artifacts.bundle_file import SUFFIX, newest_bundle, read_bundle, write_bundle
    from hgprompt_edge.cli.shared.outputs import check_output

    began = time.perf_counter()
    if bundle is None:
        bundle = newest_bundle(Path())
        note(f"tuning {bundle}, the newest bundle here")
    fitted = read_bundle(bundle)
    check_one_prompt(fitted, "tune")
    path = output or bundle.with_name(f"{fitted.task}.tuned{SUFFIX}")
    check_output(path, "--output", SUFFIX)

    found = find_images_of(fitted, task, data)
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device
    from hgprompt_edge.backbones.fitted import backbone_of
    from hgprompt_edge.compare.estimate import tune_passes
    from hgprompt_edge.fit.checks import check_same_images
    from hgprompt_edge.training.tune import tuning_recipe

    check_device(device.value)
    with working("loading the backbone"):
        backbone = backbone_of(fitted, checkpoint)
    with progress_bar() as report:
        images = found.load(backbone.preprocessing, progress=partial(report, "reading images"))
        note_left_out(images.unreadable, images.left_out)
        leaks = note_leaks(images)
        check_same_images(fitted, images)
        recipe = tuning_recipe(
            images, fitted.seed, steps=steps, batch_size=batch_size, learning_rate=learning_rate
        )
        passes = tune_passes(images, recipe.epochs, from_scratch=not fitted.sources)
        backbone = fastest(backbone, device, precision, passes)
        tuning = train_further(fitted, backbone, images, recipe, path, report)
    write_bundle(path, tuning.bundle)
    write_left_out(images, path)
    tuning_state(path, fitted).unlink(missing_ok=True)
    seconds = time.perf_counter() - began
    if json:
        print_json(
            {
                "bundle": str(path),
                "choice": tuning.bundle.choice,
                "table": [vars(row) for row in tuning.bundle.table],
                "tuning": tuning_document(tuning),
                **of_task(images),
                **leaks_document(leaks),
                "seconds": round(seconds, 2),
            }
        )
        return
    print_result(tuning.bundle, images)
    out.print(f"{path} ({seconds:.0f} s)", soft_wrap=True)
    print_next("export", path, "--format", "onnx")
