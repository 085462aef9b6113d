"""What the commands on a device folder share: its facts, its tasks, what must not be changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge.cli.shared.console import note, out
from hgprompt_edge.errors import UserError

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.tasks.device_files import BackboneFacts
    from hgprompt_edge.artifacts.tasks.task_file import TaskFile


def drop_unused_prompts(folder: Path, facts: BackboneFacts) -> None:
    """Drop prompts that no task mixes any more, and say so."""
    from hgprompt_edge.artifacts.tasks.bank_changes import drop_unused
    from hgprompt_edge.artifacts.tasks.device_files import BANK

    unused, unreadable = drop_unused(folder, facts.backbone_sha256)
    prompts = "1 prompt" if unused == 1 else f"{unused} prompts"
    if unused and unreadable:
        note(
            f"{folder / BANK}: keeps {prompts} that perhaps no task mixes, since "
            f"{unreadable[0]} cannot be read"
        )
    elif unused:
        out.print(f"{folder / BANK}: {prompts} dropped that no task mixes", soft_wrap=True)


def check_not_default(folder: Path, task: str, facts: BackboneFacts) -> None:
    """Refuse to change the task that the default model has folded in: that would stay as it was."""
    default = default_of(folder)
    if task == facts.default and (folder / default).exists():
        raise UserError(
            f"{folder}: {task} is folded into {default}, which stays as it is; remove that file "
            "first, or export to another folder"
        )


def opened(folder: Path) -> tuple[BackboneFacts, int]:
    """Facts of a device folder, and the width of its features; loads the graph."""
    from hgprompt_edge.runtime.device_folder import DeviceFolder

    found = DeviceFolder(folder)
    return found.facts, found.width


def default_of(folder: Path) -> str:
    """Name of the model that has the first task folded in."""
    from hgprompt_edge.artifacts.tasks.device_files import ONNX, files_of

    return (files_of(folder) or ONNX).default


def read_task_of(path: Path, folder: Path, facts: BackboneFacts, width: int) -> TaskFile:
    """Read a task that fits the backbone of the folder, or refuse it."""
    from hgprompt_edge.runtime.device_folder import folder_graph, read_fitting

    return read_fitting(path, facts, folder_graph(folder), width)
