"""What people call the parts of a data set: `train`, `training_set`, `Test images`, `holdout`."""

from __future__ import annotations

import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Which part a word stands for; `dev` and `eval` as the Hugging Face hub reads them."""

USUAL_NAMES = frozenset({"train", "val", "validation", "test"})
"""They have the part where other folders or files mean the same one."""

FILLERS = ("dataset", "data", "sets", "set", "images", "image", "imgs", "img", "split", "part")
"""What stands beside the word: train_set, "test images", valdata."""


def part_of(name: str) -> str | None:
    """Return the part that a folder's or split's name means, else None: `train2017` is `train`."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    if letters in SPLIT_NAMES:
        return SPLIT_NAMES[letters]
    for filler in FILLERS:
        for rest in (letters.removesuffix(filler), letters.removeprefix(filler)):
            if rest != letters and rest in SPLIT_NAMES:
                return SPLIT_NAMES[rest]
    return None
