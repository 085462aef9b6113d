"""Where should the ascent begin? The source with the highest H_d against the lowest log-loss.

    python benchmarks start --data ../shared/assets/datasets     # resumes if killed
    python benchmarks start --only-report    # docs/results/objective.md from the rows

Few images a class, since that is where the two scores disagree, of three sets on which choices are
made and nothing is reported. A row is a draw and a score: the source that it takes, and the test
accuracy of that source and of the mix that is learned from there. Those of a draw go to a file of
their own in `--work`, so that several processes (`--part 1/2`, `--part 2/2`) can share the draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hgprompt_edge import read_bank
from hgprompt_edge.compare.contest import Contest
from hgprompt_edge.compare.run import prepare
from hgprompt_edge.fit.algorithm import LAMBDA, learn_weights
from hgprompt_edge.fit.choice import best_source, source_candidates
from hgprompt_edge.fit.judge import Candidate
from method import objective
from shared.pages import write_page
from shared.rows import Row, add_rows, results_file
from shared.study import Options, cells_of, known_rows, run_study, study_parser
from shared.targets import BACKBONE, facts_of, fastest_backbone, load_target

RESULTS = results_file("start")
KEYS = ("backbone", "task", "seed", "per_class", "score")
"""Rows of the same values of these are of the same start."""
TARGETS = ("rsscn7", "cifar10", "fashion-mnist")
PER_CLASS = (5, 10)


def main() -> None:
    options = study_parser(__doc__, TARGETS, (0, 1), ".start").parse_args()
    run_study(options, run, RESULTS, KEYS)
    write_page("objective", objective.report())


def run(options: Options) -> None:
    bank, backbone = read_bank(BACKBONE), fastest_backbone()
    known = {(row["task"], row["seed"], row["per_class"]) for row in known_rows(options, RESULTS)}
    for name, seed in cells_of(options):
        for count in PER_CLASS:
            if (name, seed, count) not in known:
                task = load_target(name, backbone.preprocessing, options.data, seed, count)
                contest = prepare(bank, backbone, task, seed=seed)
                facts = {**facts_of(task, seed), "per_class": count}
                rows = [{**facts, **row} for row in starts(contest)]
                add_rows(options.work / f"{name}_{seed}_{count}.json", *rows)


def starts(contest: Contest) -> Iterator[Row]:
    """Learn from the source that each score takes, once where it is the same."""
    by_loss = best_source(contest.judge, contest.bank)
    accuracies, scores = measured(contest, by_loss)
    by_h = int(np.argmax(scores[: len(contest.bank.prompts)]))
    found = {by_loss: accuracies}
    if by_h != by_loss:
        found[by_h], _ = measured(contest, by_h)
    for score, start in (("H_d", by_h), ("log_loss", by_loss)):
        yield {"score": score, "source": contest.bank.names[start], **found[start]}


def measured(contest: Contest, start: int) -> tuple[dict[str, float | None], tuple[float, ...]]:
    """Test accuracy of a source and of the mix learned from there; H_d of each prompt."""
    learned = learn_weights(
        contest.store,
        contest.task,
        contest.bank,
        start,
        lam=LAMBDA,
        seed=contest.seed,
        report=lambda *_: None,
    )
    source = source_candidates(contest.bank)[start]
    ways = {"accuracy": source, "mix_accuracy": contest.folded(learned.weights)}
    return {name: on_test(contest, way) for name, way in ways.items()}, learned.scores


def on_test(contest: Contest, candidate: Candidate) -> float | None:
    """Test accuracy under the candidate's own best head."""
    return contest.judge.on_test(contest.judge.measure(candidate), candidate).test_accuracy


if __name__ == "__main__":
    main()
