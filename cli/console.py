"""What all commands share: where they print, how they fail, how they show progress."""

from __future__ import annotations

import codecs
import functools
import io
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hgprompt_edge.errors import CheckError, UserError

if TYPE_CHECKING:
    from hgprompt_edge.cli.options import DeviceName, PrecisionName
    from hgprompt_edge.prompts import PromptBank
    from hgprompt_edge.vit.backbone import Backbone

P = ParamSpec("P")
R = TypeVar("R")
Report = Callable[[str, int, int], None]

AS_GIVEN = "hgedge.as_given"
"""Name of the error handler for characters that stdout or stderr cannot encode."""
WIDE = 10_000
"""Columns of output that goes to a file: nothing is folded there."""
DRAWN = dict(zip("▁▂▃▄▅▆▇█━", ".:-=+*%#=", strict=True))
"""What stands for the characters of our drawings where a terminal lacks them."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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

EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def prepare_output() -> None:
    r"""Let stdout and stderr take any text, whatever they are encoded in; call once, at the start.

    Bytes of a file's name that are not UTF-8 come out as the bytes that they are; characters that
    the encoding lacks as `\\u4e2d`, those of our drawings in ASCII.
    """
    codecs.register_error(AS_GIVEN, _as_given)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=AS_GIVEN)
    if not out.is_terminal:
        out.width = WIDE


def visible(text: str) -> str:
    """Escape control characters, with which a file's name could drive the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def drawn(character: str, plain: str) -> str:
    """Return a character of ours where stdout can encode it, else `plain`."""
    try:
        character.encode(out.encoding)
    except UnicodeEncodeError:
        return plain
    return character


def _as_given(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all(0xDC80 <= ord(character) <= 0xDCFF for character in text):
        return bytes(ord(character) - 0xDC00 for character in text), error.end
    first = text[0]  # the codec asks again for the rest
    if 0xDC80 <= ord(first) <= 0xDCFF:
        return bytes([ord(first) - 0xDC00]), error.start + 1
    return DRAWN.get(first) or first.encode("ascii", "backslashreplace"), error.start + 1


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
    err.print(Text.assemble(("hgedge: ", "bold red"), visible(message)), soft_wrap=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Print prose on stderr, so that stdout holds results alone."""
    err.print(message, soft_wrap=True)


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


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, with escapes where stdout cannot encode a character."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        text = json.dumps(document, indent=indent)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # for whoever reads a watched folder


def print_next(*words: str | Path) -> None:
    """Print the command to run next; each word is quoted, so that it can be pasted."""
    out.print(f"next: {command_line(*words)}", soft_wrap=True)


def command_line(*words: str | Path) -> str:
    """Join the words of a command of ours, quoted for a shell."""
    return shlex.join(["hgedge", *map(_as_word, words)])


def _as_word(word: str | Path) -> str:
    """Keep a path that begins with a dash from being an option."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


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
        TextColumn("{task.description}", markup=False),
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


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(Text.assemble(("warning: ", "yellow"), visible(str(message))), soft_wrap=True)
