"""What all commands share: where they print and how they fail."""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hgprompt_edge.cli.shared.parameters import as_options
from hgprompt_edge.cli.shared.stopped import term_as_ctrl_c
from hgprompt_edge.cli.shared.text import AS_GIVEN, as_json, command_line, visible
from hgprompt_edge.errors import CheckError, UserError, is_out_of_memory

if TYPE_CHECKING:
    from hgprompt_edge.backbones.backbone import Backbone
    from hgprompt_edge.backbones.fastest import Choice, Passes
    from hgprompt_edge.cli.shared.options import DeviceName, PrecisionName
    from hgprompt_edge.prompts.bank import PromptBank


P = ParamSpec("P")
R = TypeVar("R")

WIDE = 10_000
"""Columns of output that goes to a file: nothing is folded there."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class PlainConsole(Console):
    """Prints text as it is: nothing in it is markup, an emoji or an order to the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Every string that is printed comes by here, the cells of tables included."""
        return super().render_str(visible(text), **how)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print; what is too wide for a column of a table is folded, and prose is left to wrap."""
        how.setdefault("soft_wrap", all(isinstance(each, str | Text) for each in objects))
        for table in objects:
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = "ellipsis" if column.no_wrap else "fold"
        super().print(*objects, **how)


err = PlainConsole(stderr=True)
out = PlainConsole()

RESUMES = "resumes"
EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_ALARM, EXIT_INTERRUPTED = 1, 2, 3, 130


def prepare_output() -> None:
    r"""Let stdout and stderr take any text, whatever they are encoded in; call once, at the start.

    Bytes of a file's name that are not UTF-8 come out as the bytes that they are; characters that
    the encoding lacks as `\\u4e2d`, those of our drawings in ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=AS_GIVEN)
    if not out.is_terminal:
        out.width = WIDE


def drawn(character: str, plain: str) -> str:
    """Return a character of ours where stdout can encode it, else `plain`."""
    try:
        character.encode(out.encoding)
    except UnicodeEncodeError:
        return plain
    return character


def resumes(command: Callable[P, R]) -> Callable[P, R]:
    """Mark a command that goes on, after an interruption, from what it has computed."""
    setattr(command, RESUMES, True)
    return command


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the expected errors of a command into one sentence and an exit code.

    Anything else is a bug: it keeps its traceback, under a line that says which version has it.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.showwarning = _print_warning
        try:
            try:
                with term_as_ctrl_c():
                    return command(*args, **kwargs)
            finally:
                sys.stdout.flush()  # here, so that a full device is told as any other error
        except UserError as error:
            fail(as_options(error), EXIT_BAD_INPUT)
        except CheckError as error:
            fail(as_options(error), EXIT_CHECK_FAILED)
        except KeyboardInterrupt:
            resumes = getattr(command, RESUMES, False)
            further = "; the same command goes on from here" if resumes else ""
            fail(f"interrupted{further}", EXIT_INTERRUPTED)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # the reader (`| head`) has what it wanted; typer ends quietly
            raise
        except Exception as error:
            if is_out_of_memory(error):
                fail(
                    "not enough memory; give fewer images at a time, smaller ones, or a smaller "
                    "model",
                    EXIT_BAD_INPUT,
                )
            # Of a stream: an error of a file names it.
            if isinstance(error, OSError) and not error.filename and error.errno in NO_SPACE:
                _drop_output()
                reason = os.strerror(error.errno).lower()
                fail(f"standard output: cannot be written ({reason})", EXIT_BAD_INPUT)
            err.print(f"hgedge {version('hgprompt-edge')}: this is a bug, please report it:")
            raise

    return wrapper


def _drop_output() -> None:
    """Send what is still to be printed nowhere; Python would fail on it again as it ends."""
    with suppress(OSError, ValueError):  # a stream in memory has no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence on stderr and leave with `code`."""
    err.print(Text.assemble(("hgedge: ", "bold red"), visible(message)), soft_wrap=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Print prose on stderr, so that stdout holds results alone."""
    err.print(message, soft_wrap=True)


def note_backbone(backbone: Backbone) -> None:
    """Say on stderr what was taken from a checkpoint of others, and what was assumed."""
    if backbone.facts:
        note(f"{backbone.checkpoint}: {as_options('; '.join(backbone.facts))}")


def note_bank(bank: PromptBank) -> None:
    """Say what was done to the prompts of a bank to make them fit each other, or left alone."""
    for name in bank.matched:
        note(
            f"{name}: its init_seed is unknown or differs from that of {bank.names[0]}; its tokens "
            f"were matched to those of {bank.names[0]}"
        )
    note_ignored(bank)
    if bank.normalization is not None:
        note(f"pixels are normalised as for these prompts: {bank.normalization}")


def note_ignored(bank: PromptBank) -> None:
    """Name the starts in a bank's folder that are left alone."""
    for name in bank.ignored:
        note(f"{name}: not the start of {bank.names[0]} (another init_seed); left out of every mix")


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, with escapes where stdout cannot encode a character."""
    text = as_json(document, indent=indent)
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        text = as_json(document, indent=indent, escaped=True)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # for whoever reads a watched folder


def print_next(*words: str | Path) -> None:
    """Print the command to run next; each word is quoted, so that it can be pasted."""
    out.print(f"next: {command_line(*words)}", soft_wrap=True)


def fastest(
    backbone: Backbone, device: DeviceName, precision: PrecisionName, passes: Passes | None = None
) -> Backbone:
    """Let images run through the backbone in the fastest way that is allowed, and say which.

    With the image passes that the command needs, say about how long it takes.
    """
    from hgprompt_edge.backbones.fastest import choose_compute

    choice = choose_compute(backbone, device.value, precision.value)
    note_choice(choice, passes)
    return backbone.with_compute(choice.compute)


def note_choice(choice: Choice, passes: Passes | None) -> None:
    """Say how images run and, with the passes that are needed, about how long it takes."""
    takes = f"; {duration(choice.seconds(passes))}" if passes else ""
    note(f"{choice}{takes}")


def duration(seconds: float) -> str:
    """Say about how long something takes, where nothing of it is in the cache."""
    if seconds < 60:
        return "this takes less than a minute"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    time = f"{hours} h {rest} min" if hours else f"{minutes} min"
    return f"this takes about {time}, less what an earlier run has computed"


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(Text.assemble(("warning: ", "yellow"), visible(as_options(message))), soft_wrap=True)
