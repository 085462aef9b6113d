"""Train the bank of `tiny` and write its README from what the prompt files say.

    python benchmarks bank_tiny --data ../shared/assets/datasets   # trains what is missing
    python benchmarks bank_tiny                                    # only writes the README again

Each prompt takes minutes on one core where the CPU has bfloat16 units, half an hour those of many
images. An interrupted run goes on where it stopped.

`--more FOLDER` holds the sets of `MORE_IMAGES` whole, CIFAR-10 (50,000 training images) and
Fashion-MNIST (60,000), as `NAME/train/CLASS/IMAGE.png` and `NAME/test/CLASS/IMAGE.png` with the
classes called as in `--data`. Only their training parts are used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bundled.bank import gain, is_there, measured, train_into
from hgprompt_edge import load_backbone, load_task, models, read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.data import Images, Task, images_beyond
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.files import write_bytes
from hgprompt_edge.training.prompt_tuning import Recipe
from shared.pages import fill, table
from shared.study import make_parser

BACKBONE = "tiny"
GENERATED = {"epochs": 400, "learning_rate": 3e-2, "validate_every": 20}

RECIPES: dict[str, dict[str, Any]] = {
    "sign-language-digits": {"epochs": 120},
    "generated-orientation": GENERATED,
    "generated-count": GENERATED,
    "generated-location": GENERATED,
    # Frames of one sign stand on both sides of the validation split, so validation lies here.
    "gtsrb": {"epochs": 60, "validate_every": 10, "keep_last": True},
    "fashion-mnist": {"epochs": 300, "validate_every": 20},
    "cifar10": {"epochs": 400, "validate_every": 20},
    # Close to what the backbone was trained on: smaller steps, or the prompt only does harm.
    "rsscn7": {"epochs": 100, "learning_rate": 4e-3},
}

MORE_IMAGES = ("cifar10", "fashion-mnist")
"""Trained on the whole official training part; the figures use the same 1,000 as everywhere."""

SAME_IMAGE = 7.0
"""Grey levels (root mean square over 8 x 8 cells) that JPEG puts between copies of an image."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--more", type=Path, help="folder of the sets that are trained on whole")
    parser.add_argument("--out", type=Path, default=models.bank_folder(BACKBONE))
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="names to train")
    options = parser.parse_args()
    if options.data is not None:
        whole = [name for name in options.only if name in MORE_IMAGES]
        if whole and options.more is None:
            raise SystemExit(f"{whole[0]} is trained on the whole set; name its folder with --more")
        options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        backbone = load_backbone(BACKBONE)
        for name in options.only:
            train(name, RECIPES[name], backbone, options.data, options.more, options.out)
    write_bytes(options.out / "README.md", report(options.out).encode())


def train(
    name: str,
    changes: dict[str, Any],
    backbone: Backbone,
    data: Path,
    more: Path | None,
    out: Path,
) -> None:
    """Train a prompt, unless it is there; `changes` are what its recipe has of its own."""
    if is_there(name, out):
        return
    task = load_task(name, backbone.preprocessing, data=None if name in KINDS else data / name)
    further = None
    if name in MORE_IMAGES and more is not None:
        whole = load_task(name, backbone.preprocessing, data=more / name, limit=None)
        further = without_copies(images_beyond(task, whole), task)
    backbone = backbone.with_compute(choose_compute(backbone).compute)
    train_into(out, task, replace(Recipe(), **changes), backbone, further, {})


def without_copies(images: Images, task: Task) -> Images:
    """Drop from `images` the copy of each image of the task, test images above all."""
    cells = small(images.pixels)
    copies: set[int] = set()
    for part in (task.train, task.validation, task.test):
        for query in small(part.pixels):
            distances = np.sqrt(((cells - query) ** 2).mean(1))
            nearest = int(distances.argmin())
            if distances[nearest] < SAME_IMAGE:
                copies.add(nearest)
    return images.subset([i for i in range(len(images)) if i not in copies])


def small(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`[n, S, S, 3]` uint8 -> means of 8 x 8 cells `[n, 192]` float32."""
    count, side = pixels.shape[0], pixels.shape[1] // 8
    cells = pixels.reshape(count, 8, side, 8, side, 3).mean((2, 4), dtype=np.float32)
    return cells.reshape(count, -1)


def report(bank: Path | str = BACKBONE) -> str:
    """Make the page of the bank from what its files say."""
    prompts = read_bank(bank).prompts
    layers, tokens, _ = prompts[0].tokens.shape
    heads = ("source", "family", "classes", "test images", "unprompted", "prompted")
    body = [
        (
            *measured(prompt),
            f"{gain(prompt):+.1f} ± {100 * prompt.recipe['test_standard_error']:.1f}",
            prompt.recipe["seed"],
        )
        for prompt in prompts
    ]
    return fill(
        "bank_tiny",
        count=len(prompts),
        tokens=tokens,
        layers=layers,
        init_seed=prompts[0].init_seed,
        table=table((*heads, "gain (points)", "seed"), body),
        mean=f"{sum(map(gain, prompts)) / len(prompts):+.1f}",
    )


if __name__ == "__main__":
    main()
