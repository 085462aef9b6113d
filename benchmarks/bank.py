"""Train the bundled bank and write its README from what the prompt files say.

    python benchmarks/bank.py --data ../shared/assets/datasets   # trains what is missing
    python benchmarks/bank.py                                    # only writes the README again

Each prompt takes some minutes on one core where the CPU has bfloat16 units. An interrupted run
goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hgprompt_edge import Prompt, load_backbone, load_task, read_bank, train_source, write_prompt
from hgprompt_edge.prompts import bundled_bank
from hgprompt_edge.tasks.generated import KINDS
from hgprompt_edge.vit.train import Recipe, fastest_precision

RECIPES: dict[str, dict[str, Any]] = {
    "sign-language-digits": {"epochs": 120},
    "generated-orientation": {"epochs": 80, "validate_every": 10},
    "generated-count": {"epochs": 80, "validate_every": 10},
    "generated-location": {"epochs": 60, "validate_every": 10},
    # Frames of one sign stand on both sides of the validation split, so validation lies here.
    "gtsrb": {"epochs": 60, "validate_every": 10, "keep_last": True},
    "fashion-mnist": {"epochs": 60, "validate_every": 10},
    # Close to what the backbone was trained on: smaller steps, or the prompt only does harm.
    "rsscn7": {"epochs": 100, "learning_rate": 4e-3},
    "cifar10": {"epochs": 50, "learning_rate": 3e-3},
    "caltech101": {"epochs": 60, "learning_rate": 3e-3, "batch_size": 800},
}

HEADER = """# The bundled source bank

{count} prompts for the bundled backbone: deep, {tokens} tokens in each of {layers} blocks, trained
by VPT for the closed-form head (`benchmarks/bank.py` has the recipe of each) on at most 1,000
images or, for the generated tasks, on fresh images in each epoch. All share one start (`init_seed`
{init_seed}), so their tokens correspond.

**Worth.** Accuracy on the source's own test part, with and without the prompt, under the same
closed-form head (LDA, fitted on training and validation images). The epoch was chosen on
validation (gtsrb: the last one, since its validation images show the signs of its training
images). ± is the standard error of the paired difference over the test images; one training seed
each. Be warned that the training method was developed on these very sets, test parts included, so
the gains are somewhat optimistic; the targets (flowers17, dtd10, weather4, digits) were not used.

| source | family | classes | test images | unprompted | prompted | gain (points) | seed |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

FOOTER = """
Mean gain over the bank: **{mean:+.1f} points**.

Data: Caltech-101 (Fei-Fei et al. 2004), CIFAR-10 (Krizhevsky 2009), Fashion-MNIST (Xiao et al.
2017), GTSRB (Stallkamp et al. 2012), RSSCN7 (Zou et al. 2015), Sign Language Digits (Mavi 2017);
the generated ones are drawn by `hgprompt_edge.tasks.generated`. The images are not part of the
package.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled bank, write its README.")
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--out", type=Path, default=bundled_bank())
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="names to train")
    options = parser.parse_args()
    if options.data is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        for name in options.only:
            train(name, options.data, options.out)
    write_readme(options.out)


def train(name: str, data: Path, out: Path) -> None:
    path, state = out / f"{name}.safetensors", out / f".{name}.training"
    if path.exists():
        print(f"{path}: is there")
        return
    backbone = load_backbone("bundled")
    task = load_task(name, backbone.preprocessing, data=None if name in KINDS else data / name)
    recipe = replace(Recipe(precision=fastest_precision()), **RECIPES[name])
    prompt, _ = train_source(
        backbone, task, recipe, state=state, report=lambda a, n: print(f"{name}: {a}/{n}")
    )
    write_prompt(path, prompt)
    state.unlink(missing_ok=True)


def write_readme(out: Path) -> None:
    prompts = read_bank(out).prompts
    layers, tokens, _ = prompts[0].tokens.shape
    text = HEADER.format(
        count=len(prompts), tokens=tokens, layers=layers, init_seed=prompts[0].init_seed
    )
    text += "".join(row(prompt) for prompt in prompts)
    text += FOOTER.format(mean=sum(gain(prompt) for prompt in prompts) / len(prompts))
    (out / "README.md").write_text(text)
    print(text)


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
