"""Time and memory of fit and export with the backbone `tiny`, by number of sources.

    python benchmarks fit            # what `make bench` prints
    python benchmarks fit --json benchmarks/results/fit.json

Each row runs in a process of its own, so that peak memory is its own. 800 generated images (640
train, 160 validation) and no test part; sources beyond the bundled ones are made by mixing them.
Seconds depend on the machine, so the CPU's features are printed, and ratios to the first row.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fast.speed_report import fit_table
from hgprompt_edge.runtime.cpu import cpu_features
from shared.commands import again
from shared.rows import Row, write_rows
from shared.study import make_parser
from shared.timing import timed

SOURCES = (2, 4, 8, 16, 32)
IMAGES = 800


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--sources", type=int, nargs="*", default=list(SOURCES))
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(options.row)))
        return
    rows = [run_alone(count) for count in options.sources]
    print(f"cpu: {' '.join(cpu_features())}\n\n{fit_table(rows)}")
    if options.json:
        write_rows(options.json, rows)


def run_alone(count: int) -> Row:
    command = again("fit", "--row", str(count))
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    row: Row = json.loads(result.stdout.splitlines()[-1])
    print(f"{count} sources: {row['cold_s']:.1f} s", file=sys.stderr, flush=True)
    return row


def measure(count: int) -> Row:
    """Fit with an empty cache, then from a warm one, then export."""
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HGEDGE_CACHE"] = folder
        began = time.perf_counter()
        from hgprompt_edge import HGPrompt, export_onnx, load_backbone, load_task, read_bank
        from hgprompt_edge.data.task import Task

        backbone = load_backbone("tiny")
        bank = enlarge(read_bank("tiny"), count)
        task: Task = load_task("generated-orientation", backbone.preprocessing, limit=IMAGES)
        task = replace(task, test=task.test.subset([]), family="")
        imported = time.perf_counter() - began
        row: Row = {"sources": count, "images": IMAGES, "import_and_load_s": imported}
        stages = Stages()
        row["cold_s"] = timed(lambda: HGPrompt().fit(bank, backbone, task, stages))[0]
        row["optimisation_s"] = stages.seconds("weights")
        row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        mixer = HGPrompt()
        row["warm_s"] = timed(lambda: mixer.fit(bank, backbone, task))[0]
        path = Path(folder) / "model.onnx"
        row["export_s"] = timed(lambda: export_onnx(mixer.bundle_, backbone, path))[0]
        return row


class Stages:
    """Progress callback that notes when each stage ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, float]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take a report of `HGPrompt.fit`."""
        if done == total:
            self.ends.append((stage, time.perf_counter()))

    def seconds(self, stage: str) -> float:
        """Seconds between the end of the stage before and the end of `stage`."""
        names = [name for name, _ in self.ends]
        index = names.index(stage)
        return self.ends[index][1] - self.ends[index - 1][1]


def enlarge(bank: Any, count: int) -> Any:
    """Return `count` sources: the bundled ones, then seeded random mixes of them."""
    rng = np.random.default_rng(0)
    prompts = list(bank.prompts[:count])
    while len(prompts) < count:
        weights = rng.dirichlet(np.ones(len(bank.prompts)))
        tokens = np.tensordot(weights, bank.tokens, axes=1).astype(np.float32)
        name = f"mix-{len(prompts)}"
        prompts.append(replace(bank.prompts[0], tokens=tokens, name=name, sha256=name))
    return replace(bank, prompts=tuple(prompts))


if __name__ == "__main__":
    main()
