"""`hgedge cache`: what is kept so that the next fit, prompt train or predict is fast."""

from __future__ import annotations

import typer

from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import out, print_json, reports_errors

app = typer.Typer(help="Show or clear the cache.", no_args_is_help=True)


@app.command()
@reports_errors
def clear(json: options.Json = False) -> None:
    """Delete all that is cached; it is computed again when it is needed."""
    from hgprompt_edge.features.cache import clear_cache

    files, size = clear_cache()
    if json:
        print_json({"files": files, "bytes": size})
    else:
        out.print(f"removed {files} files, {size / 1e6:.1f} MB")


@app.command()
@reports_errors
def show(json: options.Json = False) -> None:
    """Print where the cache is and how much it holds."""
    from hgprompt_edge.features.cache import cache_size
    from hgprompt_edge.files import cache_folder

    files, size = cache_size()
    if json:
        print_json({"folder": str(cache_folder()), "files": files, "bytes": size})
    else:
        out.print(f"{cache_folder()}: {files} files, {size / 1e6:.1f} MB", soft_wrap=True)
