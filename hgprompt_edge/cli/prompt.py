"""`hgedge prompt`: train source prompts, import those of others and look at them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    drawn,
    fastest,
    note,
    note_backbone,
    note_ignored,
    out,
    print_json,
    print_next,
    progress_bar,
    reports_errors,
    resumes,
    working,
)
from hgprompt_edge.cli.shared.inputs import find_images, normalized_as
from hgprompt_edge.cli.shared.leaks import note_leaks
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task
from hgprompt_edge.cli.shared.resize import check_resize
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server

if TYPE_CHECKING:
    from hgprompt_edge.prompts.bank import Prompt

app = typer.Typer(help="Train, import and show source prompts.", no_args_is_help=True)


@app.command()
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
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="AdamW's step size.")] = 1e-2,
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
    from hgprompt_edge.files import check_writable
    from hgprompt_edge.prompts.bank import check_joins, write_prompt, write_start

    found = find_images(task, data, seed=seed, download=download)
    check_resize(resize, found)
    _make_folder(output)
    check_writable(output, "--output")
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
        print_json({"prompt": str(path), **_facts(prompt), **of_task(images)})
        return
    out.print(_worth(prompt), soft_wrap=True)
    out.print(f"{path}", soft_wrap=True)
    print_next("fit", "--sources", output, "--task", "NAME")


@app.command("import")
@reports_errors
@needs_server
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="prompt_ep*.pth of the VPT code, or safetensors with one tensor a layer.",
            show_default=False,
        ),
    ],
    backbone: Annotated[
        str,
        typer.Option(
            help="Backbone that the prompt was trained on: timm id, `dinov2-small` or `tiny`.",
            show_default=False,
        ),
    ],
    preprocessing: Annotated[
        options.Pixels,
        typer.Option(
            help="Pixels that the prompt was trained on: `imagenet` has mean 0.485 0.456 0.406 (as "
            "the VPT code), `inception` 0.5 (as most ViTs of timm), `none` is pixels in [0, 1], "
            "`backbone` its own.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the prompt.", show_default=False)],
    checkpoint: options.Checkpoint = None,
    image_size: options.ImageSize = None,
    task: Annotated[str, typer.Option(help="What it was trained for (default: its name).")] = "",
    family: Annotated[
        str,
        typer.Option(help="Tasks of this family leave it out (default: that of a known task)."),
    ] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the bank that takes the prompt.")
    ] = Path("prompts"),
    json: options.Json = False,
) -> None:
    """Import a prompt of the VPT code or of a safetensors file into a bank."""
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.files import check_storable, check_writable, why_not
    from hgprompt_edge.prompts.bank import check_joins, write_prompt

    for option, text in (("--name", name), ("--task", task), ("--family", family)):
        check_storable(text, option)
    if not name or Path(name).name != name:
        raise UserError(f"--name '{name}': must be a file's name; give one without folders")
    if not file.is_file():
        raise UserError(f"{file}: {why_not(file, 'file')}; name the one that holds the prompt")
    load_pytorch()

    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.data.load import FAMILIES
    from hgprompt_edge.training.import_prompt import NORMALIZATIONS, import_prompt

    with working("loading the backbone"):
        vit = load_backbone(backbone, checkpoint=checkpoint, image_size=image_size)
    note_backbone(vit)
    prompt = import_prompt(
        file,
        vit,
        NORMALIZATIONS.get(preprocessing.value),
        name=name,
        task=task or name,
        family=family or FAMILIES.get(task or name, ""),
    )
    check_joins(output, prompt)
    _make_folder(output)
    check_writable(output, "--output")
    path = output / f"{name}.safetensors"
    write_prompt(path, prompt)
    if json:
        print_json({"prompt": str(path), **_facts(prompt)})
        return
    out.print(_outline(prompt), soft_wrap=True)
    out.print(f"{path}", soft_wrap=True)
    weights = ("--checkpoint", checkpoint) if checkpoint else ()
    print_next("fit", "--sources", output, *weights, "--task", "NAME")


@app.command()
@reports_errors
def show(
    source: Annotated[
        str, typer.Argument(help="A prompt file, a bank's folder, `dinov2-small` or `tiny`.")
    ],
    json: options.Json = False,
) -> None:
    """Print what a prompt or a bank holds."""
    from hgprompt_edge.prompts.bank import read_bank, read_prompt

    path = Path(source)
    if path.is_file():
        prompts: tuple[Prompt, ...] = (read_prompt(path),)
    else:
        bank = read_bank(source, match=False)  # matching takes SciPy, which a device has not
        note_ignored(bank)
        prompts = bank.basis
    if json:
        print_json([_facts(prompt) for prompt in prompts])
        return
    out.print(_outline(prompts[0]), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("prompt", "family", "classes", "without", "with it", "gain", "seed"):
        left = name in ("prompt", "family")
        table.add_column(name, justify="left" if left else "right")
    for prompt in prompts:
        table.add_row(
            prompt.name,
            prompt.family,
            str(len(prompt.classes)),
            _percent(prompt.test_accuracy_unprompted),
            _percent(prompt.test_accuracy),
            _gain(prompt),
            "" if prompt.init_seed is None else str(prompt.init_seed),
        )
    out.print(table)


def _facts(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "backbone": prompt.backbone,
        "backbone_sha256": prompt.backbone_sha256,
        "image_size": prompt.image_size,
        "role": prompt.role,
        "mode": prompt.mode,
        "shape": list(prompt.tokens.shape),
        "init_seed": prompt.init_seed,
        "normalization": prompt.normalization and prompt.normalization._asdict(),
        "task": prompt.task,
        "family": prompt.family,
        "classes": list(prompt.classes),
        "test_accuracy": prompt.test_accuracy,
        "test_accuracy_unprompted": prompt.test_accuracy_unprompted,
        "sha256": prompt.sha256,
        "recipe": prompt.recipe,
    }


def _outline(prompt: Prompt) -> str:
    layers, tokens, width = prompt.tokens.shape
    pixels = f"; pixels: {prompt.normalization}" if prompt.normalization else ""
    return (
        f"backbone {prompt.backbone} ({prompt.backbone_sha256[:12]}), {prompt.image_size} px, "
        f"{prompt.mode}: {layers} layers x {tokens} tokens x {width}{pixels}"
    )


def _worth(prompt: Prompt) -> str:
    if prompt.test_accuracy is None:
        return f"{prompt.name}: trained; no test part to measure it on"
    return (
        f"{prompt.name}: test {_percent(prompt.test_accuracy)}, "
        f"unprompted {_percent(prompt.test_accuracy_unprompted)}, each with its best head "
        f"({_gain(prompt)})"
    )


def _gain(prompt: Prompt) -> str:
    if prompt.test_accuracy is None or prompt.test_accuracy_unprompted is None:
        return ""
    gain = f"{100 * (prompt.test_accuracy - prompt.test_accuracy_unprompted):+.1f}"
    error = prompt.recipe.get("test_standard_error")
    return f"{gain} {drawn('±', '+/-')} {100 * error:.1f}" if error is not None else gain


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _make_folder(folder: Path) -> None:
    from hgprompt_edge.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"--output: cannot make the folder {folder} ({reason}); choose another one"
        raise UserError(message) from error
