"""How much do prompts gain when labels mean nothing? What `choice.least_gain` is set by.

    python benchmarks permuted --data ../shared/assets/datasets     # resumes; ten minutes a set

400 images of a set on which choices are made, their labels permuted. A row is a permutation: the
gain in nats over no prompt, summed over all images, of the best source, the uniform mix, the
learned mix (with `--learn`, for the first permutations) and two folded prompts, and what `fit
--folded 2` would keep.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hgprompt_edge import read_bank
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.algorithm import LAMBDA, learn_weights, uniform_weights
from hgprompt_edge.fit.checks import leave_out_family
from hgprompt_edge.fit.choice import best_source, decide
from hgprompt_edge.fit.judge import Judge
from shared.rows import add_rows, read_rows, results_file, select
from shared.study import make_parser
from shared.targets import BACKBONE, fastest_backbone, load_target

RESULTS = results_file("permuted")
SETS = ("sign-language-digits", "rsscn7")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--first", type=int, default=0, help="seed of the first permutation")
    parser.add_argument("--permutations", type=int, default=12)
    parser.add_argument("--learn", type=int, default=3, help="permutations with a learned mix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = fastest_backbone()
    for name in options.sets:
        task = load_target(name, backbone.preprocessing, options.data, 0)
        bank, _ = leave_out_family(read_bank(BACKBONE), task)
        store = FeatureStore(backbone)
        for seed in range(options.first, options.first + options.permutations):
            if select(read_rows(RESULTS), task=name, seed=seed):
                continue
            labels = np.concatenate([task.train.labels, task.validation.labels])
            labels = np.random.default_rng(seed).permutation(labels)
            cut = len(task.train)
            shuffled = replace(
                task,
                train=replace(task.train, labels=labels[:cut]),
                validation=replace(task.validation, labels=labels[cut:]),
                test=task.test.subset([]),
            )
            learned = seed - options.first < options.learn
            weights = uniform_weights(len(bank.basis))
            judge = Judge(store, shuffled, seed=seed)
            if learned:
                start = best_source(judge, bank)
                weights = learn_weights(
                    store, shuffled, bank, start, lam=LAMBDA, seed=seed, report=lambda *_: None
                ).weights
            decision = decide(judge, bank, weights, folded=2)
            none = decision.rows[0].cross_log_loss or 0.0
            gains = {
                row.method: round((none - (row.cross_log_loss or 0.0)) * len(labels), 3)
                for row in decision.rows
                if learned or row.method != "learned"
            }
            row = {"task": name, "seed": seed, **gains, "kept": decision.chosen.method}
            add_rows(RESULTS, row)


if __name__ == "__main__":
    main()
