"""Count false alarms of `hgedge monitor`, and images until it finds a shift.

    python benchmarks monitor --data ../shared/assets/datasets [--sets flowers17 dtd10 ...]

The reference is of a set's training and validation images without a prompt. Clean streams are
drawn from its test images with replacement, 1,000 each, with another mix of classes every 100. A
shifted stream is 200 clean images, then test images under one of `SHIFTS` at severity 3. Beside the
monitor, Page-Hinkley and ADWIN of river (`pip install river`, where it is missing they are left
out) watch the score that tells foreign images, scaled to a deviation of 1, with their default
settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge import load_backbone
from hgprompt_edge.backbones.last_norm import before_affine
from hgprompt_edge.data import Task
from hgprompt_edge.data.conditions import SHIFTS, corrupt
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.maths.reference import Reference, fit_reference
from hgprompt_edge.runtime.watching.monitor import Monitor
from shared.pages import fill, listed, table, write_page
from shared.rows import Row, Rows, add_rows, read_rows, results_file, select
from shared.study import make_parser
from shared.targets import load_target

RESULTS, REAL_RESULTS = results_file("monitor"), results_file("monitor_real")
SETS = ("flowers17", "dtd10", "weather4", "trashnet")
STREAMS, LENGTH, PART = 30, 1000, 100
BEFORE, SHIFTED, REPEATS = 200, 100, 5
SEVERITY = 3
STILL = {
    "clean": "changing mix",
    "random order": "random order",
    "class by class": "class by class",
}
"""Streams of real sets in which nothing changes, as the table calls them."""

Floats = npt.NDArray[np.float32]
Features = Callable[[npt.NDArray[np.uint8]], Floats]
Watcher = Callable[[Reference, Floats], int | None]
"""Number of the image at which a stream raises the first alarm, from 1 on; None: it does not."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--sets", nargs="*", default=SETS)
    options = parser.parse_args()
    for name in options.sets if options.data is not None else ():
        if not select(read_rows(RESULTS), set=name):
            add_rows(RESULTS, *measure(name, options.data))
    write_page("monitor", report())


def measure(name: str, data: Path) -> Rows:
    """All rows of a set: what each watcher makes of clean and of shifted streams."""
    backbone = load_backbone("dinov2-small")
    task = load_target(name, backbone.preprocessing, data, 0)
    store = FeatureStore(backbone)

    def features(pixels: npt.NDArray[np.uint8]) -> Floats:
        return before_affine(store.features(pixels, None).numpy(), backbone.model)

    reference, test = reference_of(task, features), features(task.test.pixels)
    rng = np.random.default_rng(0)
    clean = [test[changing(task.test.labels, rng)] for _ in range(STREAMS)]
    rows: Rows = []
    for method, watch in watchers().items():
        alarms = [watch(reference, stream) for stream in clean]
        rows.append({"set": name, "method": method, "shift": "clean", "until": alarms})
    some = rng.permutation(len(test))[:SHIFTED]
    for shift in SHIFTS:
        after = features(corrupt(task.test.pixels[some], shift, SEVERITY))
        streams = [
            np.concatenate([test[rng.integers(0, len(test), BEFORE)], rng.permutation(after),
                            rng.permutation(after)])
            for _ in range(REPEATS)
        ]  # fmt: skip
        for method, watch in watchers().items():
            found = [watch(reference, stream) for stream in streams]
            until = [None if at is None else at - BEFORE for at in found]
            rows.append({"set": name, "method": method, "shift": shift, "until": until})
    return rows


def reference_of(task: Task, features: Features) -> Reference:
    own = np.concatenate([features(task.train.pixels), features(task.validation.pixels)])
    labels = np.concatenate([task.train.labels, task.validation.labels])
    reference = fit_reference(own, labels, len(task.classes))
    assert reference is not None
    return reference


def changing(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of a stream whose mix of classes is drawn anew for each part of it."""
    counts = np.bincount(labels)
    rows = []
    for _ in range(LENGTH // PART):
        shares = rng.dirichlet(np.ones(len(counts)))[labels] / counts[labels]
        rows.append(rng.choice(len(labels), PART, p=shares / shares.sum()))
    return np.concatenate(rows)


def watchers() -> dict[str, Watcher]:
    found: dict[str, Watcher] = {"monitor": watch_monitor}
    if find_spec("river") is not None:
        found |= {"Page-Hinkley": watch_river("PageHinkley"), "ADWIN": watch_river("ADWIN")}
    return found


def watch_monitor(reference: Reference, stream: Floats) -> int | None:
    shift = Monitor(reference).observe(stream).shift
    return None if shift is None else shift.at


def watch_river(name: str) -> Watcher:
    """Let a detector of river see the scores of the held-out images, then those of the stream."""

    def watch(reference: Reference, stream: Floats) -> int | None:
        from river import drift

        detector = getattr(drift, name)()
        known = np.random.default_rng(0).permutation(reference.held_out.scores)
        mean, deviation = known.mean(), known.std()
        for value in (known - mean) / deviation:
            detector.update(float(value))
        scores = (reference.see(stream).scores - mean) / deviation
        for number, value in enumerate(scores, start=1):
            detector.update(float(value))
            if detector.drift_detected:
                return number
        return None

    return watch


def report() -> str:
    """Write the page: alarms of clean streams, and the median of images until an alarm by shift."""
    rows = read_rows(RESULTS)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    clean = [select(rows, method=method, shift="clean") for method in methods]
    ever = [[at is not None for row in each for at in row["until"]] for each in clean]
    lines = [
        ["clean streams with an alarm", *(f"{sum(each)} of {len(each)}" for each in ever)],
        ["false alarms per 10,000 clean images", *map(per_10_000, clean)],
    ]
    missed = 0
    for shift in SHIFTS:
        cells = []
        for method in methods:
            until = [at for row in select(rows, method=method, shift=shift) for at in row["until"]]
            cells.append(median_of(until))
            missed += method == "monitor" and sum(at is None for at in until)
        lines.append([f"images until the alarm, median: {shift}", *cells])
    shifted = sum(len(row["until"]) for row in select(rows, method="monitor")) - len(ever[0])
    return fill(
        "monitor",
        table=table(["", *methods], lines),
        missed=missed,
        shifted=shifted,
        real=real_table(read_rows(REAL_RESULTS)),
        early=early_alarms(read_rows(REAL_RESULTS)),
    )


def per_10_000(rows: Rows) -> str:
    """Count alarms of clean streams, each watched up to its first alarm, per 10,000 images."""
    until = [at for row in rows for at in row["until"]]
    images = sum(LENGTH if at is None else at for at in until)
    return f"{10_000 * sum(at is not None for at in until) / images:.1f}"


def median_of(until: Sequence[int | None]) -> str:
    """Median of images until the alarm; what is raised before the shift does not count."""
    late = [np.inf if at is None else at for at in until if at is None or at > 0]
    median = np.median(late) if late else np.nan
    return f"{median:.0f}" if np.isfinite(median) else "none"


def early_alarms(rows: Rows) -> str:
    """Count the shifted streams of each set with an alarm in the clean images before the shift."""
    counts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in select(rows, set=name) if row["shift"] not in STILL]
        until = [at for row in mine for at in row["until"]]
        early = sum(at is not None and at <= 0 for at in until)
        counts.append(f"{early} of {len(until)} on {name}")
    return listed(counts)


def real_table(rows: Rows) -> str:
    """Write a line for each set: clean streams, real shifts, corruptions."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = select(rows, set=name)
        still = [select(mine, shift=each)[0] for each in STILL]
        real = [f"{row['shift']}: {median_of(row['until'])}" for row in select(mine, real=True)]
        rest = [row for row in mine if row["shift"] in SHIFTS]
        made = [f"{row['shift']}: {median_of(row['until'])}" for row in rest]
        lines.append([name, *map(alarms_of, still), listed(real), listed(made)])
    heads = ["set", *STILL.values(), "real shifts", "corruptions"]
    return table(heads, lines)


def alarms_of(row: Row) -> str:
    """Count the streams with an alarm."""
    return f"{sum(at is not None for at in row['until'])} of {len(row['until'])}"


if __name__ == "__main__":
    main()
