"""What `fit` and `tune` print: what each way to use the sources is worth, and which matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.artifacts.bundle import ROW_TITLES
from hgprompt_edge.cli.shared.console import out
from hgprompt_edge.maths.proportions import Proportion, wilson

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle, Row
    from hgprompt_edge.data import Task

NAMED_SOURCES = 4
"""Sources that are named in the line about shares; the rest is summed up."""


def accuracy_table(bundle: Bundle, images: Task, verbose: bool = False) -> Table:
    """Accuracy of each way to use the sources, with 95 % intervals; the kept one in bold.

    Verbose: also its head and the cross-fitted log-loss by which it was chosen; a tuned prompt has
    none, since it was trained on images that this is taken over.
    """
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column(f"{len(images.validation):,} held-out images", justify="right", no_wrap=True)
    if len(images.test):
        name = f"{len(images.test):,} test images"
        table.add_column(name, justify="right", no_wrap=True)
    if verbose:
        table.add_column("log-loss", justify="right")
        table.add_column("head", overflow="fold")
    crossed = any(row.cross_log_loss is not None for row in bundle.table)
    for row in bundle.table:
        kept = row.method == bundle.choice
        cells = [ROW_TITLES[row.method], interval(row.val_accuracy, len(images.validation))]
        if len(images.test):
            known = row.test_accuracy is not None
            cells.append(interval(row.test_accuracy or 0.0, len(images.test)) if known else "")
        if verbose:
            loss = row.cross_log_loss if crossed else row.val_log_loss
            cells += ["" if loss is None else f"{loss:.3f}", row.head]
        table.add_row(*cells, style="bold" if kept else None)
    return table


def interval(accuracy: float, images: int) -> str:
    """Accuracy in [0, 1] with its 95 % interval (Wilson 1927), such as `79.3 % (76.0 to 82.2)`.

    Parts of images count, where one is looked at several times.
    """
    return str(_proportion(accuracy, images))


def _proportion(accuracy: float, images: int) -> Proportion:
    return wilson(min(accuracy * images, images), images)


def print_result(bundle: Bundle, images: Task, verbose: bool = False) -> None:
    """Print the table, what is kept and why, and which sources matter."""
    out.print(accuracy_table(bundle, images, verbose))
    if too_easy := easy_line(bundle, images):
        out.print(too_easy, soft_wrap=True)
    if len(bundle.table) > 1:
        out.print(kept_line(bundle, images), soft_wrap=True)
    if bundle.sources:
        out.print(sources_line(bundle), soft_wrap=True)
    if bundle.sources and verbose:
        out.print(weights_table(bundle))
        out.print(objective_line(bundle.objective), soft_wrap=True)


def easy_line(bundle: Bundle, images: Task) -> str:
    """Say where held-out images are easier than test images beyond chance; else an empty text.

    Asked of no prompt, which held-out images did not choose: its 95 % intervals do not overlap.
    """
    none = row_of(bundle, "none")
    if none.test_accuracy is None or not len(images.validation) or not len(images.test):
        return ""
    held = _proportion(none.val_accuracy, len(images.validation))
    test = _proportion(none.test_accuracy, len(images.test))
    if held.low <= test.high:
        return ""
    return (
        f"held-out images are easier than test images ({100 * held.value:.1f} against "
        f"{100 * test.value:.1f} %), so expect what test images say; where pictures of one scene "
        "train and validate, a column `group` in labels.csv keeps them together"
    )


def kept_line(bundle: Bundle, images: Task) -> str:
    """Say what is kept, what it gains over no prompt, and why where another row is better."""
    line = _kept(bundle, images)
    if bundle.choice == TUNED or all(row.method != TUNED for row in bundle.table):
        return line
    return f"{line}; {unproven(len(images.validation))}"


def unproven(images: int, what: str = "the tuned prompt") -> str:
    """Say that held-out images do not prove that something is better."""
    return f"{images:,} held-out images do not show that {what} is better"


def _kept(bundle: Bundle, images: Task) -> str:
    """Say what is kept, as if nothing had been tuned where that was not kept."""
    from hgprompt_edge.fit.choice import choose

    none, kept = row_of(bundle, "none"), row_of(bundle, bundle.choice)
    name = ROW_TITLES[bundle.choice]
    if bundle.choice == "folded":
        name = f"{1 + len(bundle.more)} folded prompts, averaged"
    if kept is not none:
        where, before, after = "held-out", none.val_accuracy, kept.val_accuracy
        if none.test_accuracy is not None and kept.test_accuracy is not None:
            where, before, after = "test", none.test_accuracy, kept.test_accuracy
        chance = _within_chance(bundle, none, kept, images)
        return f"kept: {name}, {_gained(before, after, where)}{chance}"
    rows = [row for row in bundle.table if row.method != TUNED]
    best = rows[choose(rows)]
    if best is none:
        if len(rows) == 1:
            return f"kept: {name}"
        if any(row.val_accuracy > none.val_accuracy for row in rows):
            return f"kept: {name}, as its held-out log-loss is the lowest, and that decides"
        return f"kept: {name}, as nothing holds out better"
    count = len(images.train) + len(images.validation)
    better = f"do not show that the {ROW_TITLES[best.method]} is better"
    return f"kept: {name}, as {count:,} images {better}"


def _gained(before: float, after: float, where: str) -> str:
    """Say how far the accuracy is over or below that without a prompt, and of the latter why."""
    if after < before:
        points = f"{100 * (before - after):.1f} points below no prompt on {where} images"
        return f"{points}; its held-out log-loss is lower, and that decides"
    return f"{100 * (after - before):+.1f} points over no prompt on {where} images"


def _within_chance(bundle: Bundle, none: Row, kept: Row, images: Task) -> str:
    """Say where several prompts, which are asked for, gain no more than one would by chance."""
    from hgprompt_edge.fit.choice import least_gain

    if not bundle.more or none.cross_log_loss is None or kept.cross_log_loss is None:
        return ""
    count = len(images.train) + len(images.validation)
    gain = count * (none.cross_log_loss - kept.cross_log_loss)
    if gain > least_gain(bundle.objective["sources"]):
        return ""
    return f"; {count:,} images do not show that they are better than no prompt"


def sources_line(bundle: Bundle) -> str:
    """Name the best source, and those with the largest shares of the learned mix."""
    learned = bundle.learned_mix
    shares = learned.shares
    order = np.argsort(-shares, kind="stable")
    named = order[:NAMED_SOURCES] if len(order) > NAMED_SOURCES + 1 else order
    parts = [f"{learned.names[i]} {100 * shares[i]:.0f} %" for i in named]
    if len(named) < len(order):
        rest = 1 - float(shares[named].sum())
        parts.append(f"{len(order) - len(named)} others {100 * rest:.0f} %")
    return f"best source: {bundle.objective['best_source']}; learned mix: {', '.join(parts)}"


def weights_table(bundle: Bundle) -> Table:
    """Share and score of each prompt, and its weight in each layer."""
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt")
    table.add_column("share", justify="right")
    table.add_column("H_d / (K - 1)", justify="right")
    table.add_column("by layer")
    learned = bundle.learned_mix
    scores = bundle.objective.get("scores", {})
    for name, share, values in zip(learned.names, learned.shares, learned.values, strict=True):
        score = scores.get(name)
        table.add_row(
            name,
            f"{share:.3f}",
            "" if score is None else f"{score:.3f}",
            sparkline(np.atleast_1d(values), float(learned.values.max())),
        )
    return table


def sparkline(values: npt.NDArray[np.floating], largest: float) -> str:
    """Draw each value in [0, largest] as a block of one of eight heights."""
    heights = np.clip(np.ceil(8 * values / largest), 1, 8).astype(int)
    return "".join("▁▂▃▄▅▆▇█"[height - 1] for height in heights)


def objective_line(objective: dict[str, Any]) -> str:
    """Say what was maximised and where it ended."""
    return (
        f"J {objective['J']:.3f}: H_d {objective['H_d']:.2f} over a noise floor of "
        f"{objective['floor']:.2f}, gradient conflict R {objective['R']:.3f}; from "
        f"near {objective['best_source']}, {objective['steps']} steps, effective sources "
        f"{objective['effective_sources']:.1f} of {objective['sources']}"
    )


def row_of(bundle: Bundle, method: str) -> Row:
    """Row of the bundle's table of this method."""
    return next(row for row in bundle.table if row.method == method)
