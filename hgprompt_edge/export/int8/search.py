"""Try one scheme after the other until one is proven to hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.data.task import Task
from hgprompt_edge.export.int8.measure import open_body
from hgprompt_edge.export.int8.schemes import Scheme
from hgprompt_edge.export.int8.trials import Trial, trial_of
from hgprompt_edge.maths.paired import Paired
from hgprompt_edge.runtime.engines.engine import Engine

MIN_CALIBRATION, MAX_CALIBRATION = 32, 300

Report = Callable[[str, int, int], None]


def try_schemes(
    schemes: list[Scheme],
    graph: Path,
    files: Sequence[Path],
    task: Task,
    measure: Callable[[Engine], Paired],
    floating: float,
    max_drop: float,
    report: Report | None,
) -> tuple[list[Trial], Paired]:
    """Write a body with one scheme after the other until one is proven to hold.

    Where none is, the one that loses least at worst is in the files, and the last in the list.
    """
    calibration, path = _calibration(task), files[-1]
    kept = [graph.with_name(f"best{file.suffix}") for file in files]
    tried: list[Trial] = []
    best: tuple[Trial, Paired] | None = None
    for index, scheme in enumerate(schemes):
        if report:
            report(f"int8: {scheme.name}", index, len(schemes))
        scheme.write(graph, calibration, path)
        found = measure(open_body(path))
        trial = trial_of(scheme.name, found, floating)
        tried.append(trial)
        if best is None or _rank(trial, max_drop) < _rank(best[0], max_drop):
            best = trial, found
            for file, copy in zip(files, kept, strict=True):
                shutil.copyfile(file, copy)
        # So few images prove nothing, however little a scheme loses: the fastest one is taken.
        hopeless = Paired(found.images, 0, 0).interval[0] < -max_drop and trial.drop <= max_drop
        if trial.holds(max_drop) or hopeless:
            return tried, found
    if best is not None and best[0].holds(max_drop) is False:
        return tried, best[1]  # nothing is written
    if best is None:
        raise ValueError("There must be a scheme.")
    for file, copy in zip(files, kept, strict=True):
        copy.replace(file)
    return [*(trial for trial in tried if trial is not best[0]), best[0]], best[1]


def _rank(trial: Trial, max_drop: float) -> tuple[bool, float]:
    """Smallest for the scheme that loses least at worst, of those not known to lose too much."""
    return trial.holds(max_drop) is False, trial.high


def _calibration(task: Task) -> npt.NDArray[np.uint8]:
    order = np.random.default_rng(0).permutation(len(task.train))[:MAX_CALIBRATION]
    return task.train.pixels[np.sort(order)]
