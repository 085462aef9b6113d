"""The whole of `hgedge adapt`: model, images and state in; the version in force out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from hgprompt_edge.adapt.gradient import AdaptGraph
from hgprompt_edge.adapt.guard.evidence import Expected, expect
from hgprompt_edge.adapt.head_learner import HeadLearner
from hgprompt_edge.adapt.images import Seen, read_labelled, read_unlabelled
from hgprompt_edge.adapt.learner import ForwardLearner, GradientLearner, Learner
from hgprompt_edge.adapt.loop import adapt_labelled, adapt_unlabelled
from hgprompt_edge.adapt.optimizer import Settings
from hgprompt_edge.adapt.proposal import Proposal, Weights
from hgprompt_edge.adapt.starts import Report
from hgprompt_edge.adapt.tasks_gradient import TasksAdaptGraph
from hgprompt_edge.artifacts.device_bank import TASK, Bank, adapt_path
from hgprompt_edge.errors import ParameterError
from hgprompt_edge.maths.feature_statistics import places_of
from hgprompt_edge.runtime.learned import head_of
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.state.history import RETURN, History, Version
from hgprompt_edge.state.version import Figures


@dataclass(frozen=True)
class Request:
    """What to adapt to, and how.

    Attributes
    ----------
    data
        Folder of images: one folder a class with labels, any folder without, or their paths.
    expected
        Names of the classes that the images may show; None: all.
    forward_only
        CMA-ES with the model alone in place of the gradient's graph.
    limit
        Images to use at most.
    micro_batch
        Images in memory at a time; None: by their size.
    """

    data: Path | tuple[Path, ...]
    unlabelled: bool = False
    expected: tuple[str, ...] | None = None
    forward_only: bool = False
    settings: Settings = field(default_factory=Settings)
    limit: int | None = None
    micro_batch: int | None = None
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Adapted:
    """What `adapt_model` came to: the versions in force before and after, and the proposal."""

    before: Version
    after: Version
    proposal: Proposal
    seen: Seen


def prepare(predictor: Predictor, request: Request) -> tuple[Seen, Expected, Learner]:
    """Read the images, check that the model can learn from them, and open its graph.

    Nothing is written.

    Raises
    ------
    UserError
        Bad images or labels, options that do not fit the model, or a missing graph.
    """
    bank = predictor.require_bank()
    _check_head(request, bank)
    classes = predictor.classes
    places = None if request.expected is None else places_of(request.expected, classes)
    expected = expect(bank.clean, len(classes), places)
    seen = _read(request, predictor)
    _check_labels(seen, expected, classes)
    learner = _learner(request, predictor, bank)
    learner.clean = expected.statistics
    return seen, expected, learner


def adapt_model(
    predictor: Predictor,
    history: History,
    request: Request,
    seen: Seen,
    expected: Expected,
    learner: Learner,
    report: Report | None = None,
) -> Adapted:
    """Learn from the version in force; commit what the guard takes over, else change nothing.

    The caller holds `history.exclusive()`. `seen`, `expected` and `learner` are those of `prepare`.

    Raises
    ------
    UserError
        The loss became NaN or infinite.
    CheckError
        The runtime's gradient is wrong.
    """
    bank = predictor.require_bank()
    before = history.current()
    current = weights_of(before, bank)
    if seen.labels is None:
        proposal = adapt_unlabelled(
            learner, seen.pixels, current, expected=expected, seed=request.seed, report=report
        )
    else:
        proposal = adapt_labelled(
            learner,
            seen.pixels,
            seen.labels,
            current,
            expected=expected,
            seed=request.seed,
            report=report,
        )
    after = before
    if proposal.verdict.taken:
        after = _commit(history, request, learner, proposal)
    return Adapted(before, after, proposal, seen)


def _check_head(request: Request, bank: Bank) -> None:
    """Refuse heads that nothing would move."""
    head = request.settings.head
    if bank.why_fixed and request.forward_only:
        raise ParameterError("forward_only", True, f"leave it out, since {bank.why_fixed}")
    if bank.why_fixed and head == "none":
        raise ParameterError("head", "none", f"use 'bias' or 'weights', since {bank.why_fixed}")
    if request.unlabelled and head == "weights":
        raise ParameterError("head", "weights", "needs labels; without them use `head='bias'`")
    if request.forward_only and head != "none" and not request.unlabelled:
        raise ParameterError("head", head, "needs the gradient; leave out `forward_only`")


def _check_labels(seen: Seen, expected: Expected, classes: Sequence[str]) -> None:
    """Refuse labelled images of a class that is said not to occur."""
    if seen.labels is None:
        return
    other = sorted(set(seen.labels.tolist()) - set(expected.places))
    if other:
        raise ParameterError(
            "expected",
            None,
            f"there are images of '{classes[other[0]]}', which is not named; name it or leave its "
            "folder out",
        )


def weights_of(version: Version, bank: Bank) -> Weights:
    """Mix and head of a version; the model's own head where it has none."""
    head = head_of(version, bank) or bank.head
    return Weights(version.weights.astype(np.float64), head)


def _read(request: Request, predictor: Predictor) -> Seen:
    rule, limit, seed = predictor.preprocessing, request.limit, request.seed
    if request.unlabelled:
        return read_unlabelled(request.data, rule, limit=limit, seed=seed)
    if not isinstance(request.data, Path):
        raise ValueError("Images with labels come in a folder.")
    return read_labelled(request.data, predictor.classes, rule, limit=limit, seed=seed)


def _learner(request: Request, predictor: Predictor, bank: Bank) -> Learner:
    if bank.mixer is None:
        return HeadLearner(predictor, bank, request.settings)
    if request.forward_only:
        return ForwardLearner(predictor, request.settings, request.seed)
    predictor.release()  # two graphs in memory are one too many for a small device
    path, how = adapt_path(predictor.path), (request.threads, request.micro_batch)
    graph: AdaptGraph
    if predictor.path.suffix == TASK:
        sha256 = predictor.metadata.backbone_sha256
        graph = TasksAdaptGraph(path, bank, sha256, threads=how[0], micro_batch=how[1])
    else:
        graph = AdaptGraph(path, bank, threads=how[0], micro_batch=how[1])
    return GradientLearner(graph, request.settings)


def _commit(history: History, request: Request, learner: Learner, proposal: Proposal) -> Version:
    method = "unlabelled" if request.unlabelled else "labelled"
    if learner.method != "gradient":
        method = f"{method}, {learner.method}"
    figures = {"steps": proposal.steps, "seconds": round(proposal.seconds, 2)}
    rounded = {name: round(value, 6) for name, value in proposal.verdict.figures.items()}
    head = proposal.weights.head
    moved = (
        not np.array_equal(head.weight, learner.head.weight),
        not np.array_equal(head.bias, learner.head.bias),
    )
    if np.array_equal(proposal.weights.mix, learner.initial) and not any(moved):
        method = RETURN
    return history.commit(
        proposal.weights.mix.astype(np.float32),
        method=method,
        images=proposal.images,
        figures=cast("Figures", figures | rounded),
        head_weight=head.weight if moved[0] else None,
        head_bias=head.bias if any(moved) else None,
    )
