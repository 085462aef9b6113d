"""`hgedge backbone list`: the bundled backbones, their size, speed here and accuracy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from hgprompt_edge import models
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import out, print_json, reports_errors
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.cli.shared.server import needs_server

if TYPE_CHECKING:
    from hgprompt_edge.backbones.backbone import Backbone

app = typer.Typer(help="Show the bundled backbones.", no_args_is_help=True)

BATCH, SECONDS = 16, 1.0
"""Images at a time, and how long each backbone is timed at least."""


@app.command("list")
@reports_errors
@needs_server
def list_(json: options.Json = False) -> None:
    """Print the bundled backbones: file size, images a second here, accuracy of their features."""
    from hgprompt_edge.backbones.load import load_backbone
    from hgprompt_edge.prompts.bank import read_bank

    accuracies = models.accuracies()
    rows: list[dict[str, Any]] = []
    with progress_bar() as report:
        for done, name in enumerate(models.NAMES):
            report("timing", done, len(models.NAMES))
            backbone = load_backbone(name)
            rows.append(
                {
                    "name": name,
                    "default": name == models.DEFAULT,
                    "parameters": sum(part.numel() for part in backbone.model.parameters()),
                    "file_mb": round(models.backbone_file(name).stat().st_size / 1e6, 1),
                    "image_size": backbone.image_size,
                    "images_per_second": round(_speed(backbone), 1),
                    "prompts": len(read_bank(name).prompts),
                    "accuracy": accuracies[name],
                }
            )
        report("timing", len(models.NAMES), len(models.NAMES))
    if json:
        print_json(rows)
        return
    out.print(_table(rows))
    out.print(f"default: {models.DEFAULT}")
    out.print("accuracy: of frozen features without a prompt, best head, test images")


def _speed(backbone: Backbone) -> float:
    """Return images a second, forward in float32: the median of batches over a second."""
    import numpy as np

    from hgprompt_edge.backbones.forward import extract_features

    size = backbone.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8)
    extract_features(backbone, pixels, None)  # the first pass allocates
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        extract_features(backbone, pixels, None)
        times.append(time.perf_counter() - began)
    return BATCH / float(np.median(times))


def _table(rows: list[dict[str, Any]]) -> Table:
    sets = list(rows[0]["accuracy"])
    table = Table(box=None, pad_edge=False)
    table.add_column("backbone")
    for title in ("weights", "file", "pixels", "images/s", "prompts", *sets):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['file_mb']:.0f} MB",
            str(row["image_size"]),
            f"{row['images_per_second']:.0f}",
            str(row["prompts"]),
            *(f"{100 * row['accuracy'][name]:.1f} %" for name in sets),
        )
    return table
