"""The main rows on a backbone of another size, from its pretraining to its rows in the study.

    python benchmarks/second_backbone.py --data ../shared/assets/datasets   # resumes when killed

1. The *training* images of the source sets become one folder of class folders; no target set
   (flowers17, dtd10, weather4, digits) is among them.
2. `examples/pretrain_backbone.py` trains a ViT on them: 1.5 M parameters where the bundled one has
   3.6 M, 144 wide, six blocks, 64 px.
3. A bank of five prompts is trained for it as `benchmarks/bank.py` does, with fewer tokens and
   epochs, on the real sets' 800 images.
4. `benchmarks/transfer.py` runs the main methods on the four targets.

Every step that is done is not done again, and a killed one goes on where it was. It takes about
half an hour on one core whose CPU has bfloat16 units.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import bank
import torch
from transfer import SIZE_TARGETS

from hgprompt_edge import load_backbone
from hgprompt_edge.tasks.zipped import read_zip

ROOT = Path(__file__).parent.parent
SOURCE_SETS = ("caltech101", "cifar10", "fashion-mnist", "gtsrb", "rsscn7", "sign-language-digits")
NAME = "vit-144x6"
SHAPE = "--embed-dim 144 --depth 6 --num-heads 3 --image-size 64 --patch-size 8"
PRETRAINING = "--epochs 30 --batch-size 128"

REAL = {"tokens": 20, "epochs": 40, "validate_every": 10}
GENERATED = {"tokens": 20, "epochs": 60, "learning_rate": 3e-2, "validate_every": 10}
RECIPES: dict[str, dict[str, Any]] = {
    "sign-language-digits": REAL,
    "generated-orientation": GENERATED,
    "fashion-mnist": REAL,
    "cifar10": REAL,
    "generated-count": GENERATED,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", nargs="*", default=["0", "1", "2"])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/.second-backbone"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, prompts = options.work / f"{NAME}.safetensors", options.work / "bank"
    unpack(options.data, options.work / "images")
    pretrain(options.work / "images", checkpoint)
    backbone = load_backbone(checkpoint=checkpoint)
    prompts.mkdir(exist_ok=True)
    for name, recipe in RECIPES.items():
        bank.train(name, recipe, backbone, options.data, None, prompts)
    print(bank.table(prompts), flush=True)
    call(
        "benchmarks/transfer.py",
        *("--data", options.data, "--bank", prompts, "--checkpoint", checkpoint, "--name", NAME),
        *("--main-rows", "--targets", *SIZE_TARGETS, "--seeds", *options.seeds),
        *("--work", options.work / "cells"),
    )


def unpack(data: Path, images: Path) -> None:
    """Write the training images of the source sets as `SET-CLASS/NUMBER.png`."""
    for name in SOURCE_SETS:
        for number, entry in enumerate(read_zip(data / name).train):
            folder = images / f"{name}-{entry.label}"
            path = folder / f"{number:04d}.png"
            if path.exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            entry.open().save(partial, format="png")
            partial.replace(path)


def pretrain(images: Path, checkpoint: Path) -> None:
    """Train the backbone to its end; its training state lies beside it until then."""
    if checkpoint.exists() and not checkpoint.with_name(f".{checkpoint.name}.training").exists():
        return
    words = (*SHAPE.split(), *PRETRAINING.split(), "--out", checkpoint)
    call("examples/pretrain_backbone.py", images, *words)


def call(script: str, *words: object) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *map(str, words)], check=True)


if __name__ == "__main__":
    main()
