"""Change the bank of a device folder with its tasks: bring what is missing, drop what is unused."""

from __future__ import annotations

from pathlib import Path

from hgprompt_edge.artifacts.tasks.device_files import BANK, adapts, task_paths
from hgprompt_edge.artifacts.tasks.folder_bank import (
    FolderBank,
    read_folder_bank,
    write_folder_bank,
)
from hgprompt_edge.artifacts.tasks.task_file import TaskFile, read_task
from hgprompt_edge.errors import FileError


def prompts_for(folder: Path, file: Path, task: TaskFile) -> FolderBank | None:
    """Return the prompts that a task mixes, of the folder it is to join or of its own.

    None where it mixes none.

    Raises
    ------
    UserError
        Neither has all of them, or a bank is damaged or of another backbone.
    """
    if task.bank is None or not task.bank.digests:
        return None
    wanted, backbone = set(task.bank.digests), task.metadata.backbone_sha256
    for place in (folder, file.parent):
        if adapts(place):
            found = read_folder_bank(place / BANK, backbone)
            if wanted <= found.prompts.keys():
                return found.only(wanted)
    raise FileError(
        file,
        f"mixes prompts that {folder / BANK} does not have; put the {BANK} of its folder beside "
        "it, or add its bundle on the server",
    )


def drop_unused(folder: Path, backbone_sha256: str) -> tuple[int, list[Path]]:
    """Drop the prompts that no task of a folder mixes.

    Returns
    -------
    How many these were, and the tasks that cannot be read: where there are any, all prompts stay.
    """
    if not adapts(folder):
        return 0, []
    used: set[str] = set()
    unreadable = []
    for path in task_paths(folder).values():
        try:
            task = read_task(path)
        except FileError:
            unreadable.append(path)
            continue
        used |= set(task.bank.digests if task.bank is not None else ())
    bank = read_folder_bank(folder / BANK, backbone_sha256)
    unused = bank.prompts.keys() - used
    if unused and not unreadable:
        write_folder_bank(folder / BANK, bank.only(used))
    return len(unused), unreadable
