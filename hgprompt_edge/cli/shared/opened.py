"""Models that a command runs, with what a device has learned for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge.cli.shared.console import note
from hgprompt_edge.errors import UserError, some

if TYPE_CHECKING:
    from hgprompt_edge.runtime.prediction import Limits
    from hgprompt_edge.runtime.predictor import Predictor


def open_model(
    model: Path,
    tasks: Sequence[str] | None = None,
    *,
    threads: int | None = None,
    device: str = "CPU",
    bf16: bool | None = None,
    state: Path | None = None,
    monitored: bool = False,
) -> Predictor:
    """Open a model; without `state` at the newest weights of `MODEL.state`, if that is there.

    A device folder is opened at the first of the named `tasks`: a broken one is no other's fault.
    If it is `monitored`, the state folder may hold only what its monitor has seen.

    Raises
    ------
    UserError
        As of `Predictor`; or a task is named, and the model is no device folder.
    """
    if state is not None and len(set(tasks or ())) > 1:
        raise UserError(f"--state {state}: holds what one task has learned; give one --task")
    model = place_of(model, tasks)
    from hgprompt_edge.runtime.learned import state_folder
    from hgprompt_edge.runtime.predictor import Predictor
    from hgprompt_edge.state.history import FILE

    predictor = Predictor(model, threads=threads, device=device, bf16=bf16)
    if monitored and predictor.bank is None:
        return predictor
    if state is not None:
        predictor.follow(state)
    if state is not None and not (state / FILE).exists():
        what = "holds nothing that was learned" if state.exists() else "not there"
        note(f"--state {state}: {what} (yet), so the initial weights are in force")
    if state is None and predictor.bank is not None:
        predictor.follow(state_folder(predictor.path))
    return predictor


def one_task(model: Path, task: str | None) -> Path:
    """Return the model file, or the file of the named or the only task of a device folder.

    Raises
    ------
    UserError
        A folder of several tasks and no name, or a name for a model of one task.
    """
    if task is None:
        check_one_task(model, "choose with --task")
    return place_of(model, None if task is None else [task])


def place_of(model: Path, tasks: Sequence[str] | None) -> Path:
    """Return the file of the first named task of a device folder; without one the model's own path.

    Raises
    ------
    UserError
        A task is named, and the model is no device folder, or no file in it can have that name.
    """
    from hgprompt_edge.artifacts.tasks.device_files import bad_name, task_paths

    if not tasks:
        return model
    if not model.is_dir():
        raise UserError(f"--task {tasks[0]}: {model} is no device folder; leave the option out")
    if bad := [name for name in tasks if bad_name(name)]:  # such as a path to another folder
        names = some(list(task_paths(model))) or "none"
        raise UserError(f"--task '{bad[0]}': not a task of {model} ({names}); name one of these")
    return model / f"{tasks[0]}.hgtask"


def check_one_task(model: Path, advice: str | None = None) -> None:
    """Refuse a device folder of several tasks, where a command takes one model.

    Raises
    ------
    UserError
        It serves several; says how to name one.
    """
    from hgprompt_edge.artifacts.tasks.device_files import task_paths

    names = list(task_paths(model)) if model.is_dir() else []
    if len(names) > 1:
        raise UserError(
            f"{model}: serves {len(names)} tasks ({some(names)}); "
            + (advice or f"name one, such as {model / names[0]}.hgtask")
        )


def tasks_of(predictor: Predictor, model: Path, names: Sequence[str] | None) -> list[Predictor]:
    """Predictors of the named tasks of a device folder, each once; of a model file its own.

    Raises
    ------
    UserError
        A folder of several tasks and no name, a name that it does not have, or a name for a model
        of one task.
    """
    if names:
        own = predictor.metadata.task
        return [predictor if name == own else predictor.task(name) for name in dict.fromkeys(names)]
    if model.is_dir() and len(predictor.tasks) > 1:
        raise UserError(
            f"{model}: serves {len(predictor.tasks)} tasks ({some(predictor.tasks)}); choose with "
            "--task"
        )
    return [predictor]


def note_limits(predictors: Sequence[Predictor], limits: Limits, *, asked: bool) -> None:
    """Say where no image can be called unknown at the rate, or at any, if that was `asked` for."""
    for predictor in predictors:
        reference = predictor.reference
        if reference is None and asked and limits.false_alarms:
            note(
                f"{predictor.path}: does not know what its own images look like at the weights in "
                "force, so it calls none unknown; fit and export it again, or undo what was learned"
            )
        images = 0 if reference is None else len(reference.held_out.scores)
        if images and 0 < limits.false_alarms < 1 / (1 + images):
            note(
                f"{predictor.path}: knows {images} of its own images, so that it calls nothing "
                f"unknown below a rate of {100 / (1 + images):.1f} %"
            )


def note_bf16(predictor: Predictor, bf16: bool | None) -> None:
    """Say what computing in bfloat16 does to the images that a model carries, where it is asked."""
    if bf16:
        note(f"bfloat16: {predictor.compare_probe()}")
