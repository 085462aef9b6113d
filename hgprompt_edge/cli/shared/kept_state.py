"""What becomes of what was learned, where a new model or task takes the name of an old one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hgprompt_edge.cli.shared.text import command_line
from hgprompt_edge.errors import FileError, MismatchError

if TYPE_CHECKING:
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.artifacts.metadata import Metadata
    from hgprompt_edge.artifacts.tasks.task_file import TaskFile


def state_kept(path: Path, new: Bundle | TaskFile, *, adapts: bool) -> str:
    """Say what becomes of what was learned in `NAME.state`; call it before anything is written.

    Parameters
    ----------
    path
        The model or the task's file that is to be written.
    new
        What it is made from.
    adapts
        Whether its weights can change.

    Returns
    -------
    A sentence to print once it is written; empty: nothing was learned, or it was undone.

    Raises
    ------
    UserError
        It was learned for another one, and no command could open the new one; or it is damaged.
    """
    from hgprompt_edge.artifacts.bank_entries import bank_sha256, initial_mix
    from hgprompt_edge.artifacts.bundle import Bundle
    from hgprompt_edge.runtime.learned import state_path
    from hgprompt_edge.state.history import FILE, History

    state = state_path(path)
    if not (state / FILE).exists():
        return ""
    if not adapts:
        return f"{state}: kept, but not used: {path} has its weights folded in"
    facts: Bundle | Metadata
    if isinstance(new, Bundle):
        facts, bank, initial = new, bank_sha256(new), initial_mix(new)
    else:
        assert new.bank is not None
        facts, bank, initial = new.metadata, new.bank.sha256, new.bank.initial
    try:
        history = History(
            state,
            bank,
            initial,
            read_only=True,
            classes=facts.classes,
            resize=facts.preprocessing.crop_mode,
            task=facts.task,
            backbone=facts.backbone_sha256,
        )
    except MismatchError as error:
        raise FileError(
            state,
            f"does not fit the new {path.name}: {error.difference}; move or remove it first",
        ) from error
    with history:
        if not history.learned():
            return ""
        version = history.current().id
    back = command_line("state", "reset", "--model", path)
    return (
        f"{state}: version {version} stays in force and not the mix of the new {path.name}; "
        f"`{back}` takes that"
    )
