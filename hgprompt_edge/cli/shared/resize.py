"""`--resize`: how pictures become square, and what `fit --resize auto` prints of the choice."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hgprompt_edge.cli.shared.console import note, out
from hgprompt_edge.cli.shared.fit_table import interval, unproven
from hgprompt_edge.cli.shared.options import DeviceName, PrecisionName, ResizeOrAuto
from hgprompt_edge.cli.shared.progress import Report
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from enum import Enum

    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import FoundTask, Task
    from hgprompt_edge.fit.resize import ResizeChoice, Tried
    from hgprompt_edge.images.preprocess import Preprocessing

MUCH = 0.5
"""Share of the area of half of the pictures that a note says is cut off. Photographs lose a quarter
to 44 % (4 : 3 to 16 : 9) as those do that backbones are trained with; showing all of them gained
nothing on average (METHOD 6)."""


def check_resize(resize: Enum | None, found: FoundTask) -> None:
    """Refuse a resize rule for images that are drawn at the size of the model.

    Raises
    ------
    UserError
        They are.
    """
    if resize is not None and found.parts is None:
        raise UserError(
            f"--resize {resize.value}: the images of {found.name} are drawn square, at the size of "
            "the model; leave it out"
        )


def resized(
    backbone: Backbone,
    resize: ResizeOrAuto | None,
    found: FoundTask,
    device: DeviceName,
    precision: PrecisionName,
    head: Any,
    seed: int,
    report: Report,
) -> tuple[Backbone, ResizeChoice | None]:
    """Return the backbone for pictures made square as the option says, and what `auto` found."""
    if resize is None:
        return backbone, None
    if resize is not ResizeOrAuto.AUTO:
        return backbone.with_rule(resize.value), None

    from hgprompt_edge.backbones.fastest import choose_compute
    from hgprompt_edge.fit.resize import choose_resize

    compute = choose_compute(backbone, device.value, precision.value).compute
    chosen = choose_resize(
        backbone.with_compute(compute),
        found.without_test().load,
        head=head,
        seed=seed,
        progress=report,
    )
    return backbone.with_rule(chosen.kept.rule), chosen


def note_cut_away(images: Task) -> None:
    """Say where much of the pictures is cut off that nobody asked to cut."""
    if images.cut_away > MUCH:
        note(
            f"half of the pictures lose {100 * images.cut_away:.0f} % of their area or more to the "
            "central crop; `--resize auto` tests on held-out images whether to show all of them"
        )


def print_resize(choice: ResizeChoice) -> None:
    """Print what held-out images say of each rule, which one is kept, and why."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("resize", no_wrap=True)
    for title in (
        f"{choice.images:,} images held out in turn",
        "change (90 % interval)",
        "log-loss",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for each in choice.tried:
        table.add_row(
            each.rule,
            interval(each.accuracy, choice.images) if choice.images else "",
            str(each.change) if each.change else "",
            f"{each.log_loss:.3f}" if choice.images else "",
            style="bold" if each is choice.kept else None,
        )
    out.print(table)
    out.print(f"resize: {_why(choice)}")


def _why(choice: ResizeChoice) -> str:
    own, kept = choice.tried[0], choice.kept
    if kept is not own and kept.change is not None:
        return f"{kept.rule}, {kept.change.change:+.1f} points over {own.rule}"
    others = [each for each in choice.tried[1:] if each.proof and each.proof.gain > 0]
    if not others:
        return f"{own.rule}, as nothing holds out better"
    best = min(others, key=lambda each: each.log_loss)
    return f"{own.rule}, as {unproven(choice.images, best.rule)}"


def resize_document(
    rule: Preprocessing, images: Task, choice: ResizeChoice | None
) -> dict[str, Any]:
    """Return what `fit --json` says of the resize rule."""
    from hgprompt_edge.images.preprocess import RULES

    name = next(name for name, mode in RULES.items() if mode == rule.crop_mode)
    tried = [_tried(each) for each in choice.tried] if choice else []
    return {"rule": name, "cut_away": round(images.cut_away, 3), "tried": tried}


def _tried(each: Tried) -> dict[str, Any]:
    document: dict[str, Any] = {
        "rule": each.rule,
        "accuracy": each.accuracy,
        "log_loss": each.log_loss,
    }
    if each.change is not None and each.proof is not None:
        low, high = each.change.interval
        document |= {"change": each.change.change, "low": low, "high": high, **asdict(each.proof)}
    return document
