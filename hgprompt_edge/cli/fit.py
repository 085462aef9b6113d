"""`hgedge fit`: learn how to mix the source prompts for a task."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from hgprompt_edge.cli.condition import condition_names, condition_state, why_left_out, worth_table
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import (
    drawn,
    fastest,
    note,
    out,
    print_json,
    print_next,
    progress_bar,
    reports_errors,
    resumes,
    working,
)
from hgprompt_edge.cli.shared.fit_table import print_result
from hgprompt_edge.cli.shared.inputs import bank_and_backbone, find_images
from hgprompt_edge.cli.shared.leaks import leaks_document, note_leaks, write_sheet
from hgprompt_edge.cli.shared.left_out import note_left_out, of_task, write_left_out
from hgprompt_edge.cli.shared.resize import (
    check_resize,
    note_cut_away,
    print_resize,
    resize_document,
    resized,
)
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server
from hgprompt_edge.cli.shared.tuning import train_further, tuning_document, tuning_state

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import Task
    from hgprompt_edge.features.pooling import Pooling
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.training.condition_prompts import Worth
    from hgprompt_edge.training.tune import Tuning

OF_A_BANK = {"lam", "steps", "folded", "keep_sources"}
"""Parameters that only a fit with prompts looks at."""


class HeadKind(str, Enum):
    """Classifiers on the features that are tried."""

    LDA = "lda"
    LOGISTIC = "logistic"


@reports_errors
@resumes
@needs_server
def fit(
    context: typer.Context,
    sources: options.Sources = None,
    task: options.Task = None,
    data: options.Data = None,
    download: options.Download = False,
    group_by_hash: options.GroupByHash = False,
    backbone: options.BackboneName = None,
    checkpoint: options.Checkpoint = None,
    image_size: options.ImageSize = None,
    resize: options.ResizeAuto = None,
    preprocessing: options.Preprocessing = None,
    folded: Annotated[
        int,
        typer.Option(min=1, max=3, help="Most prompts that may run per image, averaged."),
    ] = 1,
    steps: Annotated[int, typer.Option(min=0, help="Passes of the training images.")] = 14,
    lam: Annotated[
        float, typer.Option("--lambda", min=0.0, help="Weight of the gradient conflict.")
    ] = 0.003,
    head: Annotated[HeadKind, typer.Option(help="Classifier on the features.")] = HeadKind.LDA,
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
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Then train the prompt on the task, as `hgedge tune` does; it is kept if held-out "
            "images prove it better.",
        ),
    ] = False,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Train condition prompts, too, as `hgedge condition` does: dark,blur,noise,cast,"
            "jpeg,lowres or some of them.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print heads, log-loss, objective and all weights.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Learn how to mix the source prompts, fit a head, write one bundle and a figure."""
    from hgprompt_edge.artifacts.bundle import SUFFIX, write_bundle
    from hgprompt_edge.data.conditions import check_names
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.files import check_output
    from hgprompt_edge.prompts.bank import SHALLOW

    start = time.perf_counter()
    if tune and folded > 1:
        raise UserError(
            f"--tune: trains one prompt, and --folded {folded} may keep several; leave one of the "
            "two out"
        )
    check_output(output, "--output")
    wanted = [] if conditions is None else condition_names(conditions)
    if conditions is not None:
        check_names(wanted)
    found = find_images(task, data, seed=seed, download=download, group_by_hash=group_by_hash)
    check_resize(resize, found)
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device
    from hgprompt_edge.compare.estimate import fit_passes, tune_passes
    from hgprompt_edge.features.pooling import extra_cost
    from hgprompt_edge.fit.checks import leave_out_family
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.fit.figure import draw_fit
    from hgprompt_edge.fit.plain import fit_head
    from hgprompt_edge.training.condition_prompts import tune_conditions
    from hgprompt_edge.training.tune import tuning_recipe

    check_device(device.value)
    bank, vit = bank_and_backbone(sources, backbone, checkpoint, image_size, preprocessing)
    if bank is None:
        _check_plain(context, sources, vit)
    if wanted and bank is not None and (not keep_sources or bank.mode == SHALLOW):
        why = "--no-keep-sources" if not keep_sources else "shallow prompts"
        raise UserError(
            "--conditions: a device mixes them with the bundle's deep source prompts, and with "
            f"{why} there are none; leave one of the two out"
        )
    with progress_bar() as report:
        vit, rules = resized(vit, resize, found, device, precision, head.value, seed, report)
        images = found.load(vit.preprocessing, progress=partial(report, "reading images"))
        note_left_out(images.unreadable, images.left_out)
        if resize is None:
            note_cut_away(images)
        leaks = note_leaks(images)
        recipe = tuning_recipe(images, seed) if tune else None
        usable = bank and leave_out_family(bank, images)[0]
        passes = fit_passes(images, usable, steps)
        if recipe is not None:
            passes += tune_passes(images, recipe.epochs)
        vit = fastest(vit, device, precision, passes)
        mixer: HGPrompt | None = None
        if bank is None:
            fitted, pooling = fit_head(vit, images, head=head.value, seed=seed, progress=report)
        else:
            mixer = HGPrompt(
                lam=lam,
                steps=steps,
                folded=folded,
                head=head.value,
                seed=seed,
                keep_sources=keep_sources or tune,  # tuning starts from their mix
            ).fit(bank, vit, images, progress=report)
            fitted, pooling = mixer.bundle_, mixer.pooling_
        path = output or Path(f"{images.name}{SUFFIX}")
        tuning: Tuning | None = None
        if recipe:
            tuning = train_further(fitted, vit, images, recipe, path, report)
            fitted = tuning.bundle
            if not keep_sources:
                fitted = replace(fitted, source_tokens=None)
        state = condition_state(path, images.name)
        worths: tuple[Worth, ...] = ()
        if wanted:
            fitted, worths = tune_conditions(
                fitted, vit, images, wanted, report=report, state=state
            )
    for sentence in why_left_out(worths):
        note(f"left out: {sentence}")
    write_bundle(path, fitted)
    write_left_out(images, path)
    write_sheet(images, leaks, path)
    if tuning:
        tuning_state(path, fitted).unlink(missing_ok=True)
    if wanted:
        shutil.rmtree(state, ignore_errors=True)
    figure, cost = None, 0.0
    with working("drawing"):
        if mixer is not None:
            figure = path.with_suffix(".png")
            draw_fit(fitted, mixer.history_, figure)
        if fitted.pooling != vit.pooling:
            cost = extra_cost(vit.with_pooling(fitted.pooling), images.train.pixels)
    left_out = mixer.left_out_ if mixer else ()
    seconds = time.perf_counter() - start
    if json:
        document = _document(fitted, left_out, images, path, figure, seconds)
        document |= leaks_document(leaks)
        document["pooling"] = {**vars(pooling), "cost": round(cost, 3)}
        document["resize"] = resize_document(fitted.preprocessing, images, rules)
        if tuning:
            document["tuning"] = tuning_document(tuning)
        print_json({**document, "conditions": [asdict(worth) for worth in worths]})
    else:
        if rules is not None:
            print_resize(rules)
        _print_result(
            fitted, left_out, pooling, images, path, figure, worths, cost, seconds, verbose
        )


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


def _document(
    bundle: Bundle,
    left_out: tuple[str, ...],
    images: Task,
    path: Path,
    figure: Path | None,
    seconds: float,
) -> dict[str, Any]:
    from hgprompt_edge.prompts.bank import source_shares

    names = [source["name"] for source in bundle.sources]
    return {
        "task": images.name,
        "images": _counts(images),
        **of_task(images),
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
    verbose: bool,
) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in _counts(images).items())
    out.print(f"{images.name}: {len(images.classes)} classes; {counts} images", soft_wrap=True)
    if left_out:
        out.print(f"left out, same family as the target: {', '.join(left_out)}")
    if pooling.name != "token" and pooling.gain:
        out.print(_pooling_line(pooling, cost), soft_wrap=True)
    print_result(bundle, images, verbose)
    if worths:
        out.print(worth_table(worths))
    written = f"{path}, {figure}" if figure else f"{path}"
    out.print(f"{written} ({seconds:.0f} s)", soft_wrap=True)
    print_next(
        "export",
        path,
        *(("--adapt",) if any(worth.kept for worth in worths) else ("--format", "onnx")),
    )


def _pooling_line(pooling: Pooling, cost: float) -> str:
    """Say what the head sees where it is not the backbone's own, and what that costs."""
    what = {"token": "the class token", "avg": "the mean of the patch tokens"}
    name = what.get(pooling.name, "the class token and the mean of the patch tokens")
    gain = f"{pooling.gain:.3f} {drawn('±', '+/-')} {pooling.error:.3f}"
    return (
        f"features: {name}; without a prompt this gains {gain} "
        f"nats an image over the class token, and an image takes {100 * cost:+.0f} % (PyTorch, one "
        "thread)"
    )


def _counts(images: Task) -> dict[str, int]:
    return {
        "train": len(images.train),
        "validation": len(images.validation),
        "test": len(images.test),
    }
