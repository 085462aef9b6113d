"""With few images, when is a mix worth more than no prompt? Rules for the never-worse choice.

    python benchmarks/few_images.py --data ../shared/assets/datasets   # resumes when killed
    python benchmarks/few_images.py                                    # the table from the rows

For each task, seed and number of images a class: no prompt, the uniform mix, the learned mix and
every source, each with its cross-fitted log-loss on the images that may choose, how much lower it
is than without a prompt and the standard error of that paired difference, both for one division
into folds and for the mean over several, and its test accuracy. The rules then choose from these
rows alone. A rule is picked by its mean test accuracy on the *source sets*, each as a target with
its own prompt left out; flowers17, dtd10, weather4 and digits only report what it is worth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import read_rows, write_rows
from targets import few, load_target
from torch.nn import functional
from transfer import BUDGET, SIZE_TARGETS

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.baselines import Contest
from hgprompt_edge.transfer.checks import leave_out_family
from hgprompt_edge.transfer.choice import Candidate, Judge
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.fastest import choose_compute
from hgprompt_edge.vit.heads import calibration_scale, cross_fitted_logits

RESULTS = Path(__file__).parent / "results" / "few_images.json"
SOURCE_SETS = ("cifar10", "fashion-mnist", "rsscn7", "sign-language-digits", "gtsrb", "caltech101")
SIZES = (2, 5, 10, 20, None)
DIVISIONS = 8
"""Divisions into folds whose mean is taken."""

Row = dict[str, Any]
Rule = Callable[[Sequence[Row]], Row]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="*", default=[*SOURCE_SETS, *SIZE_TARGETS])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data is not None:
        run(options)
    show(read_rows(options.out))


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rows = read_rows(options.out)
    done = {(row["task"], row["seed"], row["images_per_class"]) for row in rows}
    backbone = load_backbone("tiny")
    backbone = backbone.with_compute(choose_compute(backbone).compute)
    for seed in options.seeds:
        for name in options.tasks:
            sizes = [size for size in SIZES if (name, seed, size) not in done]
            task = load_target(name, backbone, options.data, seed) if sizes else None
            if task is None:
                continue
            for size in sizes:
                rows += [
                    {"task": name, "seed": seed, "images_per_class": size, **row}
                    for row in measure(fewer(task, size, seed), backbone, seed)
                ]
                write_rows(options.out, rows)
            print(f"{name}, seed {seed}: done", flush=True)


def fewer(task: Task, size: int | None, seed: int) -> Task:
    """Cut the training part to `size` images a class, the validation part with it."""
    if size is None:
        return task
    held = max(1, round(size / 4))
    return replace(
        task, train=few(task.train, size, seed), validation=few(task.validation, held, seed)
    )


def measure(task: Task, backbone: Backbone, seed: int) -> list[Row]:
    """One row a candidate; the first is no prompt."""
    bank, _ = leave_out_family(read_bank("tiny"), task)
    store = FeatureStore(backbone)
    judge = Judge(store, task, seed=seed)
    contest = Contest(store, task, bank, judge, BUDGET, seed)
    candidates = {
        name: contest.run(name).plan.candidates[0] for name in ("none", "uniform", "hgprompt")
    }
    for prompt, weights in zip(bank.prompts, np.eye(len(bank.prompts)), strict=True):
        candidates[prompt.name] = contest.folded(weights)[0]
    losses = {name: held_out_losses(judge, candidate) for name, candidate in candidates.items()}
    rows = []
    for name, candidate in candidates.items():
        gains = [none - own for none, own in zip(losses["none"], losses[name], strict=True)]
        row: Row = {"candidate": name, "images": len(gains[0])}
        for key, count in (("one", 1), ("several", DIVISIONS)):
            errors = [gain.std(ddof=1) / len(gain) ** 0.5 for gain in gains[:count]]
            row[f"{key}_loss"] = round(float(np.mean([x.mean() for x in losses[name][:count]])), 6)
            row[f"{key}_gain"] = round(float(np.mean([gain.mean() for gain in gains[:count]])), 6)
            # Images, not divisions, are the sample: divisions do not make the error smaller.
            row[f"{key}_error"] = round(float(np.mean(errors)), 6)
        row["accuracy"] = judge.on_test(judge.on_validation(candidate), candidate).test_accuracy
        rows.append(row)
    return rows


def held_out_losses(judge: Judge, candidate: Candidate) -> list[Floats]:
    """Cross-fitted log-loss `[n]` of each image, for each division into folds.

    The order of the images depends on labels and division alone, so candidates can be paired.
    """
    task = judge.task
    parts = (task.train, task.validation)
    features = torch.cat([judge.store.features(p.pixels, candidate.tokens) for p in parts])
    labels = np.concatenate([part.labels for part in parts])
    found = []
    for division in range(DIVISIONS):
        logits, held_out = cross_fitted_logits(
            features, labels, len(task.classes), judge.seed + division
        )
        scale = calibration_scale(logits, held_out)
        found.append(functional.cross_entropy(logits * scale, held_out, reduction="none").numpy())
    return found


def best(cell: Sequence[Row], key: str) -> Row:
    """Row with the lowest log-loss; of equals the first."""
    return min(cell, key=lambda row: float(row[f"{key}_loss"]))


def by_errors(count: float, key: str = "several") -> Rule:
    """No prompt, unless the best gains more than so many standard errors."""

    def rule(cell: Sequence[Row]) -> Row:
        found = best(cell, key)
        return found if found[f"{key}_gain"] > count * found[f"{key}_error"] else cell[0]

    return rule


def by_nats(count: float, key: str = "several") -> Rule:
    """No prompt, unless the best gains more than so many nats over all images together.

    The sum of held-out log-losses is a log-likelihood, so this is prior odds of `exp(count)` for
    no prompt; each image counts against them, so that they fade with many images.
    """

    def rule(cell: Sequence[Row]) -> Row:
        found = best(cell, key)
        return found if found[f"{key}_gain"] * found["images"] > count else cell[0]

    return rule


def by_lower_bound(count: float) -> Rule:
    """Take the candidate whose gain less so many standard errors is largest."""

    def rule(cell: Sequence[Row]) -> Row:
        return max(cell, key=lambda row: row["several_gain"] - count * row["several_error"])

    return rule


RULES: dict[str, Rule] = {
    "no prompt": lambda cell: cell[0],
    "uniform mix": lambda cell: cell[1],
    "learned mix": lambda cell: cell[2],
    "lowest loss, one division": lambda cell: best(cell, "one"),
    f"lowest loss, {DIVISIONS} divisions": lambda cell: best(cell, "several"),
    **{f"gain above {z:g} errors": by_errors(z) for z in (0.5, 1.0, 1.5, 2.0)},
    **{f"gain above {z:g} errors, one division": by_errors(z, "one") for z in (1.0, 1.5)},
    **{f"gain above {c:g} nats in all": by_nats(c) for c in (1, 2, 3, 5, 8, 12)},
    **{f"gain above {c:g} nats, one division": by_nats(c, "one") for c in (2, 3, 5, 8)},
    **{f"best gain less {z:g} errors": by_lower_bound(z) for z in (0.5, 1.0, 1.5)},
}


def show(rows: Sequence[Row]) -> None:
    """Print what each rule's choice is worth beside no prompt, by images a class."""
    cells: dict[tuple[str, int, int | None], list[Row]] = {}
    for row in rows:
        key = (row["task"], row["seed"], row["images_per_class"])
        cells.setdefault(key, []).append(row)
    for title, tasks in (("Source sets", SOURCE_SETS), ("Targets", SIZE_TARGETS)):
        mine = {key: cell for key, cell in cells.items() if key[0] in tasks}
        if not mine:
            continue
        sizes = [size for size in SIZES if any(key[2] == size for key in mine)]
        heads = "".join(f"{size or 'all':>15}" for size in sizes)
        print(f"{title}, {len(mine)} cells: points over no prompt\n{'':36s}{heads}   mean")
        for name, rule in RULES.items():
            words, means = "", []
            for size in sizes:
                gains = [
                    100 * (rule(cell)["accuracy"] - cell[0]["accuracy"])
                    for key, cell in mine.items()
                    if key[2] == size
                ]
                means.append(float(np.mean(gains)))
                error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
                words += f"{means[-1]:+8.2f} ± {error:.2f}"
            print(f"{name:36s}{words}  {np.mean(means):+.2f}")
        print()


if __name__ == "__main__":
    main()
