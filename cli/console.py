"""What all commands share: where they print, how they fail, how they show progress."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hgprompt_edge.errors import CheckError, UserError

if TYPE_CHECKING:
    from hgprompt_edge.cli.options import DeviceName, PrecisionName
    from hgprompt_edge.prompts import PromptBank
    from hgprompt_edge.vit.backbone import Backbone

P = ParamSpec("P")
R = TypeVar("R")
Report = Callable[[str, int, int], None]

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)

EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the expected errors of a command into one sentence and an exit code.

    Anything else is a bug: it keeps its traceback, under a line that says which version has it.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.showwarning = _print_warning
        try:
            return command(*args, **kwargs)
        except UserError as error:
            fail(str(error), EXIT_BAD_INPUT)
        except CheckError as error:
            fail(str(error), EXIT_CHECK_FAILED)
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from here", EXIT_INTERRUPTED)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # the reader (`| head`) has what it wanted; typer ends quietly
            raise
        except Exception:
            err.print(f"hgedge {version('hgprompt-edge')}: this is a bug, please report it:")
            raise

    return wrapper


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence on stderr and leave with `code`."""
    err.print(f"[bold red]hgedge:[/] {_plain(message)}", soft_wrap=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Print prose on stderr, so that stdout holds results alone."""
    err.print(_plain(message), soft_wrap=True)


def note_backbone(backbone: Backbone) -> None:
    """Say on stderr what was taken from a checkpoint of others, and what was assumed."""
    if backbone.facts:
        note(f"{backbone.checkpoint}: {'; '.join(backbone.facts)}")


def note_bank(bank: PromptBank) -> None:
    """Say what was done to the prompts of a bank to make them fit each other, or left alone."""
    for name in bank.matched:
        note(
            f"{name}: not known to share {bank.names[0]}'s init_seed; its tokens were matched to it"
        )
    note_ignored(bank)
    if bank.normalization is not None:
        note(f"pixels are normalised as for these prompts: {bank.normalization}")


def note_ignored(bank: PromptBank) -> None:
    """Name the starts in a bank's folder that are left alone."""
    for name in bank.ignored:
        note(f"{name}: not what {bank.names[0]} started from (init_seed); no mix takes it in")


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def fastest(backbone: Backbone, device: DeviceName, precision: PrecisionName) -> Backbone:
    """Let images run through the backbone in the fastest way that is allowed, and say which."""
    from hgprompt_edge.vit.fastest import choose_compute

    choice = choose_compute(backbone, device.value, precision.value)
    note(str(choice))
    return backbone.with_compute(choice.compute)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Bars with an ETA on a terminal, nothing elsewhere: yields `report(stage, done, total)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        known: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage, total=total)
            bars.update(known[stage], completed=done, total=total)

        yield report


def _plain(message: str) -> str:
    return message.replace("[", r"\[")


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    text = str(message)
    err.print(f"[yellow]warning:[/] {_plain(text)}", soft_wrap=True)
