"""`hgedge prompt train`: train one source prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.cli.prompt.bank_folder import make_bank_folder
from hgprompt_edge.cli.prompt.facts import facts, gain, percent
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    fastest,
    note,
    note_backbone,
    out,
    print_json,
    print_next,
    reports_errors,
    resumes,
)
from hgprompt_edge.cli.shared.inputs import find_images, normalized_as
from hgprompt_edge.cli.shared.leaks import note_leaks
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.resize import check_resize
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server

if TYPE_CHECKING:
    from hgprompt_edge.prompts.prompt import Prompt


@reports_errors
@resumes
@needs_server
def train(
    task: options.Task = None,
    data: options.Data = None,
    download: options.Download = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the bank that takes the prompt.")
    ] = Path("prompts"),
    backbone: options.BackboneName = None,
    checkpoint: options.Checkpoint = None,
    image_size: options.ImageSize = None,
    resize: options.Resize = None,
    preprocessing: options.Preprocessing = None,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Prompt the first block only (default: deep).")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens a layer.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 120,
    batch_size: Annotated[int, typer.Option(min=16, help="Images a step.")] = 400,
    learning_rate: Annotated[
        float, typer.Option(min=1e-6, max=10.0, help="AdamW's step size.")
    ] = 1e-2,
    init_seed: Annotated[
        int, typer.Option(help="Seed of the start; keep one for all prompts of a bank.")
    ] = 0,
    keep_last: Annotated[
        bool,
        typer.Option(
            "--keep-last",
            help="Keep the last epoch, not the best by validation: for frames of one video, "
            "where validation lies.",
        ),
    ] = False,
    all_images: Annotated[
        bool,
        typer.Option(
            "--all-images",
            help="Train on all training images, not on a sample of 1,000; an epoch still passes "
            "over 800.",
        ),
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = options.DeviceName.AUTO,
    precision: options.Precision = options.PrecisionName.AUTO,
    json: options.Json = False,
) -> None:
    """Train one source prompt by VPT; run it again to go on after an interruption."""
    from hgprompt_edge.prompts.bank import check_joins, write_start
    from hgprompt_edge.prompts.prompt import write_prompt

    found = find_images(task, data, seed=seed, download=download)
    check_resize(resize, found)
    if output.exists():
        make_bank_folder(output)  # whether it can be written; a new one is made when all is checked
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device
    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.data import images_beyond
    from hgprompt_edge.fit.checks import check_batch
    from hgprompt_edge.training.neutral_prompt import neutral_tokens
    from hgprompt_edge.training.prompt_tuning import Recipe
    from hgprompt_edge.training.source_prompt import blank_prompt, train_source

    check_device(device.value)
    with working("loading the backbone"):
        vit = load_backbone(backbone, checkpoint=checkpoint, image_size=image_size)
    note_backbone(vit)
    vit, normalization = normalized_as(vit, preprocessing)
    vit = vit.with_rule(resize and resize.value)
    recipe = Recipe(
        tokens=tokens,
        mode="shallow" if shallow else "deep",
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        init_seed=init_seed,
        seed=seed,
        keep_last=keep_last,
    )
    with progress_bar() as report:
        load = partial(found.load, vit.preprocessing, progress=partial(report, "reading images"))
        images = load()
        note_left_out(images.unreadable, images.left_out)
        note_leaks(images)
        check_batch(images, batch_size)  # before minutes of work
        blank = replace(blank_prompt(vit, images, recipe), normalization=normalization)
        check_joins(output, blank)
        make_bank_folder(output)
        vit = fastest(vit, device, precision)
        more = images_beyond(images, load(limit=None)) if all_images else None
        # Minutes on a large backbone, once a bank: the training finds it in the cache.
        neutral_tokens(vit, tokens, recipe.mode, init_seed, report=partial(report, "neutral start"))
        path = output / f"{images.name}.safetensors"
        state = output / f".{images.name}.training"
        prompt, trained = train_source(
            vit,
            images,
            recipe,
            more=more,
            state=state,
            report=lambda done, total: report("epochs", done, total),
            resumed=lambda: note(f"resuming from {state}"),
        )
    prompt = replace(prompt, normalization=normalization)
    write_prompt(path, prompt)
    write_start(output, prompt, trained.start)
    state.unlink(missing_ok=True)
    if json:
        print_json({"prompt": str(path), **facts(prompt), **of_task(images)})
        return
    out.print(_worth(prompt), soft_wrap=True)
    out.print(f"{path}", soft_wrap=True)
    print_next("fit", "--sources", output, "--task", "NAME")


def _worth(prompt: Prompt) -> str:
    if prompt.test_accuracy is None:
        return f"{prompt.name}: trained; no test part to measure it on"
    return (
        f"{prompt.name}: test {percent(prompt.test_accuracy)}, "
        f"unprompted {percent(prompt.test_accuracy_unprompted)}, each with its best head "
        f"({gain(prompt)})"
    )
