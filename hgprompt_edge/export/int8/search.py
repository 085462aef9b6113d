"""Try one scheme after the other until one is proven to hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.data.task import Task
from hgprompt_edge.errors import FileError, MismatchError
from hgprompt_edge.export.int8.measure import open_body
from hgprompt_edge.export.int8.schemes import Scheme
from hgprompt_edge.export.int8.trials import Trial, trial_of
from hgprompt_edge.fit.checks import check_same_images
from hgprompt_edge.maths.paired import Paired
from hgprompt_edge.runtime.engines.engine import Engine

MIN_CALIBRATION, MAX_CALIBRATION = 32, 300

Report = Callable[[str, int, int], None]


class Judge(NamedTuple):
    """What a body is held against for one task.

    Attributes
    ----------
    measure
        Holds a body against float32 on the task's held-out images.
    floating
        Share of these that are right in float32.
    """

    measure: Callable[[Engine], Paired]
    floating: float


def try_schemes(
    schemes: list[Scheme],
    graph: Path,
    files: Sequence[Path],
    images: npt.NDArray[np.uint8],
    judges: Sequence[Judge],
    max_drop: float,
    report: Report | None,
) -> tuple[list[tuple[Trial, ...]], tuple[Paired, ...]]:
    """Write a body with one scheme after the other until one is proven to hold for all judges.

    Where none is, the one that loses least at worst is in the files, and the last in the list.

    Parameters
    ----------
    images
        That calibrate.

    Returns
    -------
    Of each scheme what each judge found; and the pairs behind that in the files.
    """
    path = files[-1]
    kept = [graph.with_name(f"best{file.suffix}") for file in files]
    tried: list[tuple[Trial, ...]] = []
    best: tuple[tuple[Trial, ...], tuple[Paired, ...]] | None = None
    for index, scheme in enumerate(schemes):
        if report:
            report(f"int8: {scheme.name}", index, len(schemes))
        scheme.write(graph, images, path)
        body = open_body(path)
        found = tuple(judge.measure(body) for judge in judges)
        trials = tuple(
            trial_of(scheme.name, pairs, judge.floating)
            for pairs, judge in zip(found, judges, strict=True)
        )
        tried.append(trials)
        if best is None or _rank(trials, max_drop) < _rank(best[0], max_drop):
            best = trials, found
            for file, copy in zip(files, kept, strict=True):
                shutil.copyfile(file, copy)
        if all(map(partial(_settled, max_drop=max_drop), trials, found)):
            return tried, found
    if best is None:
        raise ValueError("There must be a scheme.")
    if _rank(best[0], max_drop)[0]:
        return tried, best[1]  # nothing is written
    for file, copy in zip(files, kept, strict=True):
        copy.replace(file)
    return [*(trials for trials in tried if trials is not best[0]), best[0]], best[1]


def calibration_images(task: Task, most: int = MAX_CALIBRATION) -> npt.NDArray[np.uint8]:
    """Training images `[n, S, S, 3]` that calibrate, at most so many."""
    order = np.random.default_rng(0).permutation(len(task.train))[:most]
    return task.train.pixels[np.sort(order)]


def check_images(bundle: Bundle, task: Task) -> None:
    """Refuse images that are not those of the fit, or too few to calibrate and to judge.

    Raises
    ------
    UserError
        As above.
    """
    where = task.data or task.name
    if task.classes != bundle.classes:
        raise MismatchError(
            f"the bundle of {bundle.task}",
            where,
            f"its {len(bundle.classes)} classes are not the {len(task.classes)} of these images",
            "give the images that it was fitted on",
        )
    check_same_images(bundle, task)
    if len(task.train) < MIN_CALIBRATION:
        raise FileError(
            where,
            f"{len(task.train)} training images, and int8 takes at least {MIN_CALIBRATION} to "
            "calibrate; give more, or export in another precision",
        )
    if not len(task.validation):
        raise FileError(
            where,
            "no validation images, and the accuracy of int8 is measured on them; add some, or "
            "export in another precision",
        )


def _settled(trial: Trial, found: Paired, *, max_drop: float) -> bool:
    """Whether no other scheme is needed: it holds, or its images would not prove that of any."""
    # So few images prove nothing, however little a scheme loses: the fastest one is taken.
    hopeless = Paired(found.images, 0, 0).interval[0] < -max_drop and trial.drop <= max_drop
    return bool(trial.holds(max_drop)) or hopeless


def _rank(trials: Sequence[Trial], max_drop: float) -> tuple[bool, float]:
    """Smallest for the scheme that loses least at worst, of those not known to lose too much."""
    fails = any(trial.holds(max_drop) is False for trial in trials)
    return fails, max(trial.high for trial in trials)
