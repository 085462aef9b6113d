"""`hgedge prompt`: train source prompts and look at them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import note, out, print_json, progress_bar, reports_errors
from hgprompt_edge.cli.server import needs_server

if TYPE_CHECKING:
    from hgprompt_edge.prompts import Prompt

app = typer.Typer(help="Train source prompts and look at them.", no_args_is_help=True)


@app.command()
@reports_errors
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
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images, if not the backbone's own.")
    ] = None,
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
    json: options.Json = False,
) -> None:
    """Train one source prompt by VPT; run it again to go on after an interruption."""
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.files import check_writable
    from hgprompt_edge.prompts import write_prompt

    if task is None and data is None:
        raise UserError("--task: name a data set, or give your own images with --data FOLDER")
    _make_folder(output)
    check_writable(output, "--output")

    from hgprompt_edge.tasks import images_beyond, load_task
    from hgprompt_edge.transfer.source import train_source
    from hgprompt_edge.vit.backbone import load_backbone
    from hgprompt_edge.vit.train import Recipe, fastest_precision

    vit = load_backbone(backbone or "bundled", checkpoint=checkpoint, image_size=image_size)
    recipe = Recipe(
        tokens=tokens,
        mode="shallow" if shallow else "deep",
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        init_seed=init_seed,
        seed=seed,
        keep_last=keep_last,
        precision=fastest_precision(),
    )
    with progress_bar() as report:
        load = partial(
            load_task,
            task,
            vit.preprocessing,
            data=data,
            seed=seed,
            progress=lambda done, total: report("reading images", done, total),
        )
        images = load(download=download)
        more = images_beyond(images, load(limit=None)) if all_images else None
        path = output / f"{images.name}.safetensors"
        state = output / f".{images.name}.training"
        if state.exists():
            note(f"resuming from {state}")
        prompt, _ = train_source(
            vit,
            images,
            recipe,
            more=more,
            state=state,
            report=lambda done, total: report("epochs", done, total),
        )
    write_prompt(path, prompt)
    state.unlink(missing_ok=True)
    if json:
        print_json({"prompt": str(path), **_facts(prompt)})
        return
    out.print(_worth(prompt), soft_wrap=True)
    out.print(f"{path}", soft_wrap=True)
    out.print(f"next: hgedge fit --sources {output} --task NAME", soft_wrap=True)


@app.command()
@reports_errors
def show(
    source: Annotated[str, typer.Argument(help="A prompt file, a bank's folder, or `bundled`.")],
    json: options.Json = False,
) -> None:
    """Print what a prompt or a bank holds."""
    from hgprompt_edge.prompts import read_bank, read_prompt

    path = Path(source)
    prompts = (read_prompt(path),) if path.is_file() else read_bank(source).prompts
    if json:
        print_json([_facts(prompt) for prompt in prompts])
        return
    first = prompts[0]
    layers, tokens, width = first.tokens.shape
    out.print(
        f"backbone {first.backbone} ({first.backbone_sha256[:12]}), {first.image_size} px, "
        f"{first.mode}: {layers} layers x {tokens} tokens x {width}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("prompt", "family", "classes", "unprompted", "prompted", "gain", "init seed"):
        table.add_column(name, justify="left" if name in ("prompt", "family") else "right")
    for prompt in prompts:
        table.add_row(
            prompt.name,
            prompt.family,
            str(len(prompt.classes)),
            _percent(prompt.test_accuracy_unprompted),
            _percent(prompt.test_accuracy),
            _gain(prompt),
            str(prompt.init_seed),
        )
    out.print(table)


def _facts(prompt: Prompt) -> dict[str, Any]:
    return {
        "name": prompt.name,
        "backbone": prompt.backbone,
        "backbone_sha256": prompt.backbone_sha256,
        "image_size": prompt.image_size,
        "mode": prompt.mode,
        "shape": list(prompt.tokens.shape),
        "init_seed": prompt.init_seed,
        "task": prompt.task,
        "family": prompt.family,
        "classes": list(prompt.classes),
        "test_accuracy": prompt.test_accuracy,
        "test_accuracy_unprompted": prompt.test_accuracy_unprompted,
        "sha256": prompt.sha256,
        "recipe": prompt.recipe,
    }


def _worth(prompt: Prompt) -> str:
    if prompt.test_accuracy is None:
        return f"{prompt.name}: trained; no test part to measure it on"
    return (
        f"{prompt.name}: test {_percent(prompt.test_accuracy)}, "
        f"unprompted {_percent(prompt.test_accuracy_unprompted)} with the same head "
        f"({_gain(prompt)})"
    )


def _gain(prompt: Prompt) -> str:
    if prompt.test_accuracy is None or prompt.test_accuracy_unprompted is None:
        return ""
    gain = f"{100 * (prompt.test_accuracy - prompt.test_accuracy_unprompted):+.1f}"
    error = prompt.recipe.get("test_standard_error")
    return f"{gain} ± {100 * error:.1f}" if error is not None else gain


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
