"""What the scripts of both banks share: train a prompt where it is missing, and describe it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hgprompt_edge import Prompt, train_source, write_prompt
from hgprompt_edge.backbones.backbone import Backbone
from hgprompt_edge.data import Images, Task
from hgprompt_edge.prompts.bank import write_start
from hgprompt_edge.training.prompt_tuning import Recipe


def is_there(name: str, out: Path) -> bool:
    """Whether the prompt has been trained, and say so."""
    path = out / f"{name}.safetensors"
    if path.exists():
        print(f"{path}: is there", flush=True)
    return path.exists()


def train_into(
    out: Path,
    task: Task,
    recipe: Recipe,
    backbone: Backbone,
    more: Images | None,
    about: dict[str, Any],
) -> Prompt:
    """Train a prompt from where it stopped, and put it with its start into the folder.

    `about` joins its recipe.
    """
    state = out / f".{task.name}.training"
    prompt, trained = train_source(
        backbone,
        task,
        recipe,
        more=more,
        state=state,
        report=lambda done, total: print(f"{task.name}: {done}/{total}", flush=True),
    )
    prompt = replace(prompt, recipe={**prompt.recipe, **about})
    write_prompt(out / f"{task.name}.safetensors", prompt)
    write_start(out, prompt, trained.start)
    state.unlink(missing_ok=True)
    return prompt


def measured(prompt: Prompt) -> tuple[object, ...]:
    """Cells of a prompt's row: what it is, and its accuracy without and with the prompt."""
    accuracies = prompt.test_accuracy_unprompted, prompt.test_accuracy
    return (
        prompt.name,
        prompt.family,
        len(prompt.classes),
        prompt.recipe["test_images"],
        *(f"{100 * (accuracy or 0.0):.1f} %" for accuracy in accuracies),
    )


def gain(prompt: Prompt) -> float:
    """Points on the source's own test part."""
    return 100 * ((prompt.test_accuracy or 0.0) - (prompt.test_accuracy_unprompted or 0.0))
