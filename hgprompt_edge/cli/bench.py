"""`hgedge bench`: latency, throughput, load time, memory and size of models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hgprompt_edge.cli.evaluate import describe, evaluate_on, notes_on_data
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_json, reports_errors
from hgprompt_edge.cli.shared.left_out import note_left_out
from hgprompt_edge.cli.shared.opened import check_one_task, open_model
from hgprompt_edge.cli.shared.progress import progress_bar
from hgprompt_edge.cli.shared.text import as_interval
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.data.labelled import Labelled
    from hgprompt_edge.evaluate.run import Evaluation


@reports_errors
def bench(
    models: Annotated[list[Path], typer.Argument(help="Models that `hgedge export` wrote.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one run.")] = 1,
    batch: Annotated[
        int, typer.Option(min=1, max=options.MAX_BATCH, help="Images in one run.")
    ] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 50,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images, as `evaluate` takes them: also measure accuracy.",
            show_default=False,
        ),
    ] = None,
    split: options.Split = None,
    class_map: options.Map = None,
    json: options.Json = False,
) -> None:
    """Measure models in turns: latency, throughput, load, cold start, memory, size."""
    from hgprompt_edge.runtime.bench import bench as measure
    from hgprompt_edge.runtime.cpu import cpu_features

    for model in models:
        check_one_task(model)

    if data is None and (split or class_map):
        raise UserError("--split and --map: need labelled images; name them with --data")
    judged = None if data is None else _judge(models, data, split, class_map, threads)
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
        found = [{}] * len(rows) if judged is None else _accuracies(judged[1])
        document = [{**vars(row), **more} for row, more in zip(rows, found, strict=True)]
        print_json({**machine, **_used(judged), "models": document})
        return
    features = " ".join(cpu_features())
    out.print(f"cpu: {features}; threads {threads}, batch {batch}, {runs} runs", soft_wrap=True)
    if judged is not None:
        out.print(describe(*judged), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    several = any(row.folded_prompts > 1 for row in rows)
    if several:
        table.add_column("folded prompts", justify="right")
    for name in ("p50 ms", "p90", "p99", "img/s", "ratio", "load ms", "start", "peak MB", "file"):
        table.add_column(name, justify="right", no_wrap=True)
    if judged is not None:
        table.add_column("accuracy", justify="right")
    for place, row in enumerate(rows):
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
            *([] if judged is None else [str(judged[1].figures[place].accuracy)]),
        )
    out.print(table)


def _judge(
    models: list[Path],
    data: Path,
    split: options.SplitName | None,
    class_map: list[str] | None,
    threads: int,
) -> tuple[Labelled, Evaluation]:
    """Run the models over labelled images, as `evaluate` does, and say what to know of these."""
    predictors = [open_model(model, threads=threads) for model in models]
    images, found = evaluate_on(predictors, data, split, class_map)
    for text in notes_on_data(images, found):
        note(text)
    note_left_out(found.unreadable, images.left_out)
    return images, found


def _accuracies(found: Evaluation) -> list[dict[str, object]]:
    return [{"accuracy": as_interval(figures.accuracy)} for figures in found.figures]


def _used(judged: tuple[Labelled, Evaluation] | None) -> dict[str, object]:
    """Return what a JSON document says of the images."""
    if judged is None:
        return {}
    images, found = judged
    return {"data": images.data, "part": images.part, "images": len(found.images)}
