"""What `hgedge evaluate` costs beside `hgedge predict`: time in turns, and memory.

    python benchmarks/evaluate.py

A model of `tiny` is fitted to small JPEG files that the script makes, and both commands run on the
same 10,000 of these, in turns, each in a process of its own with one thread. Peak memory is also
measured on 1,000. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rows import write_rows

from hgprompt_edge.runtime.cpu import cpu_features

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
CLASSES, DIFFERENT, SIDE = 10, 40, 96
FEW, MANY = 1_000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
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
            hgedge(folder, *words)
        for count in (FEW, MANY):
            multiply(folder / "drawn", folder / str(count), count)
        rows = [measure(folder, FEW, 1), measure(folder, MANY, options.rounds)]
    write_rows(options.json, rows)


def measure(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Run both commands in turns; the figures of one row."""
    commands = {
        "predict": ("predict", "--model", "drawn.onnx", str(count), "--threads", "1"),
        "evaluate": ("evaluate", "drawn.onnx", "--data", str(count), "--threads", "1"),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, words in commands.items():
            found[name].append(hgedge(folder, *words))
    row: dict[str, Any] = {"images": count, "rounds": rounds}
    for name, runs in found.items():
        seconds, processor, peak = (statistics.median(each) for each in zip(*runs, strict=True))
        row[name] = {
            "seconds": round(seconds, 2),
            "processor_seconds": round(processor, 2),
            "peak_mb": round(peak, 1),
        }
    pairs = list(zip(found["evaluate"], found["predict"], strict=True))
    row["ratio"] = round(statistics.median(a[0] / b[0] for a, b in pairs), 3)
    row["processor_ratio"] = round(statistics.median(a[1] / b[1] for a, b in pairs), 3)
    print(
        f"{count:6,} images: predict {row['predict']['seconds']:.1f} s, evaluate "
        f"{row['evaluate']['seconds']:.1f} s, ratio {row['ratio']:.3f} (processors "
        f"{row['processor_ratio']:.3f}); peak {row['predict']['peak_mb']:.0f} and "
        f"{row['evaluate']['peak_mb']:.0f} MB",
        flush=True,
    )
    return row


def hgedge(folder: Path, *words: str) -> tuple[float, float, float]:
    """Run a command; seconds on the clock and of the processors, peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hgprompt_edge.cli.main", *words],
        cwd=folder,
        env={**os.environ, "HGEDGE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hgedge {' '.join(words)} failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak


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
