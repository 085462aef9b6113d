"""Measure what the closed loop of `hgedge monitor --adapt` recovers over a day of shifts.

    python benchmarks day --data ../shared/assets/datasets --bundles DIR   # resumes
    python benchmarks day --only-report

`--bundles` holds SET.hgbundle on `tiny` with condition prompts, ten minutes each on one core:

    hgedge fit --task SET --data DATA/SET --backbone tiny
    hgedge condition SET.hgbundle --conditions dark,blur,cast,lowres --accept-unproven \
        --output DIR/SET.hgbundle

The test part is split in two: one half is what the device sees, in another order in each phase; on
the other half accuracy is measured under the same shift. Three devices live through the same day:
one never adapts, one is adapted by hand at the start of each phase (`hgedge adapt --unlabelled` on
its first images, as many as the loop takes), one is left to the loop. A row is a phase of a day.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hgprompt_edge import export_onnx
from hgprompt_edge.adapt.closed_loop import WINDOW, ClosedLoop, Step
from hgprompt_edge.adapt.guard.measures import accuracy
from hgprompt_edge.adapt.model import Request, adapt_model, prepare
from hgprompt_edge.data import Images
from hgprompt_edge.data.conditions import corrupt
from hgprompt_edge.runtime.learned import head_of, open_history
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.monitor import Monitor
from hgprompt_edge.runtime.watching.monitored import watchable
from hgprompt_edge.state.history import Version
from shared.device_study import device_parser, in_parts, load_study, load_tiny
from shared.intervals import bootstrap
from shared.pages import fill, listed, points, table, write_page
from shared.rows import Row, Rows, add_rows, distinct, mean_of, read_rows, results_file, select

RESULTS = results_file("day")
SETS = ("flowers17", "weather4")
SHIFTS = ("dark", "blur", "cast")
CLEAN = "clean"
SEVERITY = 3
WAYS = HAND, END, MEAN = "hand", "loop_end", "loop_mean"
HEADS = ("set", "images", "phases", "none", "by hand", "loop, end", "loop, mean")
PHASE = 192
"""Images of a phase that the device sees."""


def main() -> None:
    parser = device_parser(__doc__, required=False)
    parser.set_defaults(tasks=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    for seed in () if options.only_report else options.seeds:
        for name in options.tasks:
            if not select(read_rows(RESULTS), set=name, seed=seed):
                with tempfile.TemporaryDirectory() as folder:
                    add_rows(RESULTS, *live(Device.make(name, options, Path(folder)), seed))
    write_page("day", report())


def phases_of(seed: int) -> list[str]:
    """Return the conditions of a day: two shifts without a break, one by itself."""
    one, two, three = np.random.default_rng(seed).permutation(SHIFTS) if seed else SHIFTS
    return [CLEAN, str(one), str(two), CLEAN, str(three), CLEAN]


@dataclass
class Device:
    """An exported model, what it may see as files, and what it is measured on.

    Attributes
    ----------
    files
        By condition the files of the seen half, in one order.
    features
        Theirs under the initial mix, by condition.
    """

    name: str
    model: Path
    seen: Images
    measured: Images
    files: dict[str, list[Path]] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    known: dict[tuple[str, bytes], float] = field(default_factory=dict)

    @classmethod
    def make(cls, name: str, options: argparse.Namespace, folder: Path) -> Device:
        """Export the model of a set into a folder, and split its test images."""
        bundle, fitted, task = load_study(name, load_tiny(), options)
        model = folder / f"{name}.onnx"
        export_onnx(bundle, fitted, model, runtime_weights=True, adapt=True)
        order = np.random.default_rng(0).permutation(len(task.test))
        half = len(order) // 2
        return cls(name, model, task.test.subset(order[:half]), task.test.subset(order[half:]))

    def prepare(self, condition: str, predictor: Predictor) -> None:
        """Write the files of a condition, and compute their features."""
        if condition in self.files:
            return
        folder = self.model.parent / condition
        folder.mkdir()
        pixels = shifted(self.seen.pixels, condition)
        self.files[condition] = [folder / f"{number:05}.png" for number in range(len(pixels))]
        for path, image in zip(self.files[condition], pixels, strict=True):
            Image.fromarray(image).save(path)
        self.features[condition] = in_parts(predictor.features, pixels)

    def measure(self, condition: str, version: Version, predictor: Predictor) -> float:
        """Accuracy on the measured half under a condition, at the weights of a version."""
        key = condition, version.weights.tobytes()
        if key not in self.known:
            predictor.set_weights(version.weights, head_of(version, predictor.require_bank()))
            logits = in_parts(predictor.logits, shifted(self.measured.pixels, condition))
            self.known[key] = accuracy(logits, self.measured.labels)
            predictor.set_weights(predictor.require_bank().initial)
        return self.known[key]


def shifted(pixels: Any, condition: str) -> Any:
    return pixels if condition == CLEAN else corrupt(pixels, condition, SEVERITY)


def live(device: Device, seed: int) -> Rows:
    """Live through a day with each of the three devices; one row for each phase."""
    predictor = Predictor(device.model, threads=1)
    monitor = Monitor(watchable(predictor))
    by_hand, by_loop = (device.model.parent / f"{way}-{seed}" for way in ("hand", "loop"))
    request = Request(data=(), unlabelled=True, threads=1)
    loop = ClosedLoop(monitor, device.model, by_loop, request)
    none = in_force = version_of(device.model, by_loop)
    rng = np.random.default_rng([seed, 1])
    rows: Rows = []
    for number, condition in enumerate(phases_of(seed)):
        device.prepare(condition, predictor)
        order = rng.permutation(len(device.seen))[:PHASE]
        shown = [device.files[condition][place] for place in order]
        hand = adapt_by_hand(device.model, by_hand, shown[:WINDOW])
        steps: list[Step] = []
        over: list[float] = []
        for path, features in zip(shown, device.features[condition][order], strict=True):
            skipped = monitor.skipped
            monitor.observe(features[None])
            step = loop.saw(path, features) if monitor.skipped == skipped else None
            if step is not None:
                steps.append(step)
                in_force = step.version
            over.append(device.measure(condition, in_force, predictor))
        shift = monitor.shift
        row: Row = {
            "set": device.name,
            "seed": seed,
            "phase": number,
            "condition": condition,
            "none": device.measure(condition, none, predictor),
            "hand": device.measure(condition, hand, predictor),
            "loop_end": over[-1],
            "loop_mean": float(np.mean(over)),
            "alarm_at": None if shift is None else shift.at - number * PHASE,
            "steps": [[step.at - number * PHASE, step.taken, step.reason] for step in steps],
        }
        rows.append(row)
        print({key: value for key, value in row.items() if key != "set"}, flush=True)
    return rows


def version_of(model: Path, state: Path) -> Version:
    """Return the version in force."""
    predictor = Predictor(model, threads=1)
    with open_history(state, predictor.require_bank(), predictor.metadata) as history:
        return history.current()


def adapt_by_hand(model: Path, state: Path, shown: Sequence[Path]) -> Version:
    """Do what `hgedge adapt --unlabelled` does, and return the version in force then."""
    predictor = Predictor(model, threads=1)
    request = Request(data=tuple(shown), unlabelled=True, threads=1)
    prepared = prepare(predictor, request)
    opened = open_history(state, predictor.require_bank(), predictor.metadata)
    with opened as history, history.exclusive():
        return adapt_model(predictor, history, request, *prepared).after


def report() -> str:
    """Write the page: accuracy by phase, and the share of what is recovered by hand."""
    rows = read_rows(RESULTS)
    under = [row for row in rows if row["condition"] != CLEAN]
    lines = []
    for name in distinct(rows, "set"):
        for condition in (CLEAN, *SHIFTS):
            some = select(rows, set=name, condition=condition)
            shown = [f"{100 * mean_of(some, way):.1f}" for way in ("none", *WAYS)]
            lines.append([name, condition, len(some), *shown])
    gains = {way: [gain_of(way)(row) for row in under] for way in WAYS}
    mean = {way: float(np.mean(gains[way])) for way in WAYS}
    moved = [row for row in under if abs(gain_of(HAND)(row)) + abs(gain_of(END)(row)) > 0]
    low, high = bootstrap(*(list(map(gain_of(way), moved)) for way in (END, HAND)))
    worst = {way: worst_of(min(rows, key=gain_of(way)), way) for way in WAYS}
    below = {way: sum(gain_of(way)(row) < -0.01 for row in rows) for way in WAYS}
    return fill(
        "day",
        sets=" and ".join(distinct(rows, "set")),
        days=len({(row["set"], row["seed"]) for row in rows}),
        orders="; ".join(sorted({order_of(rows, row) for row in rows})),
        phase=PHASE,
        window=WINDOW,
        severity=SEVERITY,
        table=table(
            ["set", "images", "phases", "none", "by hand", "loop, end", "loop, mean"], lines
        ),
        hand=points(mean[HAND]),
        end=points(mean[END]),
        mean=points(mean[MEAN]),
        share=f"{100 * mean[END] / mean[HAND]:.0f} %",
        low=f"{100 * low:.0f}",
        high=f"{100 * high:.0f}",
        mean_share=f"{100 * mean[MEAN] / mean[HAND]:.0f} %",
        worst_hand=worst[HAND],
        worst_end=worst[END],
        worst_mean=worst[MEAN],
        below=below[END],
        below_mean=below[MEAN],
        below_hand=below[HAND],
        rows=len(rows),
    )


def order_of(rows: Rows, one: Row) -> str:
    """Name the shifts of a row's day as they came."""
    day = select(rows, set=one["set"], seed=one["seed"])
    return listed(row["condition"] for row in day if row["condition"] != CLEAN)


def gain_of(key: str) -> Callable[[Row], float]:
    return lambda row: float(row[key] - row["none"])


def worst_of(row: Row, way: str) -> str:
    """Say the gain of a phase, and which it was if it is below zero."""
    gain = gain_of(way)(row)
    where = f" ({row['set']}, {row['condition']}, day {row['seed']})" if gain < 0 else ""
    return f"{points(gain)}{where}"


if __name__ == "__main__":
    main()
