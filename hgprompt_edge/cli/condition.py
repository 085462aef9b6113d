"""`hgedge condition`: train condition prompts, so that a device has somewhere to go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task, write_left_out
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server
from hgprompt_edge.errors import CheckError

if TYPE_CHECKING:
    from hgprompt_edge.training.condition_prompts import Measured, Worth

DEFAULT = "dark,blur,noise,cast,jpeg,lowres"


@reports_errors
@resumes
@needs_server
def condition(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle that fit wrote (default: the newest one here).", show_default=False
        ),
    ] = None,
    conditions: Annotated[str, typer.Option(help="Which, separated by commas.")] = DEFAULT,
    task: options.Task = None,
    data: options.Data = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs over the training images.")] = 12,
    accept_unproven: Annotated[
        bool,
        typer.Option(
            "--accept-unproven",
            help="Keep prompts, too, of which the images are too few to say whether they help.",
        ),
    ] = False,
    checkpoint: options.Checkpoint = None,
    device: options.Device = options.DeviceName.AUTO,
    precision: options.Precision = options.PrecisionName.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Bundle file (default: NAME.conditions.hgbundle).",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train prompts for darkness, blur, ... without labels and add those that help to a copy.

    Interrupted, the same command goes on from there.
    """
    from hgprompt_edge.artifacts.bundle import check_one_prompt
    from hgprompt_edge.artifacts.bundle_file import SUFFIX, newest_bundle, read_bundle, write_bundle
    from hgprompt_edge.cli.shared.outputs import check_output
    from hgprompt_edge.data.conditions import check_names

    began = time.perf_counter()
    if bundle is None:
        bundle = newest_bundle(Path())
        note(f"preparing {bundle}, the newest bundle here")
    fitted = read_bundle(bundle)
    check_one_prompt(fitted, "condition")
    path = output or conditioned_path(bundle)
    check_output(path, "--output", SUFFIX)
    names = condition_names(conditions)
    check_names(names)
    found = find_images_of(fitted, task, data)
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device
    from hgprompt_edge.backbones.fitted import backbone_of
    from hgprompt_edge.training.condition_prompts import check_conditions, tune_conditions
    from hgprompt_edge.training.condition_trainer import ConditionRecipe

    check_device(device.value)
    with working("loading the backbone"):
        backbone = backbone_of(fitted, checkpoint)
    with progress_bar() as report:
        images = found.load(fitted.preprocessing, progress=partial(report, "reading images"))
        note_left_out(images.unreadable, images.left_out)
        check_conditions(fitted, images, names)
        recipe = ConditionRecipe(epochs=epochs, seed=fitted.seed)
        state = condition_state(path, fitted.task)
        if state.exists():
            note(f"resuming from {state}")
        backbone = fastest(backbone, device, precision)
        prepared, worths = tune_conditions(
            fitted,
            backbone,
            images,
            names,
            recipe,
            report,
            accept_unproven=accept_unproven,
            state=state,
        )
    reasons = why_left_out(worths)
    if not any(worth.kept for worth in worths):
        if not json:
            out.print(worth_table(worths))
        raise CheckError(f"{path}: nothing was written; {'; '.join(reasons)}")
    for sentence in reasons:
        note(f"left out: {sentence}")
    write_bundle(path, prepared)
    write_left_out(images, path)
    shutil.rmtree(state, ignore_errors=True)
    seconds = time.perf_counter() - began
    if json:
        figures = [asdict(worth) for worth in worths]
        document = {"bundle": str(path), "conditions": figures, "seconds": round(seconds, 2)}
        print_json({**document, **of_task(images)})
        return
    out.print(worth_table(worths))
    count = len(prepared.conditions)
    prompts = "condition prompt" if count == 1 else "condition prompts"
    out.print(f"{path}: {count} {prompts} ({seconds:.0f} s)", soft_wrap=True)
    print_next("export", path, "--adapt")


def conditioned_path(bundle: Path) -> Path:
    """Name the bundle with condition prompts; models are verified against the one without."""
    kind = ".conditions"
    path = bundle.with_name(f"{bundle.stem.removesuffix(kind)}{kind}{bundle.suffix}")
    return path.with_name(f"{path.stem}-2{path.suffix}") if path == bundle else path


def condition_state(bundle: Path, task: str) -> Path:
    """Folder beside the bundle where an interrupted training goes on from."""
    return bundle.parent / f".{task}.conditions"


def condition_names(text: str) -> list[str]:
    """Split a list with commas; each name once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def worth_table(worths: Sequence[Worth]) -> Table:
    """Show accuracy on clean and corrupted images, each with the condition's prompt, too."""
    table = Table(box=None, pad_edge=False)
    table.add_column("condition")
    for title in ("clean", "with prompt", "corrupted", "with prompt", "change (90 % interval)"):
        table.add_column(title, justify="right")
    tested = any(worth.test for worth in worths)
    if tested:
        table.add_column("on test images", justify="right")
    for worth in worths:
        found, test = worth.validation, worth.test
        figures = (worth.clean, worth.clean_prompted, found.corrupted, found.prompted)
        cells = [f"{100 * value:.1f} %" for value in figures]
        cells.append(f"{_change(found)} ({found.low:+.1f} to {found.high:+.1f})")
        table.add_row(worth.name, *cells, *([_change(test) if test else ""] if tested else []))
    return table


def _change(found: Measured) -> str:
    return f"{100 * (found.prompted - found.corrupted):+.1f}"


def why_left_out(worths: Sequence[Worth]) -> list[str]:
    """Say of each prompt that is not in the bundle why."""
    sentences = []
    for worth in worths:
        if worth.kept:
            continue
        found = worth.validation
        if worth.helps is False:
            sentences.append(f"{worth.name}: images are recognised worse with its prompt")
            continue
        needed = (
            f"about {found.needed:,} would say" if found.needed else "more would not say either"
        )
        sentences.append(
            f"{worth.name}: {found.images} validation images are too few to say whether its prompt "
            f"helps ({needed}); `hgedge condition --accept-unproven` keeps it"
        )
    return sentences
