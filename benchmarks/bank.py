"""Train the bank of `tiny` and write its README from what the prompt files say.

    python benchmarks/bank.py --data ../shared/assets/datasets   # trains what is missing
    python benchmarks/bank.py                                    # only writes the README again

Each prompt takes minutes on one core where the CPU has bfloat16 units, half an hour those of many
images. An interrupted run goes on where it stopped.

`--more FOLDER` holds the sets of `MORE_IMAGES` whole, CIFAR-10 (50,000 training images) and
Fashion-MNIST (60,000), as `NAME/train/CLASS/IMAGE.png` and `NAME/test/CLASS/IMAGE.png` with the
classes called as in `--data`. Only their training parts are used.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hgprompt_edge import (
    Prompt,
    load_backbone,
    load_task,
    models,
    read_bank,
    train_source,
    write_prompt,
)
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fastest import choose_compute
from hgprompt_edge.data import Images, Task, images_beyond
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.prompts.bank import write_start
from hgprompt_edge.training.prompt_tuning import Recipe

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

HEADER = """# The bank for tiny

{count} source prompts for the backbone `tiny`: deep, {tokens} tokens in each of {layers} blocks,
trained by VPT for the closed-form head (`benchmarks/bank.py` has the recipe of each). CIFAR-10 and
Fashion-MNIST were trained on their complete training parts without the images that are tested on,
the generated tasks on fresh images in each epoch, the others on 800 images. All start from one
neutral prompt (`init_seed` {init_seed}), so their tokens correspond. `untrained.safetensors` is
that neutral prompt; `fit` mixes it in.

**Gain.** Accuracy on the source's own test part, with and without the prompt, with the same
closed-form head (LDA, fitted on training and validation images). Validation images chose the epoch
(gtsrb: the last one, because its validation images show the signs of its training images). ± is the
standard error of the paired difference over the test images. Each prompt was trained with one seed.

The training method was developed on these sets, test parts included, so the gains are somewhat
optimistic. The targets (flowers17, dtd10, weather4, digits) were not used.

"""

COLUMNS = """\
| source | family | classes | test images | unprompted | prompted | gain (points) | seed |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

FOOTER = """
Mean gain over the bank: **{mean:+.1f} points**.

**Not in the bank: caltech101.** With 100 classes and eight training images of each, no trained
prompt reached the 29.9 % of no prompt:

- 120 epochs of the default recipe in batches of 800, with crops from 40 % on: the training loss
  fell, the validation log-loss rose from 3.43 to 3.57, and the best epoch was the start (28.6 %).
- Trained without labels to give the mean features of 32 crops, which by themselves reach 33.3 %:
  the validation log-loss was 3.42 after 24 epochs, and 3.40 without a prompt.
- 16 epochs with 10 tokens: 28.1 %.

Data: CIFAR-10 (Krizhevsky 2009), Fashion-MNIST (Xiao et al. 2017), GTSRB (Stallkamp et al. 2012),
RSSCN7 (Zou et al. 2015), Sign Language Digits (Mavi 2017); the generated ones are drawn by
`hgprompt_edge.data.generated`. The images are not part of the package.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bank of tiny, write its README.")
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--more", type=Path, help="folder of the sets that are trained on whole")
    parser.add_argument("--out", type=Path, default=models.bank_folder("tiny"))
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="names to train")
    options = parser.parse_args()
    if options.data is not None:
        whole = [name for name in options.only if name in MORE_IMAGES]
        if whole and options.more is None:
            raise SystemExit(f"{whole[0]} is trained on the whole set; name its folder with --more")
        options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        backbone = load_backbone("tiny")
        for name in options.only:
            train(name, RECIPES[name], backbone, options.data, options.more, options.out)
    write_readme(options.out)


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


def is_there(name: str, out: Path) -> bool:
    """Whether the prompt has been trained, and say so."""
    path = out / f"{name}.safetensors"
    if path.exists():
        print(f"{path}: is there", flush=True)
    return path.exists()


def train_into(
    out: Path,
    task: Task,
    recipe: Recipe,
    backbone: Backbone,
    more: Images | None,
    about: dict[str, Any],
) -> Prompt:
    """Train a prompt from where it stopped, and put it with its start into the folder.

    `about` joins its recipe.
    """
    state = out / f".{task.name}.training"
    prompt, trained = train_source(
        backbone,
        task,
        recipe,
        more=more,
        state=state,
        report=lambda done, total: print(f"{task.name}: {done}/{total}", flush=True),
    )
    prompt = replace(prompt, recipe={**prompt.recipe, **about})
    write_prompt(out / f"{task.name}.safetensors", prompt)
    write_start(out, prompt, trained.start)
    state.unlink(missing_ok=True)
    return prompt


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


def write_readme(out: Path) -> None:
    prompts = read_bank(out).prompts
    layers, tokens, _ = prompts[0].tokens.shape
    text = HEADER.format(
        count=len(prompts), tokens=tokens, layers=layers, init_seed=prompts[0].init_seed
    )
    text += table(out)
    text += FOOTER.format(mean=sum(gain(prompt) for prompt in prompts) / len(prompts))
    (out / "README.md").write_text(text)
    print(text)


def table(out: Path) -> str:
    """One row a prompt of the bank: what it is worth on its own test part."""
    return COLUMNS + "".join(row(prompt) for prompt in read_bank(out).prompts)


def row(prompt: Prompt) -> str:
    assert prompt.test_accuracy is not None
    assert prompt.test_accuracy_unprompted is not None
    return (
        f"| {prompt.name} | {prompt.family} | {len(prompt.classes)} "
        f"| {prompt.recipe['test_images']} | {100 * prompt.test_accuracy_unprompted:.1f} % "
        f"| {100 * prompt.test_accuracy:.1f} % "
        f"| {gain(prompt):+.1f} ± {100 * prompt.recipe['test_standard_error']:.1f} "
        f"| {prompt.recipe['seed']} |\n"
    )


def gain(prompt: Prompt) -> float:
    assert prompt.test_accuracy is not None
    assert prompt.test_accuracy_unprompted is not None
    return 100 * (prompt.test_accuracy - prompt.test_accuracy_unprompted)


if __name__ == "__main__":
    main()
