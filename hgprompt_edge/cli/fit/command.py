"""`hgedge fit`: learn how to mix the source prompts for a task."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgprompt_edge.cli.condition import condition_names
from hgprompt_edge.cli.fit.carry_out import Plan, carry_out, pooling_cost
from hgprompt_edge.cli.fit.report import document_of, print_fit
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, print_json, reports_errors, resumes
from hgprompt_edge.cli.shared.inputs import bank_and_backbone, find_images
from hgprompt_edge.cli.shared.leaks import SUFFIX as COPIES
from hgprompt_edge.cli.shared.left_out import SUFFIX as LEFT_OUT
from hgprompt_edge.cli.shared.progress import progress_bar, working
from hgprompt_edge.cli.shared.resize import check_resize
from hgprompt_edge.cli.shared.server import load_pytorch, needs_server

if TYPE_CHECKING:
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.prompts.bank import PromptBank


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
            "--lambda",
            min=0.0,
            max=1000.0,
            help="Weight of the gradient conflict.",
            rich_help_panel=METHOD,
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
    from hgprompt_edge.artifacts.bundle_file import SUFFIX
    from hgprompt_edge.cli.shared.outputs import check_output, check_way

    start = time.perf_counter()
    _check_together(tune, folded)
    check_output(output, "--output", SUFFIX)
    wanted = _wanted(conditions)
    found = find_images(task, data, seed=seed, download=download, group_by_hash=group_by_hash)
    path = output or Path(f"{found.name}{SUFFIX}")
    check_way(path, (".png", COPIES, LEFT_OUT))
    check_resize(resize, found)
    load_pytorch()

    from hgprompt_edge.backbones.fastest import check_device
    from hgprompt_edge.fit.checks import check_folded

    check_device(device.value)
    bank, vit = bank_and_backbone(sources, backbone, checkpoint, image_size, preprocessing)
    if bank is None:
        _check_plain(context, sources, vit)
    else:
        check_folded(bank, folded)
        _check_conditions(wanted, bank, keep_sources)
    plan = Plan(
        lam, steps, folded, head.value, seed, keep_sources, tune, wanted, resize, device, precision
    )
    with progress_bar() as report:
        done, vit = carry_out(plan, found, bank, vit, path, report)
    done.write()
    with working("drawing"):
        figure = done.draw()
        cost = pooling_cost(done.bundle, vit)
    seconds = time.perf_counter() - start
    if json:
        print_json(document_of(done, figure, cost, seconds))
    else:
        print_fit(done, figure, cost, seconds, verbose)


def _check_together(tune: bool, folded: int) -> None:
    """Refuse options that exclude each other."""
    from hgprompt_edge.errors import UserError

    if tune and folded > 1:
        raise UserError(
            f"--tune: trains one prompt, but --folded {folded} may keep several; leave out one of "
            "the options"
        )


def _wanted(conditions: str | None) -> tuple[str, ...]:
    """Names of the conditions that were asked for; unknown ones are refused."""
    from hgprompt_edge.data.conditions import check_names

    if conditions is None:
        return ()
    wanted = condition_names(conditions)
    check_names(wanted)
    return tuple(wanted)


def _check_conditions(wanted: tuple[str, ...], bank: PromptBank, keep_sources: bool) -> None:
    """Refuse condition prompts where a device would have nothing to mix them with."""
    from hgprompt_edge.errors import UserError
    from hgprompt_edge.prompts.prompt import SHALLOW

    if not wanted or (keep_sources and bank.mode != SHALLOW):
        return
    why = "shallow prompts" if keep_sources else "--no-keep-sources"
    raise UserError(
        f"--conditions: a device mixes them with the bundle's deep source prompts, and with {why} "
        "there are none; leave one of the two out"
    )


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
