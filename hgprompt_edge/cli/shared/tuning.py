"""What `tune` and `fit --tune` share: training the prompt, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.shared.console import note
from hgprompt_edge.cli.shared.fit_table import unproven
from hgprompt_edge.cli.shared.progress import Report
from hgprompt_edge.cli.shared.text import command_line

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.data import Task
    from hgprompt_edge.training.prompt_tuning import Recipe
    from hgprompt_edge.training.tune import Tuning


def train_further(
    fitted: Bundle,
    backbone: Backbone,
    images: Task,
    recipe: Recipe,
    path: Path,
    report: Report,
    *,
    fresh: bool = False,
) -> Tuning:
    """Train the prompt of a bundle that goes to `path`, from its state file where there is one.

    `fresh`: as of `tune`. Says on stderr what did not outlive the prompt before.
    """
    from hgprompt_edge.artifacts.bank_entries import TUNED
    from hgprompt_edge.training.tune import tune

    state = tuning_state(path, fitted)
    tuning = tune(
        fitted,
        backbone,
        images,
        recipe,
        fresh=fresh,
        state=state,
        report=lambda done, total: report("epochs", done, total),
        resumed=lambda: note(f"resuming from {state}"),
    )
    if fitted.choice == TUNED and not tuning.kept:
        note(f"the prompt is as before: {unproven(tuning.proof.images, 'the one trained further')}")
    _note_dropped(fitted, tuning.bundle, path)
    return tuning


def tuning_state(path: Path, bundle: Bundle) -> Path:
    """File beside the bundle where an interrupted training goes on from."""
    return path.parent / f".{bundle.task}.tuning"


def tuning_document(tuning: Tuning) -> dict[str, Any]:
    """Epochs, and the proof by which the prompt was kept or not, for `--json`."""
    return {"epochs": tuning.trained.epoch, **vars(tuning.proof), "kept": tuning.kept}


def _note_dropped(fitted: Bundle, tuned: Bundle, path: Path) -> None:
    """Say what of the bundle did not outlive its prompt."""
    conditions = "the condition prompts" if fitted.conditions and not tuned.conditions else ""
    merged = fitted.initial is not None and tuned.initial is None
    gone = " and ".join(filter(None, (conditions, "what devices learned" if merged else "")))
    if gone:
        again = f"; run `{command_line('condition', path)}` again" if conditions else ""
        note(f"left out, as of the prompt before: {gone}{again}")
