"""Condition prompts: somewhere for a device to go when light, camera or place change (METHOD 7).

A condition prompt is trained without labels. Under it, a corrupted image shall have the features
and the predictions that its clean version has under the initial prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import TUNED, kept_sources
from hgprompt_edge.artifacts.bundle import Bundle, check_one_prompt
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.backbones.fitted import as_fitted
from hgprompt_edge.backbones.forward import extract_features
from hgprompt_edge.data import Images, Task
from hgprompt_edge.data.conditions import SEVERITIES, check_names, corrupt
from hgprompt_edge.errors import UserError
from hgprompt_edge.features.cached import FeatureStore
from hgprompt_edge.fit.checks import check_same_images
from hgprompt_edge.fit.judge import Judge
from hgprompt_edge.heads.heads import logits_of
from hgprompt_edge.maths.feature_statistics import measure_statistics
from hgprompt_edge.maths.head import Head
from hgprompt_edge.maths.paired import paired
from hgprompt_edge.prompts.prompt import DEEP, START
from hgprompt_edge.training.condition_trainer import ConditionRecipe, ConditionTrainer, seen_under
from hgprompt_edge.training.neutral_prompt import neutral_tokens

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Report = Callable[[str, int, int], None]
PLAIN_TOKENS = 10
"""Tokens a layer of condition prompts where there are no sources to be like."""
MAX_TEST = 500
"""Test images at most that a figure is over; each is seen six times for each condition."""


@dataclass(frozen=True)
class Measured:
    """Accuracy on corrupted images without and with a prompt, on the same images.

    Corrupted as the study does it; an image is the mean of the three severities, which training did
    not see.

    Attributes
    ----------
    images
        How many.
    corrupted, prompted
        Shares of them.
    low, high
        Bounds of the change, in points; each holds in 95 of 100 cases.
    needed
        About how many images would say whether the prompt helps; None: no number.
    """

    images: int
    corrupted: float
    prompted: float
    low: float
    high: float
    needed: int | None


@dataclass(frozen=True)
class Worth:
    """What a condition prompt is worth, and whether it is in the bundle.

    Attributes
    ----------
    clean, clean_prompted
        Accuracy on clean validation images, without the prompt and with it.
    validation
        Under a head that was fitted on the training images alone.
    test
        Under the bundle's head, on test images; None: there are none.
    kept
        Whether it is in the bundle: it helps, or nobody knows and that was accepted.
    """

    name: str
    clean: float
    clean_prompted: float
    validation: Measured
    test: Measured | None
    kept: bool

    @property
    def helps(self) -> bool | None:
        """Whether validation images say so; None: they are too few."""
        if self.validation.low > 0:
            return True
        return False if self.validation.high < 0 else None


def tune_conditions(
    bundle: Bundle,
    backbone: Backbone,
    task: Task,
    names: Sequence[str],
    recipe: ConditionRecipe | None = None,
    report: Report | None = None,
    *,
    accept_unproven: bool = False,
    state: Path | None = None,
) -> tuple[Bundle, tuple[Worth, ...]]:
    """Train a prompt for each condition and put those that help into the bundle.

    Which help, validation images say: the lower bound of what they gain is above zero. Prompts for
    other conditions that the bundle holds already stay.

    Parameters
    ----------
    recipe
        None: the default one.
    accept_unproven
        Keep prompts, too, of which the images are too few to say whether they help.
    state
        Folder that an interrupted training resumes from; removed at the end by the caller.

    Raises
    ------
    UserError
        An unknown condition, a bundle of another backbone or of other images, shallow prompts, or
        no sources to mix with.
    """
    check_one_prompt(bundle, "condition")
    recipe = recipe or ConditionRecipe(seed=bundle.seed)
    check_conditions(bundle, task, names)
    backbone = as_fitted(bundle, backbone)
    start = starting_tokens(bundle, backbone)
    exact = backbone.in_precision("float32")
    train = seen_under(exact, task.train.pixels, bundle.prompt)
    validation = seen_under(exact, task.validation.pixels, bundle.prompt)
    if state is not None:
        state.mkdir(exist_ok=True)
    judge = _Judge(bundle, exact, task, accept_unproven)
    prompts, worths = [], []
    for name in names:
        trainer = ConditionTrainer(
            backbone, recipe, name, start, bundle.head, train, validation, state and state / name
        )
        restored = trainer.run(partial(report, name) if report else None)
        tokens = restored.tokens.astype(np.float16)
        worths.append(judge(name, tokens.astype(np.float32)))
        if worths[-1].kept:
            prompts.append(tokens)
    joined = _joined(bundle, worths, prompts)
    if joined.clean is None:
        seen, images = train, task.train
        if bundle.choice == TUNED:  # that prompt was trained on the training images
            seen, images = validation, task.validation
        clean = measure_statistics(seen.features.numpy(), images.labels, len(task.classes))
        joined = replace(joined, clean=clean)
    return joined, tuple(worths)


def _joined(bundle: Bundle, worths: Sequence[Worth], prompts: Sequence[Halves]) -> Bundle:
    """Put prompts into the bundle, in the place of those of the same conditions."""
    worths = [worth for worth in worths if worth.kept]
    if not worths:
        return bundle
    new = [worth.name for worth in worths]
    old = () if bundle.condition_tokens is None else bundle.condition_tokens
    kept = [
        (about, tokens)
        for about, tokens in zip(bundle.conditions, old, strict=True)
        if about["name"] not in new
    ]
    abouts = [_about(worth) for worth in worths]
    conditions = (*(about for about, _ in kept), *abouts)
    return replace(
        bundle,
        conditions=conditions,
        condition_tokens=np.stack([*(tokens for _, tokens in kept), *prompts]),
        initial=_carried_over(bundle, [about["name"] for about in conditions]),
    )


def _about(worth: Worth) -> dict[str, str]:
    """Return what a bundle holds about a condition prompt."""
    found = worth.validation
    figures = {"clean": worth.clean, "corrupted": found.corrupted, "prompted": found.prompted}
    figures |= {"low": found.low, "high": found.high}
    return {"name": worth.name, **{key: str(value) for key, value in figures.items()}}


def _carried_over(bundle: Bundle, conditions: Sequence[str]) -> Floats | None:
    """Keep what devices were merged to, over the new bank: each share stays with its name."""
    if bundle.initial is None:
        return None
    before = len(bundle.initial) - len(bundle.conditions)
    names = (about["name"] for about in bundle.conditions)
    shares = dict(zip(names, bundle.initial[before:], strict=True))
    carried = [shares.get(name, 0.0) for name in conditions]
    return np.array([*bundle.initial[:before], *carried], np.float32)


def starting_tokens(bundle: Bundle, backbone: Backbone) -> Floats:
    """Folded prompt `[L, T, D]`; where none was chosen, one that changes nothing yet."""
    if bundle.prompt is not None:
        return bundle.prompt
    if not bundle.sources:
        return neutral_tokens(backbone, PLAIN_TOKENS, DEEP, 0).numpy()
    sources = kept_sources(bundle)
    for about, start in zip(bundle.sources, sources, strict=True):
        if about.get("role") == START:
            started: Floats = start.astype(np.float32)
            return started
    tokens: Floats = neutral_tokens(backbone, sources.shape[2], DEEP, 0).numpy()
    return tokens


class _Judge:
    """Measures condition prompts on images that neither they nor a head have seen."""

    def __init__(
        self, bundle: Bundle, backbone: Backbone, task: Task, accept_unproven: bool
    ) -> None:
        self.bundle, self.backbone = bundle, backbone
        self.accept_unproven = accept_unproven
        kind = bundle.objective.get("head", "lda")
        judge = Judge(FeatureStore(backbone), task, kind, bundle.seed)
        self.head = judge.training_head(bundle.prompt)
        self.final = bundle.head
        self.validation = task.validation
        rows = np.random.default_rng(bundle.seed).permutation(len(task.test))[:MAX_TEST]
        self.test = task.test.subset(np.sort(rows))
        pixels = task.validation.pixels
        self.clean = float(self._right(self.validation, pixels, bundle.prompt, self.head).mean())

    def __call__(self, name: str, prompt: Floats) -> Worth:
        images = self.validation
        after = float(self._right(images, images.pixels, prompt, self.head).mean())
        found = self._measure(images, name, prompt, self.head)
        test = self._measure(self.test, name, prompt, self.final) if len(self.test) else None
        worth = Worth(name, self.clean, after, found, test, kept=False)
        unknown = worth.helps is None and self.accept_unproven
        return replace(worth, kept=bool(worth.helps) or unknown)

    def _measure(self, images: Images, name: str, prompt: Floats, head: Head) -> Measured:
        fill = self.bundle.preprocessing.fill
        looks = [
            (
                self._right(images, pixels, self.bundle.prompt, head),
                self._right(images, pixels, prompt, head),
            )
            for pixels in (corrupt(images.pixels, name, each, fill=fill) for each in SEVERITIES)
        ]
        before, after = np.mean(looks, axis=0)
        found = paired(before, after)
        low, high = found.interval
        shares = float(before.mean()), float(after.mean())
        return Measured(len(images), *shares, low, high, found.needed(0))

    def _right(
        self, images: Images, pixels: Pixels, tokens: Floats | None, head: Head
    ) -> npt.NDArray[np.float64]:
        """Which images `[n]` are right, 0 or 1."""
        logits = logits_of(head, extract_features(self.backbone, pixels, tokens))
        right: npt.NDArray[np.bool_] = logits.argmax(1).numpy() == images.labels
        return right.astype(np.float64)


def check_conditions(bundle: Bundle, task: Task, names: Sequence[str]) -> None:
    """Refuse what condition prompts cannot be trained for, as `tune_conditions` does.

    Raises
    ------
    UserError
        As there, but for the backbone.
    """
    check_names(names)
    if bundle.mode != DEEP:
        raise UserError(
            f"the bundle of {bundle.task} holds shallow prompts; only deep prompts can be mixed on "
            "a device, so only they have condition prompts"
        )
    if bundle.sources:
        kept_sources(bundle)  # a device mixes condition prompts with them
    check_same_images(bundle, task)
