"""`hgedge prompt`: train source prompts, import those of others and look at them."""

from __future__ import annotations

import typer

from hgprompt_edge.cli.prompt.importing import import_
from hgprompt_edge.cli.prompt.show import show
from hgprompt_edge.cli.prompt.train import train

app = typer.Typer(help="Train, import and show source prompts.", no_args_is_help=True)
app.command()(train)
app.command("import")(import_)
app.command()(show)
