"""The digest that a model file carries of itself: over graph, weights and metadata.

It is the sha256 of the file with `BLANK` in place of the digest, so that it can stand inside. It
shows damage and accidents. Whoever changes a file on purpose can write a new one: against that
there are signatures.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Mapping
from pathlib import Path

from hgprompt_edge.artifacts.metadata import PREFIX

FILE_SHA256 = f"{PREFIX}file_sha256"
BLANK = "sha256-of-this-file-with-this-text-in-place-of-its-own-digest---"
"""Of 64 characters, as a digest."""


def seal(path: Path) -> None:
    """Put the digest into a file whose metadata hold `BLANK` under `FILE_SHA256`.

    Raises
    ------
    ValueError
        They do not, or something else in the file is `BLANK`, too.
    """
    found = _digest(path, BLANK)
    if found is None:
        raise ValueError(f"{path} must hold '{BLANK}' once.")
    place, digest = found
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest.encode())


def is_whole(path: Path, entries: Mapping[str, str]) -> bool:
    """Whether a file is as it was sealed, by its digest in its own metadata."""
    recorded = entries.get(FILE_SHA256, "")
    if re.fullmatch(r"[0-9a-f]{64}", recorded) is None:
        return False
    found = _digest(path, recorded)
    return found is not None and found[1] == recorded


def _digest(path: Path, text: str) -> tuple[int, str] | None:
    """Place of `text` and the digest with `BLANK` there; None where it is not there just once."""
    wanted = text.encode()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(wanted)
        if place < 0 or data.find(wanted, place + 1) >= 0:
            return None
        digest = hashlib.sha256()
        with memoryview(data) as view:
            digest.update(view[:place])
            digest.update(BLANK.encode())
            digest.update(view[place + len(wanted) :])
    return place, digest.hexdigest()
