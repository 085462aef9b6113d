"""What `hgedge fit` does once its options are checked: load, mix, tune, train conditions, write."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge.cli.condition import condition_state, why_left_out
from hgprompt_edge.cli.shared.console import fastest, note
from hgprompt_edge.cli.shared.leaks import note_leaks, write_sheet
from hgprompt_edge.cli.shared.left_out import note_left_out, write_left_out
from hgprompt_edge.cli.shared.options import DeviceName, PrecisionName, ResizeOrAuto
from hgprompt_edge.cli.shared.progress import Report
from hgprompt_edge.cli.shared.resize import note_cut_away, resized
from hgprompt_edge.cli.shared.tuning import train_further, tuning_state

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import FoundTask, Task
    from hgprompt_edge.data.leaks import Leaks
    from hgprompt_edge.features.pooling import Pooling
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.fit.resize import ResizeChoice
    from hgprompt_edge.heads.best_head import HeadKind
    from hgprompt_edge.prompts.bank import PromptBank
    from hgprompt_edge.training.condition_prompts import Worth
    from hgprompt_edge.training.prompt_tuning import Recipe
    from hgprompt_edge.training.tune import Tuning


@dataclass(frozen=True)
class Plan:
    """What the options ask for; `HGPrompt` describes the first six."""

    lam: float
    steps: int
    folded: int
    head: HeadKind
    seed: int
    keep_sources: bool
    tune: bool
    conditions: tuple[str, ...]
    resize: ResizeOrAuto | None
    device: DeviceName
    precision: PrecisionName


@dataclass(frozen=True)
class Done:
    """What came of it.

    Attributes
    ----------
    path
        Where the bundle goes.
    mixer
        None where there are no prompts to mix.
    rules
        What `--resize auto` found.
    """

    bundle: Bundle
    images: Task
    path: Path
    mixer: HGPrompt | None
    pooling: Pooling
    tuning: Tuning | None
    worths: tuple[Worth, ...]
    rules: ResizeChoice | None
    leaks: Leaks | None

    def write(self) -> None:
        """Write the bundle and what belongs beside it; states of what is finished go."""
        from hgprompt_edge.artifacts.bundle_file import write_bundle

        for sentence in why_left_out(self.worths):
            note(f"left out: {sentence}")
        write_bundle(self.path, self.bundle)
        write_left_out(self.images, self.path)
        write_sheet(self.images, self.leaks, self.path)
        if self.tuning:
            tuning_state(self.path, self.bundle).unlink(missing_ok=True)
        if self.worths:
            shutil.rmtree(condition_state(self.path, self.images.name), ignore_errors=True)

    def draw(self) -> Path | None:
        """Draw the figure beside the bundle; without a mix there is none."""
        from hgprompt_edge.fit.figure import draw_fit

        if self.mixer is None:
            return None
        figure = self.path.with_suffix(".png")
        draw_fit(self.bundle, self.images, self.mixer.history_, figure)
        return figure


def carry_out(
    plan: Plan,
    found: FoundTask,
    bank: PromptBank | None,
    backbone: Backbone,
    path: Path,
    report: Report,
) -> tuple[Done, Backbone]:
    """Fit as planned; the backbone that comes back is the one that the images ran through."""
    from hgprompt_edge.training.condition_prompts import tune_conditions
    from hgprompt_edge.training.tune import tuning_recipe

    backbone, rules = resized(
        backbone, plan.resize, found, plan.device, plan.precision, plan.head, plan.seed, report
    )
    images = found.load(backbone.preprocessing, progress=partial(report, "reading images"))
    note_left_out(images.unreadable, images.left_out)
    if plan.resize is None:
        note_cut_away(images)
    leaks = note_leaks(images)
    recipe = tuning_recipe(images, plan.seed) if plan.tune else None
    backbone = _timed(plan, bank, backbone, images, recipe)
    bundle, pooling, mixer = _mixed(plan, bank, backbone, images, report)
    tuning: Tuning | None = None
    if recipe:
        tuning = _tuned(plan, bundle, backbone, images, recipe, path, report)
        bundle = tuning.bundle
    worths: tuple[Worth, ...] = ()
    if plan.conditions:
        state = condition_state(path, images.name)
        bundle, worths = tune_conditions(
            bundle, backbone, images, plan.conditions, report=report, state=state
        )
    return Done(bundle, images, path, mixer, pooling, tuning, worths, rules, leaks), backbone


def pooling_cost(bundle: Bundle, backbone: Backbone) -> float:
    """By what share the bundle's pooling lengthens a pass of the backbone."""
    from hgprompt_edge.compare.latency import extra_cost

    if bundle.pooling == backbone.pooling:
        return 0.0
    return extra_cost(backbone.with_pooling(bundle.pooling))


def _timed(
    plan: Plan, bank: PromptBank | None, backbone: Backbone, images: Task, recipe: Recipe | None
) -> Backbone:
    """Choose how images run, and say about how long all of it takes."""
    from hgprompt_edge.compare.estimate import fit_passes, tune_passes
    from hgprompt_edge.fit.checks import leave_out_family

    usable = bank and leave_out_family(bank, images)[0]
    passes = fit_passes(images, usable, plan.steps)
    if recipe is not None:
        passes += tune_passes(images, recipe.epochs, from_scratch=bank is None)
    return fastest(backbone, plan.device, plan.precision, passes)


def _mixed(
    plan: Plan, bank: PromptBank | None, backbone: Backbone, images: Task, report: Report
) -> tuple[Bundle, Pooling, HGPrompt | None]:
    """Mix the prompts, or fit the head alone where there are none."""
    from hgprompt_edge.fit.estimator import HGPrompt
    from hgprompt_edge.fit.plain import fit_head

    if bank is None:
        fitted, pooling = fit_head(
            backbone, images, head=plan.head, seed=plan.seed, progress=report
        )
        return fitted, pooling, None
    mixer = HGPrompt(
        lam=plan.lam,
        steps=plan.steps,
        folded=plan.folded,
        head=plan.head,
        seed=plan.seed,
        keep_sources=plan.keep_sources or plan.tune,  # tuning starts from their mix
    ).fit(bank, backbone, images, progress=report)
    return mixer.bundle_, mixer.pooling_, mixer


def _tuned(
    plan: Plan,
    bundle: Bundle,
    backbone: Backbone,
    images: Task,
    recipe: Recipe,
    path: Path,
    report: Report,
) -> Tuning:
    """Train the prompt itself; sources that only tuning needed go."""
    tuning = train_further(bundle, backbone, images, recipe, path, report, fresh=True)
    if plan.keep_sources:
        return tuning
    return replace(tuning, bundle=replace(tuning.bundle, source_tokens=None))
