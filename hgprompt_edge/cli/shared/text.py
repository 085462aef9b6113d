"""Text of users and files on its way to a terminal: printed as it is, whatever it holds."""

from __future__ import annotations

import codecs
import json
import math
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgprompt_edge.maths.proportions import Proportion

AS_GIVEN = "hgedge.as_given"
"""Name of the error handler for characters that stdout or stderr cannot encode."""
DRAWN = dict(zip("▁▂▃▄▅▆▇█━", ".:-=+*%#=", strict=True))
"""What stands for the characters of our drawings where a terminal lacks them."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Escape control characters, with which a file's name could drive the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def as_json(document: object, *, indent: int | None = 2, escaped: bool = False) -> str:
    """Return one JSON document; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_known(document), indent=indent, ensure_ascii=escaped, allow_nan=False)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command_line(*words: str | Path) -> str:
    """Join the words of a command of ours, quoted for a shell."""
    return shlex.join(["hgedge", *map(_as_word, words)])


def _as_word(word: str | Path) -> str:
    """Keep a path that begins with a dash from being an option."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


def _as_given(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Encode one character: a byte of a name as that byte, a drawing in ASCII, else `\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]  # the codec asks again for the rest
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return DRAWN.get(character) or character.encode("ascii", "backslashreplace"), error.start + 1


codecs.register_error(AS_GIVEN, _as_given)


def as_interval(proportion: Proportion) -> dict[str, float]:
    """Return a proportion and its interval for a JSON document."""
    return {key: round(value, 6) for key, value in asdict(proportion).items()}
