"""Which score of a mix predicts its test accuracy? Random mixes of the bank on every target.

    python benchmarks/criteria.py --data ../shared/assets/datasets

For each target and seed: every source alone, the uniform mix and random mixes (Dirichlet 0.5 and
2), each with scores that see only the training images, with what validation says, and with the test
accuracy. Reported: Spearman's rank correlation of each score with test accuracy over the mixes,
what the mix that each score prefers is worth beside the uniform one, and the best mix on test,
which nobody can choose, as the ceiling of the search. Resumes when killed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rows import read_rows, write_rows
from scipy.stats import spearmanr
from targets import TARGETS, load_target
from torch import Tensor

from hgprompt_edge import load_backbone, read_bank
from hgprompt_edge.prompts import mix
from hgprompt_edge.tasks import Task
from hgprompt_edge.transfer.checks import leave_out_family
from hgprompt_edge.transfer.choice import Candidate, Judge
from hgprompt_edge.transfer.features import FeatureStore
from hgprompt_edge.transfer.hscore import feature_shrinkage, h_score
from hgprompt_edge.vit.fastest import choose_compute
from hgprompt_edge.vit.heads import Labels, cross_fitted_log_loss

RESULTS = Path(__file__).parent / "results" / "criteria.json"
SHRINKAGES = (0.001, 0.01, 0.1, 0.5)
RANDOM_MIXES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--bank", default="tiny")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.out)
    done = {(row["task"], row["seed"]) for row in rows}
    backbone, bank = load_backbone("tiny"), read_bank(options.bank)
    for seed in range(options.seeds):
        for name in options.targets:
            task = None if (name, seed) in done else load_target(name, backbone, options.data, seed)
            if task is None:
                continue
            kept, _ = leave_out_family(bank, task)
            store = FeatureStore(backbone.with_compute(choose_compute(backbone).compute))
            rows += measure(store, task, kept.tokens, seed)
            write_rows(options.out, rows)
            print(f"{name}, seed {seed}: done", flush=True)
    show(rows)


def measure(
    store: FeatureStore, task: Task, tokens: npt.NDArray[np.float32], seed: int
) -> list[dict[str, Any]]:
    """One row a mix; the first is uniform."""
    count = len(tokens)
    rng = np.random.default_rng(seed)
    half = RANDOM_MIXES // 2
    weights = np.concatenate(
        [
            np.full((1, count), 1 / count),
            np.eye(count),
            rng.dirichlet(np.full(count, 0.5), half),
            rng.dirichlet(np.full(count, 2.0), half),
        ]
    )
    judge = Judge(store, task, seed=seed)
    return [{"task": task.name, "seed": seed, **one(judge, tokens, row)} for row in weights]


def one(
    judge: Judge, tokens: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]
) -> dict[str, Any]:
    candidate = Candidate("", mix(tokens, weights), weights)
    found = judge.on_test(judge.on_validation(candidate), candidate)
    task = judge.task
    features = judge.store.features(task.train.pixels, candidate.tokens)
    scores = score(features, task.train.labels, len(task.classes), judge.seed)
    return {
        "weights": [round(float(weight), 4) for weight in weights],
        **{name: round(value, 6) for name, value in scores.items()},
        "validation accuracy": found.val_accuracy,
        "validation log-loss": -round(found.val_log_loss, 6),
        "accuracy": found.test_accuracy,
    }


def score(features: Tensor, labels: Labels, classes: int, seed: int) -> dict[str, float]:
    """Scores of training features `[n, D]`, larger is better."""
    scores = {f"H, rho {rho:g}": float(h_score(features, labels, rho)) for rho in SHRINKAGES}
    ledoit_wolf = feature_shrinkage(features)
    scores["H, Ledoit-Wolf"] = float(h_score(features, labels, ledoit_wolf))
    scores["cross-fitted log-loss"] = -cross_fitted_log_loss(features, labels, classes, seed)
    return scores


def show(rows: list[dict[str, Any]]) -> None:
    names = [key for key in rows[0] if key not in ("task", "seed", "weights", "accuracy")]
    groups = sorted({(row["task"], row["seed"]) for row in rows})
    print(f"{'score':24s} rank correlation  its choice, points over uniform")
    for name in names:
        correlations, gains = [], []
        for group in groups:
            mine = [row for row in rows if (row["task"], row["seed"]) == group]
            accuracy = np.array([row["accuracy"] for row in mine])
            values = np.array([row[name] for row in mine])
            correlations.append(float(spearmanr(values, accuracy)[0]))
            gains.append(100 * float(accuracy[values.argmax()] - accuracy[0]))
        print(f"{name:24s} {interval(correlations):>16s}  {interval(gains, 1):>16s}")
    ceiling = []
    for group in groups:
        accuracy = [row["accuracy"] for row in rows if (row["task"], row["seed"]) == group]
        ceiling.append(100 * (max(accuracy) - accuracy[0]))
    print(f"{'best on test':24s} {'':16s}  {interval(ceiling, 1):>16s}")


def interval(values: list[float], digits: int = 2) -> str:
    """Mean and its standard error over targets and seeds."""
    array = np.array([value for value in values if np.isfinite(value)])
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return f"{array.mean():+.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
