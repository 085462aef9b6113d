"""`hgedge device add | remove | list`: the tasks of a device folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from hgprompt_edge.cli.device.adapters import Folder, adapters, drop_adapters
from hgprompt_edge.cli.device.folder import (
    check_not_default,
    drop_unused_prompts,
    opened,
    read_task_of,
)
from hgprompt_edge.cli.device.listing import list_tasks
from hgprompt_edge.cli.shared import options
from hgprompt_edge.cli.shared.console import note, out, print_next, reports_errors
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.cli.shared.kept_state import state_kept
from hgprompt_edge.cli.shared.progress import working
from hgprompt_edge.errors import CheckError, UserError, os_reason, some

app = typer.Typer(
    help="Add, remove, list or convert the tasks of a device folder.", no_args_is_help=True
)

app.command()(adapters)
app.command("list")(list_tasks)


@app.command()
@reports_errors
def add(
    context: typer.Context,
    folder: Folder,
    task: Annotated[
        Path,
        typer.Argument(
            help="A task file, NAME.hgtask; or on the server a bundle, which becomes one.",
            show_default=False,
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(
            help="Public key (PEM) that the task file must be signed with.", show_default=False
        ),
    ] = None,
    data: options.Data = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="int8 folder: points of accuracy that may be lost.")
    ] = 1.0,
    accept_unproven: Annotated[
        bool,
        typer.Option(
            "--accept-unproven",
            help="int8 folder: add the task, too, where its images are too few to say.",
        ),
    ] = False,
    checkpoint: options.Checkpoint = None,
) -> None:
    """Add a task, or replace the one of its name; the backbone stays as it is."""
    from hgprompt_edge.artifacts.tasks.device_files import SUFFIX

    for name in ("data", "max_drop", "accept_unproven"):
        if options.is_given(context, name):
            _check_int8(folder, task, f"--{name.replace('_', '-')}")
    if task.suffix == SUFFIX:
        path, kept = _add_file(folder, task, key)
    elif key is not None:
        raise UserError(f"--key {key}: for task files; a bundle has no signature, leave it out")
    else:
        path, kept = _add_bundle(folder, task, checkpoint, data, max_drop, accept_unproven)
    size = path.stat().st_size / 1000
    out.print(f"{path}: {size:.0f} KB, checked on its own images", soft_wrap=True)
    if kept:
        note(kept)
    print_next("predict", "--model", folder, "--task", path.stem, "IMAGE...")


@app.command()
@reports_errors
def remove(
    folder: Folder,
    task: Annotated[str, typer.Argument(help="Name of the task.", show_default=False)],
) -> None:
    """Remove a task's file; the one that is folded into the default model stays."""
    from hgprompt_edge.artifacts.signature import signature_path
    from hgprompt_edge.artifacts.tasks.device_files import task_paths
    from hgprompt_edge.runtime.learned import state_path
    from hgprompt_edge.runtime.watching.monitor_file import FILE as MONITOR
    from hgprompt_edge.state.history import FILE
    from hgprompt_edge.state.lock import only_one

    facts, _ = opened(folder)
    paths = task_paths(folder)
    if task not in paths:
        raise UserError(f"{folder}: has no task {task} ({some(list(paths)) or 'none'}); name one")
    check_not_default(folder, task, facts)
    with only_one(folder, "device"):
        try:
            paths[task].unlink()
            signature_path(paths[task]).unlink(missing_ok=True)
        except OSError as error:
            reason = os_reason(error)
            raise UserError(
                f"{paths[task]}: cannot be removed ({reason}); check the folder"
            ) from error
        out.print(f"{paths[task]}: removed", soft_wrap=True)
        drop_unused_prompts(folder, facts)
        drop_adapters(folder, task)
    if (state := state_path(paths[task])).is_dir():
        seen = {FILE: "what was learned", MONITOR: "what a monitor has seen"}
        holds = " and ".join(what for name, what in seen.items() if (state / name).exists())
        note(f"{state}: kept, it holds {holds or 'nothing'} for {task}; delete it if not needed")


def _check_int8(folder: Path, task: Path, option: str) -> None:
    """Refuse what would be ignored: accuracy is measured of a bundle on an int8 backbone."""
    from hgprompt_edge.artifacts.tasks.device_files import SUFFIX

    if task.suffix == SUFFIX or opened(folder)[0].precision != "int8":
        raise UserError(f"{option}: for a bundle and an int8 folder; leave it out")


def _add_file(folder: Path, file: Path, key: Path | None) -> tuple[Path, str]:
    """Copy a task file into the folder, once it is signed, fits, and computes what it says."""
    from hgprompt_edge.artifacts.signature import check_signature, signature_path
    from hgprompt_edge.artifacts.tasks.bank_changes import prompts_for
    from hgprompt_edge.artifacts.tasks.device_files import BANK, adapts
    from hgprompt_edge.artifacts.tasks.folder_bank import add_prompts, read_folder_bank
    from hgprompt_edge.files import atomic_path
    from hgprompt_edge.runtime.device_folder import DeviceFolder
    from hgprompt_edge.state.lock import only_one

    if key is not None:
        check_signature(file, key)
    found = DeviceFolder(folder)
    task = read_task_of(file, folder, found.facts, found.width)
    prompts = prompts_for(folder, file, task)
    checked = found.check(task, prompts)
    if not checked.ok:
        raise CheckError(f"{file}: does not compute here what it did on the server ({checked})")
    place = folder / file.name
    if place.exists() and place.samefile(file):
        raise UserError(f"{file}: is in {folder} already; name a file from elsewhere")
    check_not_default(folder, file.stem, found.facts)
    kept = state_kept(place, task, adapts=task.bank is not None)
    with only_one(folder, "device"):
        if prompts is not None:  # before the task: prompts that no task uses yet harm none
            sha256 = found.facts.backbone_sha256
            own = read_folder_bank(folder / BANK, sha256) if adapts(folder) else None
            add_prompts(folder, own, prompts)
        with atomic_path(place) as temporary:
            shutil.copyfile(file, temporary)
        signature_path(place).unlink(missing_ok=True)  # of what had this name
        if signature_path(file).is_file():
            with atomic_path(signature_path(place)) as temporary:
                shutil.copyfile(signature_path(file), temporary)
        drop_unused_prompts(folder, found.facts)
        drop_adapters(folder, place.stem)
    return place, kept


def _add_bundle(
    folder: Path,
    path: Path,
    checkpoint: Path | None,
    data: Path | None,
    max_drop: float,
    accept_unproven: bool,
) -> tuple[Path, str]:
    """Make a task of a bundle, which needs PyTorch; for an int8 folder its images, too."""
    from hgprompt_edge.artifacts.bundle_file import read_bundle
    from hgprompt_edge.artifacts.signature import signature_path
    from hgprompt_edge.artifacts.tasks.device_files import SUFFIX, adapts
    from hgprompt_edge.cli.shared.server import require_server
    from hgprompt_edge.files import sha256_file
    from hgprompt_edge.state.lock import only_one

    require_server("device add")
    facts, _ = opened(folder)
    bundle, digest = read_bundle(path), sha256_file(path)
    check_not_default(folder, bundle.task, facts)
    place = folder / f"{bundle.task}{SUFFIX}"
    kept = state_kept(place, bundle, adapts=adapts(folder))
    images = find_images_of(bundle, None, data) if facts.precision == "int8" else None
    with working("loading the backbone"):
        from hgprompt_edge.backbones.fitted import backbone_of
        from hgprompt_edge.export.device_folder import add_task
        from hgprompt_edge.export.device_sources import Source

        source, backbone = Source(path, bundle, digest), backbone_of(bundle, checkpoint)
    with only_one(folder, "device"):
        if images is None:
            with working("exporting"):
                add_task(source, backbone, folder, facts)
        else:
            from hgprompt_edge.cli.export.report import print_trials
            from hgprompt_edge.cli.export.write import add_int8

            result = add_int8(
                source,
                images,
                backbone,
                folder,
                facts,
                max_drop=max_drop,
                accept_unproven=accept_unproven,
            )
            print_trials(result, max_drop)
        signature_path(place).unlink(missing_ok=True)  # of what had this name
        drop_unused_prompts(folder, facts)
        drop_adapters(folder, place.stem)
    return place, kept
