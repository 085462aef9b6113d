"""Does the objective know which prompts are good? Its rank correlation with test accuracy.

    python benchmarks objective --data ../shared/assets/datasets     # resumes if killed
    python benchmarks objective --only-report   # docs/results/objective.md from the rows

Candidates are all source prompts of other families than the target's, and random mixes of three of
them. Targets are those of the second protocol of benchmarks/transfer.py: the tasks of the bank's
own prompts. A row is a candidate; those of a target and a seed go to a file of their own in
`--work`, so that several processes (`--part 1/2`, `--part 2/2`) can share the targets; all are
gathered into benchmarks/results/objective.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from scipy.stats import spearmanr

from hgprompt_edge import read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.contest import Contest
from hgprompt_edge.compare.run import prepare
from hgprompt_edge.data import Task
from hgprompt_edge.fit.algorithm import LAMBDA, align, basis_features, uniform_weights
from hgprompt_edge.fit.choice import source_candidates
from hgprompt_edge.fit.judge import Candidate
from hgprompt_edge.fit.objective import make_objective
from hgprompt_edge.prompts.bank import PromptBank
from shared.intervals import bootstrap
from shared.pages import fill, listed, table, write_page
from shared.rows import Row, Rows, add_rows, distinct, read_rows, results_file, select
from shared.study import Options, cells_of, known_rows, run_study, study_parser
from shared.targets import (
    BACKBONE,
    SOURCE_TASKS,
    TEST,
    TRAIN,
    facts_of,
    fastest_backbone,
    load_target,
)

RESULTS = results_file("objective")
STARTS = results_file("start")
"""Rows of benchmarks/method/start.py, which are on the same page."""
KEYS = ("backbone", "task", "seed", "candidate")
"""Rows of the same values of these are of the same candidate."""
TARGETS = tuple(name for names in SOURCE_TASKS.values() for name in names)
MIXES, MIXED = 12, 3
"""Random mixes, and how many sources each is of."""
SPAN = 3.0
"""Standard errors that the test accuracies of the sources must span for a ranking to mean much."""
SCORES = {"J": "objective J", "H_d": "H_d", "H": "H", "log_loss": "log-loss"}
"""What ranks the candidates; of the log-loss less is better."""


def main() -> None:
    options = study_parser(__doc__, TARGETS, (0,), ".objective").parse_args()
    run_study(options, run, RESULTS, KEYS)
    write_page("objective", report())


def run(options: Options) -> None:
    bank, backbone = read_bank(BACKBONE), fastest_backbone()
    known = {(row["task"], row["seed"]) for row in known_rows(options, RESULTS)}
    for name, seed in cells_of(options):
        if (name, seed) not in known:
            task = load_target(name, backbone.preprocessing, options.data, seed)
            rows = list(run_cell(task, backbone, bank, seed))
            add_rows(options.work / f"{name}_{seed}.json", *rows)


def run_cell(task: Task, backbone: Backbone, bank: PromptBank, seed: int) -> Iterator[Row]:
    """Score every candidate on the training images and measure it on test images."""
    contest = prepare(bank, backbone, task, seed=seed)
    store, pixels, labels = contest.store, task.train.pixels, task.train.labels
    count = len(contest.bank.prompts)
    sources = basis_features(store, task, contest.bank)[:count]
    alignment = align(sources, labels, len(task.classes), seed)
    objective = make_objective(store.features(pixels, None), labels, alignment, LAMBDA)
    for name, candidate in candidates(contest, seed):
        shares = torch.from_numpy(candidate.weights[:count])
        terms = objective.terms(store.features(pixels, candidate.tokens), shares)
        row = contest.judge.on_test(contest.judge.measure(candidate), candidate)
        yield {
            **facts_of(task, seed),
            "candidate": name,
            "J": terms.J,
            "H_d": terms.H_d,
            "H": terms.H_d + terms.floor,
            "log_loss": row.cross_log_loss,
            "accuracy": row.test_accuracy,
        }


def candidates(contest: Contest, seed: int) -> Iterator[tuple[str, Candidate]]:
    """Give the sources by their names, then the random mixes."""
    prompts = contest.bank.prompts
    for prompt, candidate in zip(prompts, source_candidates(contest.bank), strict=True):
        yield prompt.name, candidate
    rng = np.random.default_rng(seed)
    for index in range(MIXES if len(prompts) >= MIXED else 0):
        weights = 0 * uniform_weights(len(prompts))
        weights[rng.choice(len(prompts), MIXED, replace=False)] = rng.dirichlet(np.ones(MIXED))
        yield f"mix {index}", contest.folded(weights)


def report() -> str:
    """Make the page: rank correlations by target, and their mean where sources differ enough."""
    rows = read_rows(RESULTS)
    found = {name: select(rows, task=name) for name in TARGETS if select(rows, task=name)}
    spans = {name: mean_over_seeds(cell, span) for name, cell in found.items()}
    ranked = {
        name: {score: mean_over_seeds(cell, partial(correlation, score)) for score in SCORES}
        for name, cell in found.items()
    }
    wide = [name for name, width in spans.items() if width > SPAN]
    return fill(
        "objective",
        backbone=BACKBONE,
        targets=f"all {len(found)}"
        if len(found) == len(TARGETS)
        else f"{len(found)} of the {len(TARGETS)}",
        train=TRAIN,
        test=TEST,
        mixes=MIXES,
        mixed=MIXED,
        lam=f"{LAMBDA:g}",
        span=f"{SPAN:g}",
        wide=len(wide),
        correlations=table(
            ("target", "candidates", "span", *SCORES.values()),
            (
                (
                    name,
                    len(cell),
                    f"{spans[name]:.1f}",
                    *(f"{ranked[name][score]:+.2f}" for score in SCORES),
                )
                for name, cell in found.items()
            ),
        ),
        means=table(
            ("score", "mean", "95 % interval"),
            (
                (title, f"{np.mean(values):+.2f}", interval(values))
                for score, title in SCORES.items()
                if (values := [ranked[name][score] for name in wide])
            ),
        ),
        **starts(read_rows(STARTS)),
    )


def starts(rows: Rows) -> dict[str, object]:
    """Gaps of the page about the source that each of two scores takes, and the mix from there.

    Draws of a set share its test images, so a set counts once.
    """
    draw = ("task", "seed", "per_class")
    taken = [
        {tuple(row[key] for key in draw): row for row in select(rows, score=score)}
        for score in ("H_d", "log_loss")
    ]
    pairs = [tuple(found[key] for found in taken) for key in taken[0]]
    sets = distinct(rows, "task")
    source, mix = (
        100 * np.array([mean_of(pairs, name, way) for name in sets])
        for way in ("accuracy", "mix_accuracy")
    )
    gains = [last["mix_accuracy"] - first["mix_accuracy"] for first, last in pairs]
    lines = [
        (title, *(f"{values[:, column].mean():.1f} %" for values in (source, mix)))
        for column, title in enumerate(("highest H_d", "lowest log-loss"))
    ]
    differences = [list(values[:, 1] - values[:, 0]) for values in (source, mix)]
    cells = (f"{np.mean(values):+.1f} ({interval(values, 1)})" for values in differences)
    return {
        "draws": len(pairs),
        "same": sum(first["source"] == last["source"] for first, last in pairs),
        "sets": listed(sets),
        "counts": " or ".join(map(str, distinct(rows, "per_class"))),
        "better": sum(gain > 0 for gain in gains),
        "worse": sum(gain < 0 for gain in gains),
        "by_set": listed(
            f"{name} {gain:+.1f}" for name, gain in zip(sets, differences[1], strict=True)
        ),
        "starts": table(
            ("start", "the source itself", "mix learned from there"),
            [*lines, ("difference (95 % interval)", *cells)],
        ),
    }


def mean_of(pairs: Sequence[tuple[Row, Row]], task: str, way: str) -> list[float]:
    """Mean accuracy over the draws of a set, with the first and with the second start."""
    found = [[row[way] for row in pair] for pair in pairs if pair[0]["task"] == task]
    return list(np.mean(found, 0))


def interval(values: list[float], digits: int = 2) -> str:
    """Write the bootstrap interval over targets or data sets; of fewer than three there is none."""
    return " to ".join(f"{end:+.{digits}f}" for end in bootstrap(values)) if len(values) > 2 else ""


def mean_over_seeds(rows: Rows, measure: Callable[[Rows], float]) -> float:
    """Mean of a figure that is of one seed."""
    return float(np.mean([measure(select(rows, seed=seed)) for seed in distinct(rows, "seed")]))


def span(rows: Rows) -> float:
    """Return how far the best source is from the worst, in standard errors of one accuracy."""
    sources = (row for row in rows if not row["candidate"].startswith("mix "))
    accuracies = np.array([row["accuracy"] for row in sources])
    middle = float(accuracies.mean())
    error = np.sqrt(middle * (1 - middle) / rows[0]["test"])
    return float(np.ptp(accuracies) / error) if error > 0 else 0.0


def correlation(score: str, rows: Rows) -> float:
    """Spearman's, with the test accuracy; of a loss with its sign turned."""
    sign = -1 if score == "log_loss" else 1
    found = spearmanr([sign * row[score] for row in rows], [row["accuracy"] for row in rows])
    return float(found.statistic)


if __name__ == "__main__":
    main()
