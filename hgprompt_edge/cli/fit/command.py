"""`hgedge fit`: learn how to mix the source prompts for a task."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.cli.condition import condition_names, condition_state, why_left_out
from hgprompt_edge.cli.fit.report import document_of, print_fit
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import fastest, note, print_json, reports_errors, resumes
from hgprompt_edge.cli.shared.inputs import bank_and_backbone, find_images
from hgprompt_edge.cli.shared.leaks import leaks_document, note_leaks, write_sheet
from hgprompt_edge.cli.shared.left_out import note_left_out, write_left_out
from hgprompt_edge.cli.shared.progress import progress_bar, working
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
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.training.condition_prompts import Worth
    from hgprompt_edge.training.tune import Tuning


OF_A_BANK = {"lam", "steps", "folded", "keep_sources"}
"""Parameters that only a fit with prompts looks at."""


METHOD = "Method"
"""Where `--help` has the options that few need."""


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
    steps: Annotated[
        int, typer.Option(min=0, help="Passes of the training images.", rich_help_panel=METHOD)
    ] = 14,
    lam: Annotated[
        float,
        typer.Option(
            "--lambda", min=0.0, help="Weight of the gradient conflict.", rich_help_panel=METHOD
        ),
    ] = 0.003,
    head: Annotated[
        HeadKind, typer.Option(help="Classifier on the features.", rich_help_panel=METHOD)
    ] = HeadKind.LDA,
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
        bool,
        typer.Option(
            help="Keep the source prompts in the bundle, for the device.", rich_help_panel=METHOD
        ),
    ] = True,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Then train the prompt on the task, as `hgedge tune` does; it is kept if held-out "
            "images speak for it.",
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
    from hgprompt_edge.artifacts.bundle_file import SUFFIX, write_bundle
    from hgprompt_edge.cli.shared.outputs import check_output
    from hgprompt_edge.data.conditions import check_names
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.prompts.prompt import SHALLOW

    start = time.perf_counter()
    if tune and folded > 1:
        raise UserError(
            f"--tune: trains one prompt, but --folded {folded} may keep several; leave out one of "
            "the options"
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
    from hgprompt_edge.fit.choice import FRESH_CONFIDENCE
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
            tuning = train_further(fitted, vit, images, recipe, FRESH_CONFIDENCE, path, report)
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
            draw_fit(fitted, images, mixer.history_, figure)
        if fitted.pooling != vit.pooling:
            cost = extra_cost(vit.with_pooling(fitted.pooling), images.train.pixels)
    seconds = time.perf_counter() - start
    if json:
        document = document_of(fitted, mixer, images, path, figure, seconds)
        document |= leaks_document(leaks)
        document["pooling"] = {**vars(pooling), "cost": round(cost, 3)}
        document["resize"] = resize_document(fitted.preprocessing, images, rules)
        if tuning:
            document["tuning"] = tuning_document(tuning)
        print_json({**document, "conditions": [asdict(worth) for worth in worths]})
    else:
        if rules is not None:
            print_resize(rules)
        print_fit(fitted, mixer, pooling, images, path, figure, worths, cost, seconds, verbose)


def _check_plain(context: typer.Context, sources: str | None, backbone: Backbone) -> None:
    """Say that no prompts are used; refuse options that would be ignored."""
    from hgprompt_edge.errors import UserError

    unused = _given(context, lambda name: name in OF_A_BANK)
    if unused:
        raise UserError(
            f"{unused[0]}: only used to mix prompts, and there are none here; leave it out"
        )
    why = "" if sources else f"no prompts for {backbone.name} at {backbone.image_size} px: "
    note(f"{why}fit learns the best head on frozen features")


def _given(context: typer.Context, chosen: Callable[[str], bool]) -> list[str]:
    """Options among the chosen parameters that the user gave."""
    return [
        "/".join((*parameter.opts, *parameter.secondary_opts))
        for parameter in context.command.params
        if chosen(str(parameter.name)) and options.is_given(context, str(parameter.name))
    ]
