"""What `hgedge fit` prints of its result, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgprompt_edge.artifacts.bank_entries import TUNED
from hgprompt_edge.cli.condition import worth_table
from hgprompt_edge.cli.shared.console import drawn, out, print_next
from hgprompt_edge.cli.shared.fit_table import print_result, row_of
from hgprompt_edge.cli.shared.leaks import leaks_document
from hgprompt_edge.cli.shared.left_out import of_task
from hgprompt_edge.cli.shared.resize import print_resize, resize_document
from hgprompt_edge.cli.shared.tuning import tuning_document

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle, Row
    from hgprompt_edge.cli.fit.carry_out import Done
    from hgprompt_edge.data import Task
    from hgprompt_edge.features.pooling import Pooling

LATENCY = {2: 1.8, 3: 2.6}
"""Of so many folded prompts, as ratios to one on `dinov2-small` (docs/results/image_sizes.md)."""


LEAST_MENTIONED = 0.005
"""Held-out accuracy that more folded prompts must gain over what is kept, and over fewer, to be
mentioned: their latency is high."""


def document_of(done: Done, figure: Path | None, cost: float, seconds: float) -> dict[str, Any]:
    """Make the JSON document of a fit; `cost` is that of its pooling."""
    bundle, images, mixer = done.bundle, done.images, done.mixer
    more = mixer.more_prompts_ if mixer else {}
    learned = bundle.learned_mix
    by_layer = dict(zip(learned.names, learned.values.tolist(), strict=True))
    document = {
        "task": images.name,
        "images": _counts(images),
        **of_task(images),
        "left_out": list(mixer.left_out_) if mixer else [],
        "learned_weights": learned.named_shares,
        "learned_weights_by_layer": by_layer if learned.by_layer else None,
        "weights": bundle.mix.named_shares,
        "objective": bundle.objective,
        "table": [vars(row) for row in bundle.table],
        "choice": bundle.choice,
        "more_prompts": [{"folded": count, **vars(row)} for count, row in more.items()],
        "bundle": str(done.path),
        "figure": figure and str(figure),
        "seconds": round(seconds, 2),
        **leaks_document(done.leaks),
        "pooling": {**vars(done.pooling), "cost": round(cost, 3)},
        "resize": resize_document(bundle.preprocessing, images, done.rules),
    }
    if done.tuning:
        document["tuning"] = tuning_document(done.tuning)
    return {**document, "conditions": [asdict(worth) for worth in done.worths]}


def print_fit(done: Done, figure: Path | None, cost: float, seconds: float, verbose: bool) -> None:
    """Print what was fitted on what, what is kept, where it is, and what to run next."""
    bundle, images, mixer, pooling = done.bundle, done.images, done.mixer, done.pooling
    if done.rules is not None:
        print_resize(done.rules)
    counts = ", ".join(f"{count:,} {name}" for name, count in _counts(images).items())
    out.print(f"{images.name}: {len(images.classes)} classes; {counts} images", soft_wrap=True)
    if mixer and mixer.left_out_:
        out.print(f"left out, same family as the target: {', '.join(mixer.left_out_)}")
    if pooling.name != "token" and pooling.gain:
        out.print(_pooling_line(pooling, cost), soft_wrap=True)
    print_result(bundle, images, verbose)
    can_tune = mixer is not None and could_tune(bundle, images, mixer.folded)
    if mixer and (more := gain_more_line(bundle, mixer.more_prompts_, can_tune)):
        out.print(more, soft_wrap=True)
    if done.worths:
        out.print(worth_table(done.worths))
    written = f"{done.path}, {figure}" if figure else f"{done.path}"
    out.print(f"{written} ({seconds:.0f} s)", soft_wrap=True)
    print_next(
        "export",
        done.path,
        *(("--adapt",) if any(worth.kept for worth in done.worths) else ("--format", "onnx")),
    )


def could_tune(bundle: Bundle, images: Task, folded: int) -> bool:
    """Whether `--tune` could be added to the command, and its prompt could gain enough.

    It does not go with `--folded`, and the whole log-loss may be less than what it must gain.
    """
    from hgprompt_edge.fit.checks import can_train
    from hgprompt_edge.fit.choice import MIN_GAIN

    left = len(images.validation) * row_of(bundle, bundle.choice).val_log_loss
    return folded == 1 and can_train(images) and left > MIN_GAIN


def gain_more_line(bundle: Bundle, more: Mapping[int, Row], can_tune: bool) -> str:
    """Say what could be tried next and what it would cost on the device; else an empty text."""
    if any(row.method == TUNED for row in bundle.table):
        return ""
    kept = row_of(bundle, bundle.choice)
    ways = ["--tune trains the prompt itself"] if can_tune else []
    better: dict[int, Row] = {}
    for count, row in sorted(more.items()):
        before = next(reversed(better.values()), kept)
        if row.val_accuracy - before.val_accuracy > LEAST_MENTIONED:
            better[count] = row
    if better:
        first, *others = better
        reached = f"--folded {first} reaches {100 * better[first].val_accuracy:.1f} %"
        reached += "".join(f", --folded {n} {100 * better[n].val_accuracy:.1f} %" for n in others)
        latency = " and ".join(f"{LATENCY[count]:g}" for count in better)
        ways.append(f"{reached} on held-out images, at about {latency} times the latency")
    return f"to gain more: {'; '.join(ways)}" if ways else ""


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
