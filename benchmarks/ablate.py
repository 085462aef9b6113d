"""What METHOD.md leaves open, tried one at a time: how the weights are learned and used.

    python benchmarks/ablate.py --data ../shared/assets/datasets

Each variant yields one prefix for a target; the same head as everywhere is fitted on it. Choices
are made on validation (log-loss, accuracy); test accuracy is only reported. Resumes when killed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rows import read_rows, write_rows
from side_by_side import SideBySide, SideBySideStore
from targets import load_target
from torch import Tensor

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.prompts import match_tokens, mix
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.checks import leave_out_family
from hgprompt_edge.transfer.choice import Candidate, Judge
from hgprompt_edge.transfer.features import FeatureStore, Pixels
from hgprompt_edge.transfer.learn import maximise_cached, maximise_exactly, uniform_weights
from hgprompt_edge.transfer.log_loss import LogLoss
from hgprompt_edge.vit.augment import Augmentation
from hgprompt_edge.vit.fastest import choose_compute
from hgprompt_edge.vit.train import Recipe

RESULTS = Path(__file__).parent / "results" / "ablate.json"
TARGETS = (
    "sign-language-digits",
    "digits",
    "flowers17",
    "dtd10",
    "gtsrb",
    "generated-orientation",
    "rsscn7",
    "cifar10",
)
BOTH_HEADS = ("no prompt", "uniform", "H (default)")
STEPS, RATE = 8, 0.15

Weights = npt.NDArray[np.float64]
Prompt = npt.NDArray[np.float32]
Maker = Callable[[], "Prompt | SideBySideStore | None"]


@dataclass
class Bench:
    """A target with its sources, and what several variants share."""

    store: FeatureStore
    task: Task
    tokens: Prompt
    start: Prompt
    seed: int

    def __post_init__(self) -> None:
        labels, classes = self.task.train.labels, len(self.task.classes)
        features = self.store.features(self.task.train.pixels, self.uniform)
        self.loss = LogLoss.at(features, labels, classes, self.seed)

    @property
    def uniform(self) -> Prompt:
        """The uniform mix `[L, T, D]`."""
        return mix(self.tokens, uniform_weights(len(self.tokens)))

    def learned(self, refine_steps: int = 3, **options: Any) -> Weights:
        """Weights where J ends with these options instead of the defaults."""
        given = {"lam": 0.003, "steps": 300, "seed": self.seed, **options}
        bench = self.store, self.task, self.tokens
        first = maximise_cached(*bench, report=silent, **given)
        weights: Weights = maximise_exactly(*bench, first, refine_steps, silent).weights.numpy()
        return weights

    def side_by_side(self, weights: Weights, steps: int = 0) -> SideBySideStore:
        """All sources as one prefix; `steps` of descent on the log-loss from these weights."""
        both = SideBySide(self.store.backbone, self.tokens)
        pixels = self.task.train.pixels
        theta = torch.from_numpy(weights).clamp(min=1e-4).log()
        best, best_loss = theta.softmax(0), np.inf
        for step in range(steps + 1 if steps else 0):
            a = theta.softmax(0)
            value, slope = self.loss.with_gradient(both.features(pixels, a))
            if value < best_loss:
                best, best_loss = a, value
            if step < steps:
                pulled = both.pull_back(pixels, a, slope)
                pulled = a * (pulled - a @ pulled)
                theta = theta - pulled / pulled.abs().max()
        return SideBySideStore(both, best)

    def descend(
        self,
        parameters: Tensor,
        build: Callable[[Tensor], Tensor],
        views: Callable[[], Pixels] | None = None,
    ) -> Prompt:
        """Adam on the exact cross-fitted log-loss; the prompt of the best step.

        With `views` each step sees other images, whose losses do not compare: that of the last.
        """
        theta = parameters.clone().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=RATE, betas=(0.9, 0.95))
        best, best_loss = self.uniform, np.inf
        for step in range(STEPS + 1):
            prompt = build(theta)
            pixels = views() if views else self.task.train.pixels
            tokens = prompt.detach().numpy().astype(np.float32)
            features = self.store.features(pixels, tokens)
            value, slope = self.loss.with_gradient(features)
            if views or value < best_loss:
                best, best_loss = tokens, value
            if step < STEPS:
                optimizer.zero_grad()
                prompt.backward(self.store.pull_back(pixels, tokens, slope))
                optimizer.step()
        return best


def other_views(task: Task, generator: torch.Generator) -> Pixels:
    """Crop, mirror and recolour the training images `[n, S, S, 3]`, as sources are trained."""
    images = torch.from_numpy(task.train.pixels).permute(0, 3, 1, 2).float() / 255
    augment = Augmentation.draw(len(images), Recipe.min_crop, task.flips, Recipe.jitter, generator)
    return (augment(images) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def variants(bench: Bench) -> Iterator[tuple[str, Maker]]:
    """Name and maker of each variant's prompt."""
    tokens, start = torch.from_numpy(bench.tokens), torch.from_numpy(bench.start)
    count, layers = tokens.shape[:2]
    change = tokens - start

    def folded(weights: Weights) -> Prompt:
        return mix(bench.tokens, weights)

    def sharpened(power: float) -> Prompt:
        weights = bench.learned() ** power
        return mix(bench.tokens, weights / weights.sum())

    def halfway() -> Prompt:
        return mix(bench.tokens, (bench.learned() + uniform_weights(count)) / 2)

    def shuffled(match: bool) -> Prompt:
        rng = np.random.default_rng(bench.seed)
        moved = bench.tokens.copy()
        for source in moved[1:]:
            for layer in source:
                rng.shuffle(layer)
        if match:
            moved[1:] = [match_tokens(moved[0], source) for source in moved[1:]]
        return mix(moved, uniform_weights(count))

    def simplex(theta: Tensor) -> Tensor:
        return torch.einsum("n,nltd->ltd", theta.softmax(0), tokens)

    def simplex_by_layer(theta: Tensor) -> Tensor:
        return torch.einsum("nl,nltd->ltd", theta.softmax(0), tokens)

    with_start = torch.cat([tokens, start[None]])

    def simplex_and_start(theta: Tensor) -> Tensor:
        return torch.einsum("n,nltd->ltd", theta.softmax(0), with_start)

    def by_layer_and_start(theta: Tensor) -> Tensor:
        return torch.einsum("nl,nltd->ltd", theta.softmax(0), with_start)

    def signed(theta: Tensor) -> Tensor:
        return start + torch.einsum("n,nltd->ltd", theta, change)

    def signed_by_layer(theta: Tensor) -> Tensor:
        return start + torch.einsum("nl,nltd->ltd", theta, change)

    generator = torch.Generator().manual_seed(bench.seed)

    def views() -> Pixels:
        return other_views(bench.task, generator)

    yield "no prompt", lambda: None
    yield "the start, untrained", lambda: bench.start
    yield "uniform", lambda: bench.uniform
    yield "uniform, tokens shuffled", lambda: shuffled(False)
    yield "uniform, shuffled and matched", lambda: shuffled(True)
    yield "H (default)", lambda: folded(bench.learned())
    yield "H, cached only", lambda: folded(bench.learned(refine_steps=0))
    yield "H, lambda 0", lambda: folded(bench.learned(lam=0.0))
    yield "H, lambda 0.03", lambda: folded(bench.learned(lam=0.03))
    yield "H, cosine alignment", lambda: folded(bench.learned(space="cosine"))
    yield "H, prompt alignment", lambda: folded(bench.learned(space="prompt"))
    yield (
        "H, prompt alignment, lambda 0.03",
        lambda: folded(bench.learned(space="prompt", lam=0.03)),
    )
    yield "H, weights squared", lambda: sharpened(2.0)
    yield "H, weights' square root", lambda: sharpened(0.5)
    yield "H, halfway to uniform", halfway
    equal, zeros = torch.full((count,), 1 / count), torch.zeros(count)
    longer, wide = torch.zeros(count + 1), torch.ones(1, layers)
    yield "log-loss", lambda: bench.descend(zeros, simplex)
    yield "log-loss, weight a layer", lambda: bench.descend(zeros[:, None] * wide, simplex_by_layer)
    yield "log-loss, start as a source", lambda: bench.descend(longer, simplex_and_start)
    yield (
        "log-loss, weight a layer, start as a source",
        lambda: bench.descend(longer[:, None] * wide, by_layer_and_start),
    )
    yield (
        "the same, other views in each step",
        lambda: bench.descend(longer[:, None] * wide, by_layer_and_start, views),
    )
    yield "log-loss, signed", lambda: bench.descend(equal, signed)
    yield (
        "log-loss, signed, weight a layer",
        lambda: bench.descend(equal[:, None] * wide, signed_by_layer),
    )
    yield "side by side, uniform", lambda: bench.side_by_side(uniform_weights(count))
    yield "side by side, H's weights", lambda: bench.side_by_side(bench.learned())
    yield "side by side, log-loss", lambda: bench.side_by_side(uniform_weights(count), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--variants", nargs="*", help="names of variants; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.out)
    backbone, whole = load_backbone("tiny"), read_bank("tiny")
    fast = backbone.with_compute(choose_compute(backbone).compute)
    assert whole.start is not None
    start = whole.start.tokens
    for seed in range(options.seeds):
        for name in options.targets:
            task = load_target(name, backbone, options.data, seed)
            if task is None:
                continue
            bank, _ = leave_out_family(whole, task)
            bench = Bench(FeatureStore(fast), task, bank.tokens, start, seed)
            done = {row["variant"] for row in rows if (row["task"], row["seed"]) == (name, seed)}
            for variant, make in variants(bench):
                if variant in done or variant not in (options.variants or (variant,)):
                    continue
                rows += run(bench, variant, make)
                write_rows(options.out, rows)
                print(rows[-1], flush=True)
    show(rows)


def run(bench: Bench, name: str, make: Maker) -> list[dict[str, Any]]:
    """Rows of one variant: for some with the logistic head, too."""
    rows = []
    made = make()
    for head in ("lda", "logistic") if name in BOTH_HEADS else ("lda",):
        judge = Judge(bench.store, bench.task, head, bench.seed)
        if isinstance(made, SideBySideStore):
            judge = replace(judge, store=made)
        prompt = None if isinstance(made, SideBySideStore) else made
        candidate = Candidate("", prompt, np.zeros(len(bench.tokens)))
        found = judge.on_test(judge.on_validation(candidate), candidate)
        rows.append(
            {
                "task": bench.task.name,
                "seed": bench.seed,
                "variant": name if head == "lda" else f"{name}, logistic head",
                "val_accuracy": found.val_accuracy,
                "val_log_loss": round(found.val_log_loss, 6),
                "accuracy": found.test_accuracy,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Means over targets and seeds of the differences to uniform, with standard errors."""
    reference = {(r["task"], r["seed"]): r for r in rows if r["variant"] == "uniform"}
    header = "targets   validation log-loss   validation acc.     test acc., less uniform's"
    print(f"{'variant':34s} {header}")
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [r for r in rows if r["variant"] == name and (r["task"], r["seed"]) in reference]
        if not mine:
            continue
        words = []
        for key, scale in (("val_log_loss", 1), ("val_accuracy", 100), ("accuracy", 100)):
            gaps = [scale * (r[key] - reference[r["task"], r["seed"]][key]) for r in mine]
            error = np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
            words.append(f"{np.mean(gaps):+7.3f} ± {error:.3f}")
        print(f"{name:34s} {len({row['task'] for row in mine}):7d}   {'   '.join(words)}")


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report to nobody."""


if __name__ == "__main__":
    main()
