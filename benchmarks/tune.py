"""Compare the learned mix, tuned, with VPT from scratch for the same and five times the passes.

    python benchmarks/tune.py --data ../shared/assets/datasets   # resumes when killed
    python benchmarks/tune.py                                    # the tables from the rows

"Fit and tune" learns the weights on cached features (no exact step), then trains the folded mix for
two epochs. Its passes are all counted, fit's own too: one over the training images for each source,
two for the uniform and the learned mix, and three for each image of a step. VPT trains the same
number of tokens from the bank's own start for the same passes, and for five times as many.
Both have the same cross-fitted loss, augmentation, batches and choice of the epoch by validation.

The learning rate of each is picked beforehand, from the same rates, by validation log-loss on two
source sets whose own prompts are left out; the targets see the picked rates alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cube import Cube, Row, cube
from rows import read_rows, write_rows
from targets import load_target

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.prompts import Floats, mix
from hgprompt_edge.transfer.baselines import Budget, Contest
from hgprompt_edge.transfer.checks import leave_out_family
from hgprompt_edge.transfer.choice import Candidate, Judge
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.learn import learn_weights
from hgprompt_edge.transfer.tune import train_from
from hgprompt_edge.vit.backbone import Backbone
from hgprompt_edge.vit.fastest import choose_compute

RESULTS = Path(__file__).parent / "results" / "tune.json"
TARGETS = ("flowers17", "dtd10", "weather4", "digits", "generated-orientation", "generated-count")
PILOT = ("sign-language-digits", "fashion-mnist")
RATES = (5e-3, 1e-2, 3e-2)
TUNE_EPOCHS, TIMES = 2, 5
TITLES = {
    "none": "no prompt",
    "fit": "fit, cached",
    "tune": "fit and tune",
    "vpt": "VPT, same passes",
    "vpt_long": f"VPT, {TIMES} times the passes",
}


@dataclass
class Bench:
    """One target: what was learned for it, and what that cost."""

    contest: Contest
    mixed: Floats
    fit_passes: int
    fit_seconds: float

    @classmethod
    def of(cls, name: str, seed: int, backbone: Backbone, data: Path) -> Bench | None:
        """Learn the weights for a target; None where its images are not installed."""
        task = load_target(name, backbone, data, seed)
        if task is None:
            return None
        bank, _ = leave_out_family(read_bank("tiny"), task)
        store = FeatureStore(backbone.with_compute(choose_compute(backbone).compute))
        judge = Judge(store, task, seed=seed)
        contest = Contest(store, task, bank, judge, Budget(), seed)
        began = time.perf_counter()
        with store.counting() as asked:
            learned = learn_weights(
                store,
                task,
                bank,
                lam=contest.budget.lam,
                steps=contest.budget.steps,
                refine_steps=0,
                seed=seed,
                report=silent,
            )
        seconds = time.perf_counter() - began
        return cls(contest, mix(bank.basis_tokens, learned.weights), sum(asked.values()), seconds)

    @property
    def tuned_passes(self) -> int:
        """Passes of fit and tune together."""
        return self.fit_passes + 3 * TUNE_EPOCHS * len(self.contest.task.train)

    def run(self, method: str, rate: float) -> Row:
        """Train as `method` does and measure the prompt that validation likes best."""
        began = time.perf_counter()
        images = len(self.contest.task.train)
        tokens: Floats | None = None
        passes, spent, epoch = 0, 0.0, 0
        if method == "fit":
            tokens, passes, spent = self.mixed, self.fit_passes, self.fit_seconds
        elif method != "none":
            start = self.mixed if method == "tune" else None
            times = TIMES if method == "vpt_long" else 1
            epochs = round(times * self.tuned_passes / (3 * images))
            if method == "tune":
                epochs, passes, spent = TUNE_EPOCHS, self.fit_passes, self.fit_seconds
            every = 1 if epochs <= 6 else 3
            recipe = replace(
                self.contest.recipe, epochs=epochs, learning_rate=rate, validate_every=every
            )
            backbone, task = self.contest.store.backbone, self.contest.task
            trained = train_from(start, backbone, task, recipe)
            tokens, passes, epoch = trained.tokens, passes + 3 * epochs * images, trained.epoch
        seconds = time.perf_counter() - began + spent
        candidate = Candidate("", tokens, np.zeros(len(self.contest.bank.prompts)))
        judge = self.contest.judge
        found = judge.on_test(judge.on_validation(candidate), candidate)
        return {
            "task": self.contest.task.name,
            "seed": self.contest.seed,
            "method": method,
            "learning_rate": rate,
            "image_passes": passes,
            "epoch": epoch,
            "val_accuracy": found.val_accuracy,
            "val_log_loss": round(found.val_log_loss, 6),
            "accuracy": found.test_accuracy,
            "seconds": round(seconds, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data is not None:
        torch.set_num_threads(1)
        run(options)
    print(tune_tables(read_rows(options.out)))


def run(options: argparse.Namespace) -> None:
    rows = read_rows(options.out)
    backbone = load_backbone("tiny")

    def add(name: str, seed: int, wanted: Sequence[tuple[str, float]]) -> None:
        done = {
            (row["method"], row["learning_rate"])
            for row in rows
            if (row["task"], row["seed"]) == (name, seed)
        }
        left = [pair for pair in wanted if pair not in done]
        bench = Bench.of(name, seed, backbone, options.data) if left else None
        if bench is None:
            return
        for method, rate in left:
            rows.append(bench.run(method, rate))
            write_rows(options.out, rows)
            print(rows[-1], flush=True)

    for name in PILOT:
        add(name, 0, [(method, rate) for rate in RATES for method in ("tune", "vpt_long")])
    rates = {method: picked(rows, method) for method in ("tune", "vpt_long")}
    wanted = [("none", 0.0), ("fit", 0.0), ("tune", rates["tune"])]
    wanted += [("vpt", rates["vpt_long"]), ("vpt_long", rates["vpt_long"])]
    for seed in options.seeds:
        for name in options.targets:
            add(name, seed, wanted)


def picked(rows: Sequence[Row], method: str) -> float:
    """Return the rate with the lowest mean validation log-loss on the pilot sets."""

    def loss(rate: float) -> float:
        mine = [row for row in rows if row["task"] in PILOT and row["method"] == method]
        return float(np.mean([r["val_log_loss"] for r in mine if r["learning_rate"] == rate]))

    return min(RATES, key=loss)


def tune_tables(rows: Sequence[Row]) -> str:
    """Accuracy by target, and what fit and tune gain over VPT."""
    found = cube([row for row in rows if row["task"] not in PILOT], tuple(TITLES))
    if "tune" not in found.methods:
        return ""
    rates = {method: picked(rows, method) for method in ("tune", "vpt_long")}
    passes = {m: passes_of(rows, found, m) for m in found.methods}
    lines = [
        f"{len(found.tasks)} targets, {found.seeds} each. Learning rate "
        f"{rates['tune']:g} for tune and {rates['vpt_long']:g} for VPT, picked on "
        f"{' and '.join(PILOT)}.\n",
        "| target | " + " | ".join(TITLES[method] for method in found.methods) + " |",
        "| --- " * (len(found.methods) + 1) + "|",
    ]
    for task, values in zip(found.tasks, found.by_task, strict=True):
        lines.append(f"| {task} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    mean = " | ".join(f"{value:.2f}" for value in found.by_task.mean(0))
    lines += [
        f"| mean | {mean} |",
        "| image passes | " + " | ".join(f"{passes[m]:,.0f}" for m in found.methods) + " |\n",
    ]
    column = found.column("tune")
    value, low, high = found.bootstrap(lambda x: (x[:, [column]] - x).mean(0))
    for index, method in enumerate(found.methods):
        if index != column:
            lines.append(
                f"Fit and tune less {TITLES[method]}: {value[index]:+.2f} points "
                f"({low[index]:+.2f} to {high[index]:+.2f}), "
                f"{passes['tune'] / max(passes[method], 1):.2f} of its passes."
                if passes[method]
                else f"Fit and tune less {TITLES[method]}: {value[index]:+.2f} points "
                f"({low[index]:+.2f} to {high[index]:+.2f})."
            )
    return "\n".join(lines) + "\n"


def passes_of(rows: Sequence[Row], found: Cube, method: str) -> float:
    """Mean image passes of a method on the targets."""
    mine = [r["image_passes"] for r in rows if r["method"] == method and r["task"] in found.tasks]
    return float(np.mean(mine))


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report to nobody."""


if __name__ == "__main__":
    main()
