"""`hgedge bench`: latency, throughput, load time, memory and size of models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli import options
from hgprompt_edge.cli.console import out, print_json, progress_bar, reports_errors


@reports_errors
def bench(
    models: Annotated[list[Path], typer.Argument(help="Models that `hgedge export` wrote.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run.")] = 1,
    batch: Annotated[
        int, typer.Option(min=1, max=options.MAX_BATCH, help="Images in one run.")
    ] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 50,
    json: options.Json = False,
) -> None:
    """Measure models in turns: latency, throughput, load, cold start, memory, size."""
    from hgprompt_edge.device.bench import bench as measure
    from hgprompt_edge.device.cpu import cpu_features

    with progress_bar() as report:
        rows = measure(
            models,
            threads=threads,
            batch=batch,
            runs=runs,
            report=lambda done, total: report("rounds", done, total),
        )
    machine = {"cpu_features": cpu_features(), "threads": threads, "batch": batch, "runs": runs}
    if json:
        print_json({**machine, "models": [vars(row) for row in rows]})
        return
    features = " ".join(cpu_features())
    out.print(f"cpu: {features}; threads {threads}, batch {batch}, {runs} runs", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    several = any(row.folded_prompts > 1 for row in rows)
    if several:
        table.add_column("folded prompts", justify="right")
    for name in ("p50 ms", "p90", "p99", "img/s", "ratio", "load ms", "start", "peak MB", "file"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        latency = (f"{value:.2f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms))
        figures = (row.load_ms, row.cold_start_ms, row.peak_mb)
        table.add_row(
            row.model,
            *([str(row.folded_prompts)] if several else []),
            *latency,
            f"{row.images_per_s:.1f}",
            f"{row.ratio:.2f}",
            *(f"{value:.0f}" for value in figures),
            f"{row.file_mb:.1f}",
        )
    out.print(table)
