"""`hgedge compare`: the learned mix beside what one would do otherwise."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hgprompt_edge.cli.image_sizes import IGNORED, compare_sizes, load_sizes, parse_sizes
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import fastest, out, print_json, reports_errors, resumes
from hgprompt_edge.cli.shared.inputs import bank_and_backbone, find_images, needs_bank
from hgprompt_edge.cli.shared.leaks import leaks_document, note_leaks
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.resize import check_resize
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server
from hgprompt_edge.cli.shared.text import as_json

if TYPE_CHECKING:
    from hgprompt_edge.compare.run import Result


@reports_errors
@resumes
@needs_server
def compare(
    context: typer.Context,
    more_sizes: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="PIXELS")] = None,
    sources: options.Sources = None,
    task: options.Task = None,
    data: options.Data = None,
    download: options.Download = False,
    group_by_hash: options.GroupByHash = False,
    backbone: options.BackboneName = None,
    checkpoint: options.Checkpoint = None,
    image_size: options.ImageSize = None,
    resize: options.Resize = None,
    image_sizes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PIXELS...",
            help="Instead of methods compare image sizes, such as 112 168 224: accuracy against "
            "latency of no prompt and of one to three folded prompts.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas: none, best_source, uniform, spot, h_only, "
            "alignment_only, gradient_free, soup, prediction_average, hgprompt, hgprompt_guarded, "
            "two_folded, three_folded, tune, tune_guarded, vpt_scratch.",
            show_default=False,
        ),
    ] = None,
    tune_steps: Annotated[int, typer.Option(min=1, help="Training steps of tune.")] = 60,
    seed: options.Seed = 0,
    device: options.Device = options.DeviceName.AUTO,
    precision: options.Precision = options.PrecisionName.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file (default: TASK.compare.json, with --image-sizes TASK.sizes.json).",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare ways to use the sources on one task: a table, a JSON file and a figure."""
    from hgprompt_edge.cli.shared.outputs import check_output, check_way
    from hgprompt_edge.files import write_bytes

    began = time.perf_counter()
    given = [option for name, option in IGNORED.items() if options.is_given(context, name)]
    sizes = parse_sizes(image_sizes, more_sizes, given)
    check_output(output, "--output", ".json")
    task_found = find_images(task, data, seed=seed, download=download, group_by_hash=group_by_hash)
    path = output or Path(f"{task_found.name}.{'sizes' if sizes else 'compare'}.json")
    check_way(path, (".png",))
    check_resize(resize, task_found)
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device, choose_compute
    from hgprompt_edge.compare.baselines import METHODS, learn
    from hgprompt_edge.compare.compare_figure import draw_comparison
    from hgprompt_edge.compare.contest import Budget
    from hgprompt_edge.compare.estimate import compare_passes
    from hgprompt_edge.compare.run import compare as run
    from hgprompt_edge.fit.checks import leave_out_family

    check_device(device.value)
    chosen = _chosen(methods, tuple(METHODS))
    found, vit = bank_and_backbone(sources, backbone, checkpoint, image_size)
    bank, vit = needs_bank(found, vit, sources), vit.with_rule(resize and resize.value)
    if sizes:
        name = backbone if sources is None else backbone or bank.backbone
        backbones = load_sizes(sizes, vit, name, checkpoint, resize and resize.value)
        choice = choose_compute(vit, device.value, precision.value)
        compare_sizes(bank, backbones, choice, task_found.load, path, seed, json, began)
        return
    with progress_bar() as report:
        images = task_found.load(vit.preprocessing, progress=partial(report, "reading images"))
        note_left_out(images.unreadable, images.left_out)
        leaks = note_leaks(images)
        budget = Budget(tune_steps=tune_steps)
        usable, _ = leave_out_family(bank, images)
        passes = compare_passes(images, usable, chosen, budget)
        vit = fastest(vit, device, precision, passes)
        contest, results = run(
            bank,
            vit,
            images,
            methods=chosen,
            budget=budget,
            seed=seed,
            progress=lambda _, done, total: report("methods", done, total),
        )
    names = [prompt.name for prompt in contest.bank.basis]
    document = {
        "task": images.name,
        "seed": seed,
        "sources": names,
        "rows": [_row(result) for result in results],
    }
    write_bytes(path, f"{as_json(document)}\n".encode())
    figure = path.with_suffix(".png")
    history = learn(contest).history if "hgprompt" in chosen else []
    with working("drawing"):
        draw_comparison(images.name, names, results, history, figure)
    if json:
        print_json({**document, **of_task(images), **leaks_document(leaks), "figure": str(figure)})
        return
    out.print(_table(results))
    out.print(f"{path}, {figure} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)


def _chosen(methods: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    from hgprompt_edge.errors import UserError

    if methods is None:
        return known
    names = tuple(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise UserError(f"--methods: names no method (known: {', '.join(known)})")
    for name in names:
        if name not in known:
            raise UserError(f"--methods {name}: no such method (known: {', '.join(known)})")
    return names


def _row(result: Result) -> dict[str, Any]:
    return {
        "method": result.method,
        "val_accuracy": result.val_accuracy,
        "accuracy": result.accuracy,
        "low": result.low,
        "high": result.high,
        "weights": [round(float(weight), 6) for weight in result.weights],
        "effective_sources": round(result.effective_sources, 3),
        "image_passes": result.image_passes,
        "inference_passes": result.inference_passes,
        "seconds": round(result.seconds, 2),
    }


def _table(results: tuple[Result, ...]) -> Table:
    from hgprompt_edge.compare.compare_figure import TITLES

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    columns = ("method", "held out", "test", "95 % interval", "sources", "prompts", "passes")
    for name in columns:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for result in results:
        table.add_row(
            TITLES[result.method],
            f"{100 * result.val_accuracy:.1f} %",
            *_tested(result),
            f"{result.effective_sources:.1f}",
            f"{result.inference_passes}",
            f"{result.image_passes:,}",
        )
    return table


def _tested(result: Result) -> tuple[str, str]:
    if result.accuracy is None or result.low is None or result.high is None:
        return "", ""
    return f"{100 * result.accuracy:.1f} %", f"{100 * result.low:.1f} to {100 * result.high:.1f}"
