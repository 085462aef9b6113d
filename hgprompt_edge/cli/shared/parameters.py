"""Parameters that messages of the library name, as the options of the command line."""

from __future__ import annotations

import ast
import re

from hgprompt_edge.errors import FileError, MismatchError

OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("accept_unproven", "adapt", "backbone", "batch_size", "bf16", "bundle"),
            *("checkpoint", "conditions", "data", "device", "download", "folded", "group_by_hash"),
            *("head", "image_size", "keep_sources", "key", "max_drop", "opset", "sources", "state"),
            *("task", "unlabelled"),
        )
    },
    "expected": "--expect-classes",
    "folder": "--output",
    "forward_only": "--method cma",
    "mapping": "--map",
    "part": "--split",
    "private_key": "--sign",
}
"""Names in Python to options; all that are not among them stay as they are."""

NAMED = re.compile(
    r"`([a-z]\w*)(?:=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s`'\"]+))?`", re.DOTALL
)
"""As `errors.argument` writes them: a name in backticks, perhaps with a string or a number."""
QUOTES = ("'", '"')


def as_options(message: object) -> str:
    """Write the parameters in a message as options: "`image_size=64`" becomes "--image-size 64".

    The path at the start of an error stays, whatever its name holds.
    """
    text = str(message)
    start = len(str(message.path)) if isinstance(message, FileError | MismatchError) else 0
    return text[:start] + NAMED.sub(_as_option, text[start:])


def _as_option(found: re.Match[str]) -> str:
    option, value = OPTIONS.get(found[1]), found[2]
    if option is None:
        return found[0]
    if value in (None, "True"):
        return option
    if value == "False":
        return f"--no-{option.removeprefix('--')}"
    given = ast.literal_eval(value) if value.startswith(QUOTES) else value
    return f"{option} {given or repr(given)}"
