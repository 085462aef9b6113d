"""Accuracy against latency at several image sizes, to compare more pixels with prompts.

The mix is learned once, at the image size that the prompts were trained for. At other sizes the
same folded prompts are used, and each size has its own pooling and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.folded import MAX_FOLDED
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.compare.baselines import decision
from hgprompt_edge.compare.contest import Budget, Contest
from hgprompt_edge.compare.latency import Deployed, milliseconds
from hgprompt_edge.compare.run import accuracy_of, prepare
from hgprompt_edge.data import Task
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore, digest
from hgprompt_edge.features.pooling import choose_pooling
from hgprompt_edge.fit.algorithm import Progress
from hgprompt_edge.fit.judge import Candidate, Judge
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.prompts.bank import PromptBank
from hgprompt_edge.prompts.prompt import SHALLOW

Load = Callable[[Preprocessing], Task]
"""Reads the task for a backbone's preprocessing, the same images for each."""


@dataclass(frozen=True)
class Point:
    """One way to classify the task's images: how right and how fast.

    Attributes
    ----------
    image_size
        Side of the images in pixels.
    folded
        0: no prompt; else what `fit` ships where at most so many folded prompts may run.
    choice
        The row of `fit`'s table that this is, a key of `ROW_TITLES`.
    passes
        Folded prompts that run for each image, one for no prompt.
    pooling
        What the heads see, chosen at this size.
    val_accuracy
        Of heads fitted on the training part.
    accuracy, low, high
        On the test part, of heads fitted on training and validation images, and its 95 % interval
        (Wilson's); None without a test part.
    correct
        `[n]` bool: which test images are classified right, for paired comparisons.
    milliseconds
        For one image on one thread, see `latency.milliseconds`.
    ratio
        That over the time without a prompt at the smallest size.
    """

    image_size: int
    folded: int
    choice: str
    passes: int
    pooling: str
    val_accuracy: float
    accuracy: float | None
    low: float | None
    high: float | None
    correct: npt.NDArray[np.bool_]
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class _Measured:
    """One way at one size: what runs, and how right it is."""

    deployed: Deployed
    choice: str
    val_accuracy: float
    correct: npt.NDArray[np.bool_]


def measure_sizes(
    bank: PromptBank,
    backbones: Mapping[int, Backbone],
    load: Load,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
) -> tuple[Point, ...]:
    """Measure no prompt and what `fit` ships with up to one, two and three folded prompts.

    Accuracies are those of float32, as what `fit` ships has. Images of one size are in memory at a
    time.

    Parameters
    ----------
    backbones
        The same backbone by image size, that of the bank among them. They may compute in any way.
    load
        Called once for each size.

    Returns
    -------
    tuple of Point
        By size, then by `folded`. Shallow prompts are used one at a time.

    Raises
    ------
    UserError
        As `HGPrompt.fit`; or the task has other images or labels at another size.
    """
    home = bank.image_size
    if home not in backbones or any(b.sha256 != bank.backbone_sha256 for b in backbones.values()):
        raise ValueError("The 'backbones' must be those of the bank, its own image size included.")
    if progress:
        progress("image sizes", 0, len(backbones))
    contest = prepare(
        bank, backbones[home], load(backbones[home].preprocessing),
        budget=budget, seed=seed, cache=cache,
    )  # fmt: skip
    ways, shown = _ways(contest), _shown(contest.task)
    found = {home: _measure(contest.store, contest.task, ways, seed)}
    del contest  # its images and features, before larger ones are read
    for size in sorted(backbones.keys() - {home}):
        if progress:
            progress("image sizes", len(found), len(backbones))
        backbone = backbones[size].normalized(bank.normalization)
        found[size] = _elsewhere(backbone, load, ways, shown, home, seed, cache)
    if progress:
        progress("image sizes", len(found), len(backbones))
    return _points([way for size in sorted(found) for way in found[size]])


def _ways(contest: Contest) -> list[Candidate]:
    """No prompt, then what `fit` ships with up to one, two and three folded prompts."""
    most = 1 if contest.bank.mode == SHALLOW else MAX_FOLDED
    none = Candidate("none", None, contest.unmixed)
    return [none, *(decision(contest, folded).chosen for folded in range(1, most + 1))]


def _measure(
    store: FeatureStore, task: Task, ways: Sequence[Candidate], seed: int
) -> list[_Measured]:
    """How right each way is, under heads of this size, in float32."""
    judge = Judge(store, task, seed=seed).exact()
    measured = []
    for way in ways:
        correct = np.zeros(0, dtype=bool)
        if len(task.test):
            correct = judge.correct(way, judge.final_heads(way), task.test)
        deployed = Deployed(store.backbone, tuple(part.tokens for part in way.parts))
        held_out = judge.on_validation(way).val_accuracy
        measured.append(_Measured(deployed, way.method, held_out, correct))
    return measured


def _elsewhere(
    backbone: Backbone,
    load: Load,
    ways: Sequence[Candidate],
    shown: _Shown,
    home: int,
    seed: int,
    cache: bool,
) -> list[_Measured]:
    """Measure at another size than the bank's."""
    task = load(backbone.preprocessing)
    _check_same_images(task, shown, backbone.image_size, home)
    store = FeatureStore(backbone.in_precision("float32"), enabled=cache)
    store = store.with_pooling(choose_pooling(store, task, seed).name)
    return _measure(store, task, ways, seed)


def _points(measured: Sequence[_Measured]) -> tuple[Point, ...]:
    """Time all ways in turns; those that run the same have one time."""
    keys = [_key(each.deployed) for each in measured]
    deployed = {key: each.deployed for key, each in zip(keys, measured, strict=True)}
    times = dict(zip(deployed, milliseconds(list(deployed.values())), strict=True))
    reference = times[keys[0]]
    points: list[Point] = []
    for key, each in zip(keys, measured, strict=True):
        backbone = each.deployed.backbone
        same = points and points[-1].image_size == backbone.image_size
        points.append(
            Point(
                backbone.image_size,
                points[-1].folded + 1 if same else 0,
                each.choice,
                len(each.deployed.prompts),
                backbone.pooling,
                each.val_accuracy,
                *accuracy_of(each.correct),
                each.correct,
                times[key],
                times[key] / reference,
            )
        )
    return tuple(points)


def _key(deployed: Deployed) -> tuple[object, ...]:
    backbone = deployed.backbone
    return backbone.image_size, backbone.pooling, *map(digest, deployed.prompts)


_Part = tuple[tuple[str, ...], tuple[int, ...]]
_Shown = tuple[tuple[str, ...], dict[str, _Part]]
"""Classes, and names and labels of the images of each split."""


def _shown(task: Task) -> _Shown:
    parts = {"training": task.train, "validation": task.validation, "test": task.test}
    return task.classes, {
        key: (images.names, tuple(images.labels.tolist())) for key, images in parts.items()
    }


def _check_same_images(task: Task, shown: _Shown, size: int, home: int) -> None:
    """Refuse a task that has other images or labels than at the bank's size."""
    classes, parts = _shown(task)
    if (classes, parts) == shown:
        return
    what = "other classes" if classes != shown[0] else "other labels"
    for key, (names, _) in parts.items():
        before = shown[1][key][0]
        if names != before:
            some = sorted({*names} ^ {*before})
            what = f"other {key} images" + (f", such as {some[0]}" if some else "")
            break
    raise UserError(
        f"the task {task.name}, read at {size} px, has {what} than at {home} px; remove images "
        "that cannot be read at every size, and do not change the data meanwhile"
    )
