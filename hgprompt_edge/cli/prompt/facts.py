"""What is said of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hgprompt_edge.cli.shared.console import drawn

if TYPE_CHECKING:
    from hgprompt_edge.prompts.prompt import Prompt


def facts(prompt: Prompt) -> dict[str, Any]:
    """Make the JSON document of a prompt."""
    return {
        "name": prompt.name,
        "backbone": prompt.backbone,
        "backbone_sha256": prompt.backbone_sha256,
        "image_size": prompt.image_size,
        "role": prompt.role,
        "mode": prompt.mode,
        "shape": list(prompt.tokens.shape),
        "init_seed": prompt.init_seed,
        "normalization": prompt.normalization and prompt.normalization._asdict(),
        "task": prompt.task,
        "family": prompt.family,
        "classes": list(prompt.classes),
        "test_accuracy": prompt.test_accuracy,
        "test_accuracy_unprompted": prompt.test_accuracy_unprompted,
        "sha256": prompt.sha256,
        "recipe": prompt.recipe,
    }


def outline(prompt: Prompt) -> str:
    """Say in a line what backbone it is for, and its shape."""
    layers, tokens, width = prompt.tokens.shape
    pixels = f"; pixels: {prompt.normalization}" if prompt.normalization else ""
    return (
        f"backbone {prompt.backbone} ({prompt.backbone_sha256[:12]}), {prompt.image_size} px, "
        f"{prompt.mode}: {layers} layers x {tokens} tokens x {width}{pixels}"
    )


def gain(prompt: Prompt) -> str:
    """Give what it adds to the accuracy in points, with the standard error where it is known."""
    if prompt.test_accuracy is None or prompt.test_accuracy_unprompted is None:
        return ""
    points = f"{100 * (prompt.test_accuracy - prompt.test_accuracy_unprompted):+.1f}"
    error = prompt.recipe.get("test_standard_error")
    return f"{points} {drawn('±', '+/-')} {100 * error:.1f}" if error is not None else points


def percent(value: float | None) -> str:
    """Format a share in [0, 1]; nothing where it is not known."""
    return "" if value is None else f"{100 * value:.1f} %"
