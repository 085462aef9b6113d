"""Options and commands that cannot be read end in one sentence, as any other bad input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from hgprompt_edge.cli.shared.console import EXIT_BAD_INPUT, fail

UsageError: Any = typer.BadParameter.__bases__[0]
"""Of click, or of the copy of it that newer versions of typer carry."""


class Commands(TyperGroup):
    """The commands of `hgedge`."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options before the command."""
        with _one_sentence():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Find the command, read its options and run it."""
        with _one_sentence():
            return super().invoke(ctx)


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        if not message or type(error).__name__ == "NoArgsIsHelpError":
            raise  # no words at all: the help is shown
        if error.ctx and not message.endswith("?"):  # there is no guess of what was meant
            message += f"; see {error.ctx.command_path} --help"
        fail(message[0].lower() + message[1:], EXIT_BAD_INPUT)
