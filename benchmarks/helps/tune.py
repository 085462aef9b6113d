"""What the start of tuning is worth: from scratch, from the best source, from the learned mix.

    python benchmarks tune --data ../shared/assets/datasets     # resumes if killed
    python benchmarks tune --only-report        # docs/results/tune.md from the rows

One run for each target, seed and start, at a constant learning rate, so that it can be read at any
time: test accuracy of the best head refitted on the features after 1/5, 1/2, 1 and 2 times the
training passes of `--epochs` (14). Images and sources as in transfer.py. A run's readings go to a
file of its own in `--work` as they come, beside the state that it resumes from; `--part 1/2` and
`--part 2/2` share the runs of two processes; all are gathered into benchmarks/results/tune.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from helps.transfer_rows import difference
from hgprompt_edge import read_bank
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.contest import Contest
from hgprompt_edge.compare.run import Result, compare
from hgprompt_edge.data import Task
from hgprompt_edge.fit.judge import Candidate
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.prompt import Floats
from hgprompt_edge.training.prompt_tuning import PromptTrainer
from shared.pages import fill, listed, table, write_page
from shared.rows import Row, Rows, distinct, mean_of, read_rows, results_file, select, write_rows
from shared.study import Options, cells_of, known_rows, run_study, study_parser
from shared.targets import BACKBONE, GROUPS, facts_of, fastest_backbone, load_target

RESULTS = results_file("tune")
KEYS = ("backbone", "task", "seed", "start", "epochs")
"""Rows of the same values of these are the same reading."""
TARGETS = ("chars34-scene", "deeppcb", "trashnet", "flowers17")
STARTS = {"scratch": None, "best_source": "best_source", "learned": "hgprompt"}
"""The start, and the method of `compare` that finds it."""
TITLES = {"scratch": "from scratch", "best_source": "best source", "learned": "learned mix"}
SHARES = {0.0: "before", 0.2: "1/5", 0.5: "1/2", 1.0: "1", 2.0: "2"}
"""Readings, in training passes; 1 is `EPOCHS` epochs."""
EPOCHS, BATCH_SIZE, RATE = 14, 160, 1e-2
"""Two steps an epoch of 320 images; the rate at which `prompt train` starts from scratch."""
CLAIMS = (
    ("learned 0.2", "scratch 1.0"),
    ("best_source 0.2", "scratch 1.0"),
    ("learned 1.0", "scratch 1.0"),
    ("learned 2.0", "scratch 2.0"),
    ("learned 0.2", "best_source 0.2"),
    ("learned 1.0", "best_source 1.0"),
    ("learned 1.0", "learned 0.0"),
)


def main() -> None:
    parser = study_parser(__doc__, TARGETS, (0, 1), ".tune")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="what counts as 1")
    run_study(parser.parse_args(), run, RESULTS, KEYS)
    write_page("tune", report())


def run(options: Options) -> None:
    bank, backbone = read_bank(BACKBONE), fastest_backbone()
    for name, seed in cells_of(options):
        known = [start for start in STARTS if is_complete(options, name, seed, start)]
        if len(known) < len(STARTS):
            task = load_target(name, backbone.preprocessing, options.data, seed)
            run_cell(options, task, bank, backbone, seed, known)


def is_complete(options: Options, name: str, seed: int, start: str) -> bool:
    """Whether all readings of a run are there, in the results or in its own file."""
    found = select(known_rows(options, RESULTS), task=name, seed=seed, start=start)
    return {row["epochs"] for row in found} >= set(readings(options.epochs))


def readings(epochs: int) -> dict[int, float]:
    """Epochs after which a run is read, and what they are called."""
    return {round(share * epochs): share for share in SHARES}


def run_cell(
    options: Options,
    task: Task,
    bank: PromptBank,
    backbone: Backbone,
    seed: int,
    known: list[str],
) -> None:
    """Find the starts of one target and seed, and train from those that are not `known`."""
    methods = ("none", "best_source", "hgprompt")
    contest, results = compare(bank, backbone, task, methods=methods, seed=seed)
    found = {result.method: result for result in results}
    for start, method in STARTS.items():
        if start in known:
            continue
        path = options.work / f"{task.name}_{seed}_{start}.json"
        tokens = contest.run(method).plan.candidate.tokens if method else contest.start
        rows = read_rows(path)
        facts = about(task, seed, start, found, method)
        trainer = make_trainer(contest, tokens, 2 * options.epochs, path.with_suffix(".state"))
        read = reader(contest, trainer, rows, facts, options.epochs, path)
        if not trainer.resume():
            read(0, 0)
        else:
            read(trainer.epoch, 0)  # killed between the state and the reading
        trainer.run(read)
        path.with_suffix(".state").unlink(missing_ok=True)
        shown = ", ".join(f"{row['share']:g}: {100 * row['accuracy']:.1f}" for row in rows)
        print(f"{task.name} {seed} {start}: {shown}", flush=True)


def about(task: Task, seed: int, start: str, found: dict[str, Result], method: str | None) -> Row:
    """Say what all readings of a run have in common; `fit_passes` is what the start has cost."""
    return {
        **facts_of(task, seed),
        "start": start,
        "no_prompt": found["none"].accuracy,
        "fit_passes": found[method].image_passes if method else 0,
    }


class ConstantRate(PromptTrainer):
    """The trainer of `tune` at one learning rate, so that no reading depends on the run's end."""

    def learning_rate(self, _total: int) -> float:
        """Warm up over ten steps, then stay."""
        return self.recipe.learning_rate * min(1.0, (self.step + 1) / 10)

    def resume(self) -> bool:
        """Take over the state of an interrupted run, if there is one."""
        return self._load_state()


def make_trainer(contest: Contest, start: Floats | None, epochs: int, state: Path) -> ConstantRate:
    task, backbone = contest.task, contest.store.backbone
    part = (task.train.pixels, task.train.labels)
    held_out = (task.validation.pixels, task.validation.labels)
    recipe = replace(
        contest.recipe,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=RATE,
        validate_every=1,
        keep_last=True,
        flips=task.flips,
    )
    return ConstantRate(
        backbone,
        recipe,
        len(task.classes),
        lambda _: part,
        part,
        held_out,
        state,
        start,
        task.digest,
    )


def reader(
    contest: Contest,
    trainer: ConstantRate,
    rows: Rows,
    facts: Row,
    epochs: int,
    path: Path,
) -> Callable[[int, int], None]:
    """Return what reads the run after each epoch, where a reading is due and not there yet."""
    due = readings(epochs)

    def read(epoch: int, _: int) -> None:
        if epoch not in due or any(row["epochs"] == epoch for row in rows):
            return
        tokens = trainer.averaged.numpy().copy()
        candidate = Candidate("", tokens, contest.unmixed)
        row = contest.judge.on_test(contest.judge.on_validation(candidate), candidate)
        passes = epoch * facts["train"]
        rows.append(
            {
                **facts,
                "epochs": epoch,
                "share": due[epoch],
                "training_passes": passes,
                "accuracy": row.test_accuracy,
                "val_accuracy": row.val_accuracy,
            }
        )
        write_rows(path, rows)

    return read


def report() -> str:
    """Make the page: accuracy by start and training passes, differences with intervals."""
    rows = [{**row, "method": f"{row['start']} {row['share']}"} for row in read_rows(RESULTS)]
    known = distinct(rows, "task")
    tasks = [name for group in GROUPS.values() for name in group if name in known]
    return fill(
        "tune",
        backbone=BACKBONE,
        targets=len(tasks),
        seeds=listed(distinct(rows, "seed")),
        rate=f"{RATE:g}",
        epochs=EPOCHS,
        mix=f"{mean_of(select(rows, start='learned'), 'fit_passes'):,.0f}",
        best=f"{mean_of(select(rows, start='best_source'), 'fit_passes'):,.0f}",
        scratch=f"{3 * mean_of(select(rows, start='scratch', share=1.0), 'training_passes'):,.0f}",
        accuracies=table(
            (
                "target",
                "seeds",
                "no prompt",
                "from",
                "start",
                "training passes of 1",
                *SHARES.values(),
            ),
            (
                (name, len(distinct(found, "seed")), *cells(found, start))
                for name in tasks
                for start in STARTS
                if (found := select(rows, task=name, start=start))
            ),
        ),
        differences=table(
            ("difference", "points"),
            (
                (f"{claim(one)} - {claim(other)}", claimed(rows, one, other))
                for one, other in CLAIMS
            ),
        ),
    )


def cells(rows: Rows, start: str) -> Iterator[str]:
    """Cells of a target and a start."""
    yield f"{100 * mean_of(rows, 'no_prompt'):.1f}"
    yield TITLES[start]
    yield f"{mean_of(rows, 'fit_passes'):,.0f}"
    yield f"{max(row['training_passes'] for row in rows if row['share'] <= 1):,}"
    for share in SHARES:
        read = select(rows, share=share)
        yield f"{100 * mean_of(read, 'accuracy'):.1f}" if read else ""


def claimed(rows: Rows, one: str, other: str) -> str:
    """Difference over the targets that have both readings."""
    both = [{row["task"] for row in select(rows, method=each)} for each in (one, other)]
    return difference(rows, sorted(both[0] & both[1]), one, other)


def claim(method: str) -> str:
    start, share = method.split()
    return f"{TITLES[start]}, {SHARES[float(share)]}"


if __name__ == "__main__":
    main()
