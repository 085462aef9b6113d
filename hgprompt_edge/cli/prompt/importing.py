"""`hgedge prompt import`: take a prompt of others into a bank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.cli.prompt.bank_folder import make_bank_folder
from hgprompt_edge.cli.prompt.facts import facts, outline
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    note_backbone,
    out,
    print_json,
    print_next,
    reports_errors,
)
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server

if TYPE_CHECKING:
    pass


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
    from hgprompt_edge.paths import check_storable, why_not
    from hgprompt_edge.prompts.bank import check_joins
    from hgprompt_edge.prompts.prompt import write_prompt

    for option, text in (("--name", name), ("--task", task), ("--family", family)):
        check_storable(text, option)
    if not name or Path(name).name != name:
        raise UserError(f"--name '{name}': must be a file name without folders; give another one")
    if not file.is_file():
        raise UserError(f"{file}: {why_not(file, 'file')}; name the one that holds the prompt")
    load_pytorch()

    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.data.known_tasks import FAMILIES
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
    make_bank_folder(output)
    path = output / f"{name}.safetensors"
    write_prompt(path, prompt)
    if json:
        print_json({"prompt": str(path), **facts(prompt)})
        return
    out.print(outline(prompt), soft_wrap=True)
    out.print(f"{path}", soft_wrap=True)
    weights = ("--checkpoint", checkpoint) if checkpoint else ()
    print_next("fit", "--sources", output, *weights, "--task", "NAME")
