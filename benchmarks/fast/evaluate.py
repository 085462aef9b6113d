"""What `hgedge evaluate` costs beside `hgedge predict`: time in turns, and memory.

    python benchmarks evaluate

A model of `tiny` is fitted to small JPEG files that the script makes, and both commands run on the
same 10,000 of these, in turns, each in a process of its own with one thread. Peak memory is also
measured on 1,000. Takes about three minutes.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fast.speed_report import evaluate_table
from hgprompt_edge.runtime.cpu import cpu_features
from shared.commands import Finished, hgedge
from shared.rows import Row, results_file, write_rows
from shared.study import make_parser

RESULTS = results_file("evaluate")
CLASSES, DIFFERENT, SIDE = 10, 40, 96
FEW, MANY = 1_000, 10_000


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"cpu: {' '.join(cpu_features())}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "drawn")
        for words in (
            ("fit", "--data", "drawn", "--backbone", "tiny", "--sources", "none"),
            ("export", "drawn.hgbundle"),
        ):
            succeed(folder, *words)
        for count in (FEW, MANY):
            multiply(folder / "drawn", folder / str(count), count)
        rows = [measure(folder, FEW, 1), measure(folder, MANY, options.rounds)]
    write_rows(RESULTS, rows)
    print(evaluate_table(rows))


def measure(folder: Path, count: int, rounds: int) -> Row:
    """Run both commands in turns; the figures of one row."""
    commands = {
        "predict": ("predict", "--model", "drawn.onnx", str(count), "--threads", "1"),
        "evaluate": ("evaluate", "drawn.onnx", "--data", str(count), "--threads", "1"),
    }
    found: dict[str, list[Finished]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            found[name].append(succeed(folder, *words))
    row: Row = {"images": count, "rounds": rounds}
    for name, runs in found.items():
        row[name] = {
            "seconds": round(statistics.median(run.seconds for run in runs), 2),
            "processor_seconds": round(statistics.median(run.processor_seconds for run in runs), 2),
            "peak_mb": round(statistics.median(run.peak for run in runs) / 1e6, 1),
        }
    pairs = list(zip(found["evaluate"], found["predict"], strict=True))
    row["ratio"] = round(statistics.median(a.seconds / b.seconds for a, b in pairs), 3)
    row["processor_ratio"] = round(
        statistics.median(a.processor_seconds / b.processor_seconds for a, b in pairs), 3
    )
    return row


def succeed(folder: Path, *words: str) -> Finished:
    """Run a command in the folder; end where it fails."""
    done = hgedge(*words, folder=folder)
    if done.failure:
        raise SystemExit(f"hgedge {' '.join(words)} failed: {done.failure}")
    return done


def draw(folder: Path) -> None:
    """Save noisy squares whose colour is their class, so many of each."""
    for place in range(CLASSES):
        rng = np.random.default_rng(place)
        colour = rng.integers(40, 216, 3)
        (folder / f"class{place}").mkdir(parents=True)
        for index in range(DIFFERENT):
            pixels = (colour + rng.normal(0, 40, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{place}" / f"{index:04d}.jpg")


def multiply(drawn: Path, folder: Path, count: int) -> None:
    """Give each image many names, until there are `count`."""
    for path in sorted(drawn.glob("*/*.jpg")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(count // (CLASSES * DIFFERENT) + 1):
            if copy * DIFFERENT + int(path.stem) < count // CLASSES:
                os.link(path, folder / path.parent.name / f"{copy:04d}-{path.name}")


if __name__ == "__main__":
    main()
