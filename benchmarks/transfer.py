"""Measure what mixing is worth on `dinov2-small`: few training images, real and fresh targets.

    python benchmarks/transfer.py --data ../shared/assets/datasets     # resumes if killed
    python benchmarks/transfer.py --only-report        # docs/results/transfer.md from the rows

At most 400 training (a fifth of them validates) and 400 test images a target, with `--per-class 5`
five images a class; no source of the target's family. With `--protocol "each source"` the targets
are the tasks of the bank's own prompts, each with the prompts of other families. `--methods` names
further ways to mix (`h_only spot ...`), `--backbone tiny` the toy.

A cell is a target and a seed; the seed draws the training images and everything random in the
methods. Its rows go to a file of their own in `--work` as it ends, so that several processes
(`--part 1/2`, `--part 2/2`) can share the cells; all are gathered into
benchmarks/results/transfer.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from helps.few_images import draw_few
from helps.transfer_report import report
from helps.transfer_rows import EACH_SOURCE, OTHER_FAMILIES, RESULTS, USUAL
from hgprompt_edge import read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.run import compare
from hgprompt_edge.data import Task
from hgprompt_edge.prompts.bank import PromptBank
from shared.pages import write_page
from shared.rows import Rows, add_rows, read_rows, select
from shared.study import Options, cells_of, known_rows, run_study, study_parser
from shared.targets import BACKBONE, SOURCE_TASKS, TOY, fastest_backbone, load_target

KEYS = ("backbone", "protocol", "task", "seed", "per_class", "image_size", "method")
"""Rows of the same values of these are of the same run."""
ORDER = (
    *("chars34-scene", "neu-cls", "deeppcb", "trashnet", "clothing10", "fresh-corners"),
    *("flowers17", "magnetic-tile", "houses4", "fresh-clock", "weather4", "pneumonia-mnist"),
    *("dtd10", "fresh-rings", "fresh-bars", "pacs-sketch", "pacs-photo", "fresh-symmetry"),
    *("grocery81", "cifar100", "pacs-cartoon", "pacs-art-painting", "fresh-path"),
)
"""All groups early, so that a run that is cut short has some of each."""
PROTOCOLS = {
    OTHER_FAMILIES: ORDER,
    EACH_SOURCE: tuple(name for names in SOURCE_TASKS.values() for name in names),
}


def main() -> None:
    parser = study_parser(__doc__, (), (0, 1, 2), ".transfer")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=OTHER_FAMILIES)
    parser.add_argument("--per-class", type=int, help="training images a class; else 400 in all")
    parser.add_argument("--methods", nargs="*", default=list(USUAL))
    parser.add_argument("--backbone", choices=(BACKBONE, TOY), default=BACKBONE)
    options = parser.parse_args()
    options.targets = options.targets or PROTOCOLS[options.protocol]
    run_study(options, run, RESULTS, KEYS)
    draw_few(select(read_rows(RESULTS), protocol=OTHER_FAMILIES, backbone=BACKBONE))
    write_page("transfer", report())


def run(options: Options) -> None:
    bank, backbone = read_bank(options.backbone), fastest_backbone(options.backbone)
    keys = ("backbone", "task", "seed", "per_class", "method")
    known = {tuple(row[key] for key in keys) for row in known_rows(options, RESULTS)}
    for name, seed in cells_of(options):
        cell = options.backbone, name, seed, options.per_class
        wanted = [each for each in options.methods if (*cell, each) not in known]
        if not wanted:
            continue
        task = load_target(name, backbone.preprocessing, options.data, seed, options.per_class)
        rows = run_cell(task, backbone, bank, seed, options, wanted)
        add_rows(options.work / ("_".join(map(str, cell)) + ".json"), *rows)


def run_cell(
    task: Task,
    backbone: Backbone,
    bank: PromptBank,
    seed: int,
    options: Options,
    methods: Sequence[str],
) -> Rows:
    _, results = compare(bank, backbone, task, methods=methods, seed=seed)
    return [
        {
            "backbone": options.backbone,
            "protocol": options.protocol,
            "task": task.name,
            "family": task.family,
            "seed": seed,
            "image_size": backbone.image_size,
            "per_class": options.per_class,
            "train": len(task.train) + len(task.validation),
            "test": len(task.test),
            "method": result.method,
            "folded_prompts": result.inference_passes,
            "accuracy": result.accuracy,
            "image_passes": result.image_passes,
            "seconds": round(result.seconds, 1),
            "effective_sources": round(result.effective_sources, 2),
        }
        for result in results
    ]


if __name__ == "__main__":
    main()
