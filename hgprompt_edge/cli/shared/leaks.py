"""What fit says of copies: notes, every pair in `--json`, and a sheet of pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from hgprompt_edge.cli.shared.console import note
from hgprompt_edge.files import write_bytes
from hgprompt_edge.images.near_pairs import NEAR_BITS

if TYPE_CHECKING:
    from hgprompt_edge.data import Task
    from hgprompt_edge.data.leaks import Copy, Leaks

SUFFIX = ".copies.png"
SAID_FROM = 0.1
"""From this part of the images on it is said that they have no near-copies."""
SHOWN = 3
"""So many copies of a kind are named on the terminal."""
TILE, GAP, CAPTION = 96, 4, 14
"""Sides of the contact sheet, in pixels."""
COLUMNS, MOST_PAIRS = 6, 60
NO_LIBRARY = (
    "near-copies (re-encoded, resized, mirrored) were not looked for; that needs ImageHash: "
    "install hgprompt-edge[leaks]"
)


def note_leaks(images: Task) -> Leaks | None:
    """Say on stderr how many images are copies of others, and name the first ones."""
    from hgprompt_edge.data.leaks import find_leaks

    leaks = find_leaks(images)
    if leaks is None:
        return None
    total = len(images.train) + len(images.validation) + len(images.test)
    if not leaks.near:
        note(f"{images.name}: {NO_LIBRARY}")
    elif leaks.lookless > SAID_FROM * total:
        note(
            f"{images.name}: {leaks.lookless:,} of the {total:,} images are too small or too plain "
            "to find near-copies; only exact copies of them were searched for, and none of "
            "pictures of one colour"
        )
    crossing = (
        (leaks.test, len(images.test), "test", "training or validation"),
        (leaks.validation, len(images.validation), "validation", "training"),
    )
    for copies, total, part, others in crossing:
        for some in _by_kind(copies):
            are = "is a" if len(some) == 1 else "are"
            note(
                f"{images.name}: {len(some):,} of the {total:,} {part} images {are} {_kind(some)} "
                f"of {others} images, so that the accuracy on them says little about new images: "
                f"{_named(some)}"
            )
    if (leaks.test or leaks.validation) and not images.grouped:
        note("`hgedge fit --group-by-hash` keeps copies on one side of the split")
    for some in _by_kind(leaks.classes):
        are = "is a" if len(some) == 1 else "are"
        advice = "give each picture one class" if some[0].same else "are they one picture?"
        note(
            f"{images.name}: {len(some):,} {_images(some)} {are} {_kind(some)} of images of "
            f"another class: {_named(some)}; {advice}"
        )
    return leaks


def leaks_document(leaks: Leaks | None) -> dict[str, Any]:
    """Return what a JSON document says of copies: all of them; None where none were looked for."""
    if leaks is None:
        return {"leaks": None}
    return {
        "leaks": {
            "near_copies": leaks.near,
            "images_that_show_too_little": leaks.lookless if leaks.near else None,
            "near_bits": NEAR_BITS,
            "test": [_row(copy) for copy in leaks.test],
            "validation": [_row(copy) for copy in leaks.validation],
            "classes": [_row(copy) for copy in leaks.classes],
        }
    }


def write_sheet(images: Task, leaks: Leaks | None, bundle: Path) -> None:
    """Write the copies beside a bundle as pictures, each with its counterpart at its right.

    The first 60, near-copies before equal ones: there is something to judge. Where there are no
    copies there is no sheet, and an old one goes.

    Raises
    ------
    UserError
        It cannot be written.
    """
    path = bundle.with_name(f"{bundle.stem}{SUFFIX}")
    found = dict.fromkeys((*leaks.test, *leaks.validation, *leaks.classes)) if leaks else {}
    if not found:
        path.unlink(missing_ok=True)
        return
    shown = sorted(found, key=lambda copy: (copy.same, -copy.bits))[:MOST_PAIRS]
    data = BytesIO()
    _sheet(images, shown).save(data, "PNG")
    write_bytes(path, data.getvalue())
    some = (
        f"{len(shown):,} of the {len(found):,} copies" if len(shown) < len(found) else "the copies"
    )
    note(f"{path}: {some}, each beside its original")


def _by_kind(copies: Sequence[Copy]) -> list[list[Copy]]:
    kinds = ([copy for copy in copies if copy.same is same] for same in (True, False))
    return [kind for kind in kinds if kind]


def _kind(copies: Sequence[Copy]) -> str:
    word = "copy" if len(copies) == 1 else "copies"
    return f"{word}, pixel for pixel," if copies[0].same else f"near-{word}"


def _images(copies: Sequence[Copy]) -> str:
    return "image" if len(copies) == 1 else "images"


def _named(copies: Sequence[Copy]) -> str:
    shown = "; ".join(f"{copy.name} of {copy.of}" for copy in copies[:SHOWN])
    more = len(copies) - SHOWN
    return f"{shown}; and {more:,} more, which --json names" if more > 0 else shown


def _row(copy: Copy) -> dict[str, Any]:
    row = asdict(copy)
    del row["place"], row["of_place"]
    return row


def _sheet(images: Task, copies: Sequence[Copy]) -> Image.Image:
    parts = (images.train, images.validation, images.test)
    pixels = np.concatenate([part.pixels for part in parts])
    wide, high = 2 * TILE + 3 * GAP, TILE + CAPTION + GAP
    columns = min(COLUMNS, len(copies))
    sheet = Image.new("RGB", (columns * wide, -(-len(copies) // columns) * high), "white")
    draw = ImageDraw.Draw(sheet)
    for number, copy in enumerate(copies):
        left, top = number % columns * wide + GAP, number // columns * high + GAP
        for shift, place in ((0, copy.place), (TILE + GAP, copy.of_place)):
            picture = Image.fromarray(pixels[place]).resize((TILE, TILE))
            sheet.paste(picture, (left + shift, top))
        kind = "same pixels" if copy.same else f"{copy.bits} bits"
        draw.text((left, top + TILE), f"{copy.part}, {copy.of_part}: {kind}", fill="black")
    return sheet
