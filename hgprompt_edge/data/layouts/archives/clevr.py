"""Labels of CLEVR's scenes as VTAB derives them: how many objects, how near the nearest is."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgprompt_edge.data.vtab import VTAB

FEWEST_OBJECTS = 3
"""A scene holds 3 to 10 objects; class 0 of clevr-count is the scenes with 3."""

DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
"""Where the classes of clevr-distance begin, in CLEVR's units."""


def count_label(objects: Sequence[Any]) -> int:
    """Class of a scene in clevr-count."""
    return len(objects) - FEWEST_OBJECTS


def distance_label(objects: Sequence[Any]) -> int:
    """Class of a scene in clevr-distance, by the nearest object.

    An object's distance from the camera is its third pixel coordinate. One on a border belongs to
    the class below the border.
    """
    return bisect_left(DISTANCES, min(thing["pixel_coords"][2] for thing in objects)) - 1


LABELS = {"clevr-count": count_label, "clevr-distance": distance_label}


def scene_labels(scenes: Path, name: str) -> dict[str, str]:
    """Read `CLEVR_*_scenes.json`: the class of each image file in the task `name`.

    Raises
    ------
    OSError, ValueError, LookupError
        No such file, not JSON, not CLEVR's, or a scene that is of no class.
    """
    classes, labels = VTAB[name].class_names, {}
    for scene in json.loads(scenes.read_bytes())["scenes"]:
        label = LABELS[name](scene["objects"])
        if not 0 <= label < len(classes):
            raise ValueError(f"{scene['image_filename']}: {len(scene['objects'])} objects")
        labels[scene["image_filename"]] = classes[label]
    return labels
