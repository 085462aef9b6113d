"""Train the bank of `dinov2-small` and write its page from what the prompt files say.

    python benchmarks bank_small --data ../shared/assets/datasets \
        --fashion-mnist /usr/share/datasets/fashion-mnist     # trains what is missing

Under four hours on two cores with bfloat16 units. An interrupted run goes on where it stopped;
`--part 1/2` and `--part 2/2` share the prompts between two processes, one core each.

A prompt goes to the folder `--out` when it is trained. `--ship` copies those whose gain is surely
above zero (95 % interval over the test images) to the bundled bank and lists the others.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bundled.bank import gain, is_there, measured, train_into
from hgprompt_edge import (
    Prompt,
    load_backbone,
    load_task,
    models,
    read_bank,
    write_prompt,
)
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.files import write_bytes
from hgprompt_edge.images.preprocess import Preprocessing, to_array
from hgprompt_edge.prompts.bank import write_start
from hgprompt_edge.training.prompt_tuning import Recipe
from shared.pages import fill, listed, table
from shared.rows import RESULTS
from shared.study import make_parser

BACKBONE = "dinov2-small"
COMMON = Recipe(tokens=10, epochs=12, batch_size=200, learning_rate=1e-2, keep_last=True)
"""The last epoch is kept, so that no validation image chooses and none is passed in vain."""


@dataclass(frozen=True)
class Source:
    """What a prompt is trained on.

    Attributes
    ----------
    data, terms
        Where the images come from and under which terms.
    commercial
        Whether these terms allow commercial use.
    changes
        What its recipe has of its own.
    """

    data: str
    terms: str
    commercial: bool
    changes: dict[str, Any]


GENERATED = Source(
    "fresh images in each epoch from hgprompt_edge.data.generated",
    "Apache-2.0, as this project",
    True,
    {"learning_rate": 2e-2},
)
SOURCES = {
    "gtsrb": Source(
        "GTSRB (Stallkamp et al. 2012), 1,000 images",
        "free to use with citation",
        False,
        {"epochs": 20, "batch_size": 400},
    ),
    **dict.fromkeys(KINDS, GENERATED),
    "sign-language-digits": Source(
        "Sign Language Digits (Mavi 2017), 1,000 images", "Apache-2.0", True, {}
    ),
    "fashion-mnist": Source(
        "Fashion-MNIST (Xiao et al. 2017), 9,600 of the 60,000 images", "MIT", True, {}
    ),
    # Photographs, which the backbone separates already: small steps, or the prompt does only harm.
    "rsscn7": Source(
        "RSSCN7 (Zou et al. 2015), 1,000 images", "research", False, {"learning_rate": 3e-3}
    ),
    "cifar10": Source(
        "CIFAR-10 (Krizhevsky 2009), 1,000 images",
        "free to use with citation",
        False,
        {"learning_rate": 3e-3},
    ),
    "caltech101": Source(
        "Caltech-101 (Fei-Fei et al. 2004), 1,000 images",
        "CC BY 4.0",
        True,
        {"learning_rate": 3e-3, "batch_size": 800, "epochs": 16},
    ),
}

FASHION = (
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
"""Classes of Fashion-MNIST in the order of its label files."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of its idx files, gzipped")
    parser.add_argument("--out", type=Path, default=RESULTS.parent / ".bank")
    parser.add_argument("--only", nargs="*", default=list(SOURCES), help="names to train")
    parser.add_argument("--part", default="1/1", help="this share of the prompts: 1/2, 2/2")
    parser.add_argument("--ship", action="store_true", help="fill the bundled bank from --out")
    options = parser.parse_args()
    if options.data is not None:
        part, parts = (int(word) for word in options.part.split("/"))
        options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        backbone = load_backbone(BACKBONE)
        backbone = backbone.with_compute(choose_compute(backbone).compute)
        for name in options.only[part - 1 :: parts]:
            train(name, backbone, options.data, options.fashion_mnist, options.out)
    if options.ship:
        ship(options.out, models.bank_folder(BACKBONE))


def train(name: str, backbone: Backbone, data: Path, fashion_mnist: Path | None, out: Path) -> None:
    """Train a prompt, unless it is there."""
    if is_there(name, out):
        return
    source = SOURCES[name]
    recipe = replace(COMMON, **source.changes)
    task = load_task(name, backbone.preprocessing, data=None if name in KINDS else data / name)
    more = None
    if name == "fashion-mnist":
        if fashion_mnist is None:
            raise SystemExit("fashion-mnist is trained on the full set; give --fashion-mnist")
        count = recipe.epochs * len(task.train)
        more = read_fashion_mnist(fashion_mnist, task, backbone.preprocessing, count)
    about = {"data": source.data, "terms": source.terms, "commercial": source.commercial}
    print(*row(train_into(out, task, recipe, backbone, more, about)), flush=True)


def read_fashion_mnist(
    folder: Path, task: Task, preprocessing: Preprocessing, count: int
) -> Images:
    """Read `count` random images of the official training part, resized as the task's are."""
    pixels = idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = idx(folder / "train-labels-idx1-ubyte.gz", 8)
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:count])
    where = np.array([task.classes.index(name) for name in FASHION])
    images = [to_array(Image.fromarray(pixels[row]).convert("RGB"), preprocessing) for row in rows]
    return Images(np.stack(images), where[labels[rows]], tuple(f"idx/{row}" for row in rows))


def idx(path: Path, offset: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)


def ship(trained: Path, bank: Path) -> None:
    """Fill the bundled bank with the prompts that gain, and write its page."""
    prompts = sorted(
        read_bank(trained).prompts, key=lambda prompt: list(SOURCES).index(prompt.name)
    )
    gained = [prompt for prompt in prompts if gain(prompt) > half_interval(prompt)]
    for old in bank.glob("*.safetensors"):
        old.unlink()
    for prompt in gained:
        write_prompt(bank / f"{prompt.name}.safetensors", prompt)
    start = read_bank(trained).start
    assert start is not None
    write_start(bank, gained[0], start.tokens)
    others = [prompt for prompt in prompts if prompt not in gained]
    write_bytes(bank / "README.md", report(gained, others).encode())


def report(gained: Sequence[Prompt], others: Sequence[Prompt]) -> str:
    """Make the page of the bank from what its files say, and those that were not taken."""
    layers, tokens, _ = gained[0].tokens.shape
    heads = ("source", "family", "classes", "test images", "no prompt", "prompt", "gain (points)")
    left = "; ".join(f"{p.name} {gain(p):+.1f} ± {half_interval(p):.1f}" for p in others)
    why = "**Trained and not shipped**, as the gain is not surely above zero"
    return fill(
        "bank_small",
        count=len(gained),
        tokens=tokens,
        layers=layers,
        init_seed=gained[0].init_seed,
        table=table((*heads, "terms of the data"), map(row, gained)),
        free=listed(prompt.name for prompt in gained if prompt.recipe["commercial"]),
        others=f"\n{why}: {left}.\n" if others else "",
        data="; ".join(f"{p.name}: {p.recipe['data']}" for p in gained if p.name not in KINDS),
    )


def row(prompt: Prompt) -> tuple[object, ...]:
    gained = f"{gain(prompt):+.1f} ± {half_interval(prompt):.1f}"
    return (*measured(prompt), gained, prompt.recipe["terms"])


def half_interval(prompt: Prompt) -> float:
    """Half the 95 % interval of the gain, in points."""
    error = prompt.recipe["test_standard_error"]
    return math.inf if error is None else 196 * float(error)


if __name__ == "__main__":
    main()
