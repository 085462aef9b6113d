"""`hgedge fit`: learn how to mix the source prompts for a task."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from hgprompt_edge.cli import options
from hgprompt_edge.cli.condition import condition_names, condition_state, worth_table
from hgprompt_edge.cli.console import (
    fastest,
    note,
    out,
    print_json,
    progress_bar,
    reports_errors,
)
from hgprompt_edge.cli.inputs import bank_and_backbone
from hgprompt_edge.cli.server import needs_server

if TYPE_CHECKING:
    from hgprompt_edge.bundle import Bundle, Row
    from hgprompt_edge.tasks import Task
    from hgprompt_edge.transfer.condition import Worth
    from hgprompt_edge.transfer.fit import HGPrompt
    from hgprompt_edge.transfer.pooling import Pooling
    from hgprompt_edge.vit.backbone import Backbone

METHODS = {
    "none": "no prompt",
    "best_source": "best source",
    "uniform": "uniform",
    "learned": "learned",
    "tuned": "tuned",
}

OF_A_BANK = {"lam", "steps", "refine", "space", "keep_sources"}
"""Parameters that only a fit with prompts looks at."""
OF_MERGE = {"files", "merge", "bundle", "checkpoint", "output", "json"}
"""Parameters that --merge looks at."""


class Space(str, Enum):
    """Where gradients of the sources are compared."""

    HEAD = "head"
    PROMPT = "prompt"
    COSINE = "cosine"


class HeadKind(str, Enum):
    """Classifiers on the features that are tried."""

    AUTO = "auto"
    LDA = "lda"
    LOGISTIC = "logistic"


@reports_errors
@needs_server
def fit(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="With --merge: what `hgedge adapt --send` wrote, files or a folder of them.",
            show_default=False,
        ),
    ] = None,
    sources: options.Sources = None,
    task: options.Task = None,
    data: options.Data = None,
    download: options.Download = False,
    backbone: options.BackboneName = None,
    checkpoint: options.Checkpoint = None,
    image_size: options.ImageSize = None,
    lam: Annotated[
        float, typer.Option("--lambda", min=0.0, help="Weight of the gradient conflict.")
    ] = 0.003,
    steps: Annotated[int, typer.Option(min=0, help="Steps on cached features.")] = 300,
    refine: Annotated[
        int,
        typer.Option(min=0, help="Exact steps through the ViT, with a weight for each layer."),
    ] = 8,
    space: Annotated[Space, typer.Option(help="Where gradients are compared.")] = Space.HEAD,
    head: Annotated[
        HeadKind, typer.Option(help="Classifiers to choose from; auto: both kinds.")
    ] = HeadKind.AUTO,
    seed: options.Seed = 0,
    device: options.Device = options.DeviceName.AUTO,
    precision: options.Precision = options.PrecisionName.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Bundle file (default: TASK.hgbundle).", show_default=False
        ),
    ] = None,
    keep_sources: Annotated[
        bool, typer.Option(help="Keep the source prompts in the bundle, for the device.")
    ] = True,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Train condition prompts, too, as `hgedge condition` does: dark,blur,noise,cast,"
            "jpeg,lowres or some of them.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Average what devices learned, instead of fitting."),
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="--merge: bundle that the devices' model came from (default: the newest here).",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Learn how to mix the source prompts, fit a head, write one bundle and a figure."""
    from hgprompt_edge.bundle import SUFFIX, write_bundle
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.files import check_writable
    from hgprompt_edge.prompts import SHALLOW

    start = time.perf_counter()
    if merge:
        from hgprompt_edge.cli.merge import merge_into

        _check_merge(context)
        merge_into(files or [], bundle, output, checkpoint, json)
        return
    if files or bundle:
        raise UserError("FILES and --bundle: go with --merge alone; add it or leave them out")
    if task is None and data is None:
        raise UserError("--task: name a data set, or give your own images with --data FOLDER")
    check_writable(output.parent if output else Path(), "--output")

    from hgprompt_edge.tasks import load_task
    from hgprompt_edge.transfer.condition import check_names, tune_conditions
    from hgprompt_edge.transfer.figure import draw_fit
    from hgprompt_edge.transfer.fit import HGPrompt
    from hgprompt_edge.transfer.plain import fit_head
    from hgprompt_edge.transfer.pooling import extra_cost
    from hgprompt_edge.vit.fastest import check_device

    check_device(device.value)
    bank, vit = bank_and_backbone(sources, backbone, checkpoint, image_size)
    if bank is None:
        _check_plain(context, sources, vit)
    wanted = [] if conditions is None else condition_names(conditions)
    if conditions is not None:  # before a minute of fitting
        check_names(wanted)
        if bank is not None and (not keep_sources or bank.mode == SHALLOW):
            why = "--no-keep-sources" if not keep_sources else "shallow prompts"
            raise UserError(
                "--conditions: a device mixes them with the bundle's deep source prompts, and with "
                f"{why} there are none; leave one of the two out"
            )
    with progress_bar() as report:
        images = load_task(
            task,
            vit.preprocessing,
            data=data,
            seed=seed,
            download=download,
            progress=lambda done, total: report("reading images", done, total),
        )
        vit = fastest(vit, device, precision)
        mixer: HGPrompt | None = None
        if bank is None:
            fitted, pooling = fit_head(vit, images, head=head.value, seed=seed, progress=report)
        else:
            mixer = HGPrompt(
                lam=lam,
                steps=steps,
                refine=refine,
                space=space.value,
                head=head.value,
                seed=seed,
                keep_sources=keep_sources,
            ).fit(bank, vit, images, progress=report)
            fitted, pooling = mixer.bundle_, mixer.pooling_
        path = output or Path(f"{images.name}{SUFFIX}")
        state = condition_state(path, images.name)
        worths: tuple[Worth, ...] = ()
        if wanted:
            fitted, worths = tune_conditions(
                fitted, vit, images, wanted, report=report, state=state
            )
    write_bundle(path, fitted)
    if wanted:
        shutil.rmtree(state, ignore_errors=True)
    figure = None
    if mixer is not None:
        figure = path.with_suffix(".png")
        draw_fit(fitted, mixer.history_, figure)
    cost = 0.0
    if fitted.pooling != vit.pooling:
        cost = extra_cost(vit.with_pooling(fitted.pooling), images.train.pixels)
    left_out = mixer.left_out_ if mixer else ()
    seconds = time.perf_counter() - start
    if json:
        document = _document(fitted, left_out, images, path, figure, seconds)
        document["pooling"] = {**vars(pooling), "cost": round(cost, 3)}
        print_json({**document, "conditions": [vars(worth) for worth in worths]})
    else:
        _print_result(fitted, left_out, pooling, images, path, figure, worths, cost, seconds)


def _check_plain(context: typer.Context, sources: str | None, backbone: Backbone) -> None:
    """Say that no prompts are used; refuse options that would be ignored."""
    from hgprompt_edge.errors import UserError

    unused = _given(context, lambda name: name in OF_A_BANK)
    if unused:
        raise UserError(f"{unused[0]}: for prompts, and there are none to mix here; leave it out")
    why = "" if sources else f"no prompts for {backbone.name} at {backbone.image_size} px: "
    note(f"{why}fit learns the best head on frozen features")


def _given(context: typer.Context, chosen: Callable[[str], bool]) -> list[str]:
    """Options among the chosen parameters that the user gave."""
    return [
        "/".join((*parameter.opts, *parameter.secondary_opts))
        for parameter in context.command.params
        if chosen(str(parameter.name)) and options.is_given(context, str(parameter.name))
    ]


def _check_merge(context: typer.Context) -> None:
    """Refuse options that a merge would not look at."""
    from hgprompt_edge.errors import UserError

    unused = _given(context, lambda name: name not in OF_MERGE)
    if unused:
        raise UserError(f"--merge: fits nothing and takes no images; leave {', '.join(unused)} out")


def _document(
    bundle: Bundle,
    left_out: tuple[str, ...],
    images: Task,
    path: Path,
    figure: Path | None,
    seconds: float,
) -> dict[str, Any]:
    from hgprompt_edge.prompts import source_shares

    names = [source["name"] for source in bundle.sources]
    return {
        "task": images.name,
        "images": _counts(images),
        "unreadable": list(images.unreadable),
        "left_out": list(left_out),
        "learned_weights": _by_name(names, source_shares(bundle.learned_weights)),
        "learned_weights_by_layer": (
            _by_name(names, bundle.learned_weights) if bundle.learned_weights.ndim == 2 else None
        ),
        "weights": _by_name(names, source_shares(bundle.weights)),
        "objective": bundle.objective,
        "table": [vars(row) for row in bundle.table],
        "choice": bundle.choice,
        "bundle": str(path),
        "figure": figure and str(figure),
        "seconds": round(seconds, 2),
    }


def _by_name(names: list[str], weights: npt.NDArray[np.floating]) -> dict[str, Any]:
    return dict(zip(names, weights.tolist(), strict=True))


def _print_result(
    bundle: Bundle,
    left_out: tuple[str, ...],
    pooling: Pooling,
    images: Task,
    path: Path,
    figure: Path | None,
    worths: tuple[Worth, ...],
    cost: float,
    seconds: float,
) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in _counts(images).items())
    out.print(f"{images.name}: {len(images.classes)} classes; {counts} images", soft_wrap=True)
    for name in images.unreadable:
        note(f"skipped {name}")
    if left_out:
        out.print(f"left out, same family as the target: {', '.join(left_out)}")
    if pooling.gain:
        out.print(_pooling_line(pooling, cost), soft_wrap=True)
    if bundle.sources:
        out.print(_weights_table(bundle))
        out.print(_objective_line(bundle.objective), soft_wrap=True)
        out.print(_log_loss_line(bundle.objective), soft_wrap=True)
    out.print(never_worse_table(bundle))
    if bundle.sources:
        out.print(f"chosen on held-out images: {_choice(bundle, images)}", soft_wrap=True)
    if worths:
        out.print(worth_table(worths))
    written = f"{path}, {figure}" if figure else f"{path}"
    out.print(f"{written} ({seconds:.0f} s)", soft_wrap=True)
    how = "--adapt" if worths else "--format onnx"
    out.print(f"next: hgedge export {path} {how}", soft_wrap=True)


def _pooling_line(pooling: Pooling, cost: float) -> str:
    """Say what the head sees where it is not the backbone's own, and what that costs."""
    what = {"token": "the class token", "avg": "the mean of the patch tokens"}
    name = what.get(pooling.name, "the class token and the mean of the patch tokens")
    return (
        f"features: {name}; without a prompt this gains {pooling.gain:.3f} ± {pooling.error:.3f} "
        f"nats an image over the class token, and an image takes {100 * cost:+.0f} % (PyTorch, one "
        "thread)"
    )


def _choice(bundle: Bundle, images: Task) -> str:
    """Say what was chosen, and why where that has not the lowest log-loss."""
    from hgprompt_edge.transfer.choice import MIN_GAIN, choose

    none, best = bundle.table[0], bundle.table[choose(bundle.table)]
    if bundle.choice == best.method or none.cross_log_loss is None or best.cross_log_loss is None:
        return METHODS[bundle.choice]
    count = len(images.train) + len(images.validation)
    gain = (none.cross_log_loss - best.cross_log_loss) * count
    return (
        f"{METHODS[bundle.choice]}, as {METHODS[best.method]} gains {gain:.1f} nats over all "
        f"{count} images and has to gain {MIN_GAIN:g}"
    )


def _counts(images: Task) -> dict[str, int]:
    return {
        "train": len(images.train),
        "validation": len(images.validation),
        "test": len(images.test),
    }


def _weights_table(bundle: Bundle) -> Table:
    """Share of each source, and its weight in each layer where these differ."""
    from hgprompt_edge.prompts import source_shares

    table = Table(box=None, pad_edge=False)
    table.add_column("source")
    table.add_column("learned weight", justify="right")
    table.add_column("")
    layers = bundle.learned_weights.ndim == 2
    if layers:
        table.add_column("by layer")
    shares = source_shares(bundle.learned_weights)
    for row, (source, share) in enumerate(zip(bundle.sources, shares, strict=True)):
        cells = [source["name"], f"{share:.3f}", "━" * round(30 * float(share))]
        if layers:
            cells.append(_sparkline(bundle.learned_weights[row], bundle.learned_weights.max()))
        table.add_row(*cells)
    return table


def _sparkline(values: npt.NDArray[np.floating], largest: float) -> str:
    """Draw each value in [0, largest] as a block of one of eight heights."""
    heights = np.clip(np.ceil(8 * values / largest), 1, 8).astype(int)
    return "".join("▁▂▃▄▅▆▇█"[height - 1] for height in heights)


def _objective_line(objective: dict[str, Any]) -> str:
    return (
        f"H-score {objective['H']:.2f} (noise floor {objective['floor']:.2f}), "
        f"conflict R {objective['R']:.3f}, "
        f"effective sources {objective['effective_sources']:.1f} of {objective['sources']}"
    )


def _log_loss_line(objective: dict[str, Any]) -> str:
    """Say which mix was learned, and what it holds out on the training images."""
    taken = objective["taken"]
    where = {
        "exact": f"exact step {objective['refine_steps']}",
        "objective": "where J ended on cached features",
        "uniform": "the uniform mix",
    }.get(taken, f"the source {taken}")
    if objective["log_loss"] is None:
        return f"learned: {where}; with one image a class none can be held out"
    gain = "" if taken == "uniform" else f", uniform {objective['log_loss_uniform']:.3f}"
    return f"learned: {where}, cross-fitted log-loss {objective['log_loss']:.3f}{gain}"


def never_worse_table(bundle: Bundle) -> Table:
    """Ways to use the sources and what each is worth; the chosen one in bold.

    The log-loss is what the choice goes by: cross-fitted over training and validation images, else
    validation's.
    """
    crossed = all(row.cross_log_loss is not None for row in bundle.table)
    table = Table(box=None, pad_edge=False)
    for name in ("method", "head", "validation", "log-loss", "test"):
        table.add_column(name, justify="left" if name in ("method", "head") else "right")
    for row in bundle.table:
        table.add_row(*_cells(row, crossed), style="bold" if row.method == bundle.choice else None)
    return table


def _cells(row: Row, crossed: bool) -> tuple[str, ...]:
    test = "" if row.test_accuracy is None else f"{100 * row.test_accuracy:.1f} %"
    loss = row.cross_log_loss if crossed else row.val_log_loss
    return METHODS[row.method], row.head, f"{100 * row.val_accuracy:.1f} %", f"{loss:.3f}", test
