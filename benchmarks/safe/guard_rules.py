"""The rules of the guard, applied to rows: as they are, and with bounds that were tried."""

from __future__ import annotations

import numpy as np

from hgprompt_edge.adapt.guard.evidence import least_shown
from hgprompt_edge.adapt.guard.labelled import MAX_RISE, MIN_ERRORS, SLACK, errors_asked
from hgprompt_edge.adapt.guard.unlabelled import MIN_AGREEMENT, MIN_CLASSES
from hgprompt_edge.adapt.guard.verdict import MIN_DISTANCE, MIN_FALL
from shared.device_study import CLASSES_OF
from shared.rows import Row

UNLABELLED = "mix_unlabelled"
"""Method of the study without labels."""
WORST = 0.5
"""Points that no case should lose."""
SHARE = "in proportion"
LITTLE = 0.1
"""Tried: a fall by this share is enough where so many times as many classes are predicted."""


def shows_few(task: str, classes: float) -> bool:
    """Whether the images of a task show too few classes, by the effective number predicted."""
    return classes < least_shown(CLASSES_OF[task])


def judged_now(row: Row) -> Row:
    """Row of the study as the guard of today takes it: nothing from images of too few classes."""
    classes = row["figures"].get("classes_before") if row["method"].startswith(UNLABELLED) else None
    if not row["taken"] or classes is None or not shows_few(row["task"], classes):
        return row
    return row | {"taken": False, "accuracy_after": row["accuracy_before"]}


def would_take(row: Row, errors: float, less: str) -> bool:
    """Whether the guard takes what a cell learned when it asks for so many standard errors."""
    gain = row["held_out_log_loss_before"] - row["held_out_log_loss_after"]
    before, after = (row[f"held_out_distance_{when}"] for when in ("before", "after"))
    share = errors_asked((before, after)) / MIN_ERRORS
    asked = errors * {"no": 1, "at once": bool(share), SHARE: share}[less]
    return bool(
        gain > asked * row["held_out_standard_error"]
        and row["held_out_accuracy_after"] >= row["held_out_accuracy_before"]
        and after <= MAX_RISE * before + SLACK
    )


def is_sound(
    row: Row,
    key: str,
    fall: float = MIN_FALL,
    classes: float = MIN_CLASSES,
    spread: float = np.inf,
    shown: bool = True,
) -> bool:
    """Whether the guard without labels takes the `mix`, the `start`, or either with its bias.

    Statistics that were off have come back by so much, or by little where predictions spread over
    so many times as many classes; predictions stay on so many of the classes, and are not surer and
    different. Images that show too few classes teach nothing where that is asked (`shown`).
    """
    if shown and shows_few(row["task"], row["mix_classes_before"]):
        return False
    mix = "start" if key.startswith("start") else "mix"
    before = row["distance_before"]
    if row[f"{mix}_classes_after"] >= spread * row[f"{mix}_classes_before"]:
        fall = min(fall, LITTLE)
    if before < MIN_DISTANCE or not row[f"distance_{mix}"] <= (1 - fall) * before:
        return False
    many = row[f"{key}_classes_after"] >= classes * row[f"{key}_classes_before"]
    surer = row[f"{key}_entropy_after"] < row[f"{key}_entropy_before"]
    return bool(many and not (surer and row[f"{key}_agreement"] < MIN_AGREEMENT))
