"""Banks of 16 and 32 sources from random class subsets of the source sets, and the main rows.

    python benchmarks/many_sources.py --data ../shared/assets/datasets              # 16; resumes
    python benchmarks/many_sources.py --data ../shared/assets/datasets --sizes 16 32

A prompt is trained on a random half of a set's classes (ten, of sets with many), all sets in turn,
from the start that the bundled bank has, as `benchmarks/bank.py` trains but for a few epochs. There
are enough that each target meets the full number without the sources of its family. The training
images are the source sets' own; flowers17, dtd10, weather4 and digits are only targets.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from second_backbone import SOURCE_SETS, call
from transfer import SIZE_TARGETS

from hgprompt_edge import load_backbone, load_task, train_source, write_prompt
from hgprompt_edge.tasks import Images, Task
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.fastest import choose_compute
from hgprompt_edge.vit.train import Recipe

RECIPE = {"epochs": 8, "validate_every": 4}
MOST_CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sizes", type=int, nargs="*", default=[16])
    parser.add_argument("--seeds", nargs="*", default=["0", "1"])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.many-sources"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bank = options.work / "bank"
    bank.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone("tiny")
    # One set in six may be left out; 20 leave 16.
    count = math.ceil(max(options.sizes) * len(SOURCE_SETS) / (len(SOURCE_SETS) - 1))
    for index in range(count):
        train(index, backbone, options.data, bank)
    call(
        "benchmarks/transfer.py",
        *("--data", options.data, "--bank", bank, "--banks", *options.sizes, "--seeds"),
        *(*options.seeds, "--targets", *SIZE_TARGETS, "--work", options.work / "cells"),
    )


def train(index: int, backbone: Backbone, data: Path, bank: Path) -> None:
    """Train prompt `index`, unless it is there."""
    origin = SOURCE_SETS[index % len(SOURCE_SETS)]
    path = bank / f"{index:02d}-{origin}.safetensors"
    if path.exists():
        return
    task = load_task(origin, backbone.preprocessing, data=data / origin)
    task = some_classes(replace(task, name=path.stem), index)
    recipe = replace(Recipe(), **RECIPE)
    prompt, _ = train_source(backbone.with_compute(choose_compute(backbone).compute), task, recipe)
    write_prompt(path, prompt)
    print(f"{path.stem}: {len(task.classes)} classes, {len(task.train)} images", flush=True)


def some_classes(task: Task, seed: int) -> Task:
    """Keep a random half of the classes, at most `MOST_CLASSES`."""
    count = min(MOST_CLASSES, math.ceil(len(task.classes) / 2))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(task.classes))[:count])

    def part(images: Images) -> Images:
        kept = images.subset(np.flatnonzero(np.isin(images.labels, chosen)))
        return replace(kept, labels=np.searchsorted(chosen, kept.labels))

    parts = {name: part(getattr(task, name)) for name in ("train", "validation", "test")}
    return replace(task, classes=tuple(task.classes[label] for label in chosen), **parts)


if __name__ == "__main__":
    main()
