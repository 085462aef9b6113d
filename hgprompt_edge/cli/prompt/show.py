"""`hgedge prompt show`: print what a prompt or a bank holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.prompt.facts import facts, gain, outline, percent
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note_ignored, out, print_json, reports_errors

if TYPE_CHECKING:
    from hgprompt_edge.prompts.prompt import Prompt


@reports_errors
def show(
    source: Annotated[
        str, typer.Argument(help="A prompt file, a bank's folder, `dinov2-small` or `tiny`.")
    ],
    json: options.Json = False,
) -> None:
    """Print what a prompt or a bank holds."""
    from hgprompt_edge.prompts.bank import read_bank
    from hgprompt_edge.prompts.prompt import read_prompt

    path = Path(source)
    if path.is_file():
        prompts: tuple[Prompt, ...] = (read_prompt(path),)
    else:
        bank = read_bank(source, match=False)  # matching takes SciPy, which a device has not
        note_ignored(bank)
        prompts = bank.basis
    if json:
        print_json([facts(prompt) for prompt in prompts])
        return
    out.print(outline(prompts[0]), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("prompt", "family", "classes", "without", "with it", "gain", "seed"):
        left = name in ("prompt", "family")
        table.add_column(name, justify="left" if left else "right")
    for prompt in prompts:
        table.add_row(
            prompt.name,
            prompt.family,
            str(len(prompt.classes)),
            percent(prompt.test_accuracy_unprompted),
            percent(prompt.test_accuracy),
            gain(prompt),
            "" if prompt.init_seed is None else str(prompt.init_seed),
        )
    out.print(table)
