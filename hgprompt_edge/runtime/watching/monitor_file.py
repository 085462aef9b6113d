"""What a monitor has seen, as a small JSON file: beside the mixing weights, checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.errors import FileError, brief, os_reason
from hgprompt_edge.files import DAMAGE, write_bytes
from hgprompt_edge.maths.drift.direction import Direction
from hgprompt_edge.maths.drift.martingale import ALL, Capital
from hgprompt_edge.maths.reference import Reference
from hgprompt_edge.runtime.watching.monitor import DIRECTION, DISTANCE, Monitor, Shift, digest_of

FILE = "monitor.json"
FAMILY, VERSION = "hgprompt.monitor/", "1"
MOST_BYTES = 64 << 20
"""Those of a task of ten thousand classes; a larger file is none of ours."""
COUNTS = ("images", "skipped", "unusable")
AGAIN = "remove it to start anew"

Array = npt.NDArray[Any]


def state_of(monitor: Monitor) -> dict[str, Any]:
    """Everything that a monitor remembers, as a JSON document; floats are exact."""
    last = monitor.thinner.last
    return {
        "format": f"{FAMILY}{VERSION}",
        "reference": monitor.digest,
        **{name: getattr(monitor, name) for name in COUNTS},
        "shift": None if monitor.shift is None else asdict(monitor.shift),
        "changed": monitor.changed.tolist(),
        "last": None if last is None else last.tolist(),
        "urns": monitor.urns.flat().tolist(),
        "distance": _capital(monitor.distance),
        "mix": monitor.mix.counts.tolist(),
        "classes": _capital(monitor.classes),
        "steps": [_step(step) for step in monitor.steps],
        "served": {name: list(stamp) for name, stamp in monitor.served.items()},
    }


def from_state(reference: Reference, document: Mapping[str, Any]) -> Monitor:
    """Make the monitor whose state this is.

    Raises
    ------
    ValueError, LookupError, TypeError
        It is damaged, or another reference's.
    """
    monitor = Monitor(reference)
    if document["reference"] != monitor.digest:
        raise ValueError("it is of another model")
    for name in COUNTS:
        setattr(monitor, name, _count(document[name]))
    if monitor.skipped + monitor.unusable > monitor.images:
        raise ValueError("more images were left aside than there were")
    monitor.changed = _like(document["changed"], monitor.changed)
    if document["last"] is not None:
        monitor.thinner.last = _like(document["last"], reference.centre)
    monitor.urns.restore(_like(document["urns"], monitor.urns.flat()))
    counts = _like(document["mix"], monitor.mix.counts)
    if (counts < monitor.mix.first).any():
        raise ValueError("counts are below those of the held-out images")
    monitor.mix.counts = counts
    _fill(monitor.distance, document["distance"])
    _fill(monitor.classes, document["classes"])
    for step, found in zip(monitor.steps, document["steps"], strict=True):
        _fill_step(step, found)
    monitor.shift = _shift(document["shift"], monitor.images)
    monitor.served = _served(document.get("served", {}))  # not there before a folder was watched
    return monitor


def write_monitor(path: Path, monitor: Monitor) -> None:
    """Write the state, whole or not at all; makes the folder, but not those above it.

    Raises
    ------
    UserError
        It cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        reason = os_reason(error)
        raise FileError(
            path.parent,
            f"cannot be made ({reason}); name another folder with `state`",
        ) from error
    write_bytes(path, (json.dumps(state_of(monitor)) + "\n").encode())


def read_monitor(path: Path, reference: Reference) -> Monitor:
    """Read and check a state; where there is none, the monitor has seen nothing.

    Raises
    ------
    UserError
        It cannot be read, is damaged, another model's, or of a newer format.
    """
    if not path.exists():
        return Monitor(reference)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        document = json.loads(path.read_bytes())
        form = str(document["format"])
        if not form.startswith(FAMILY):
            raise ValueError(f"its format is '{brief(form)}'")
        if form != f"{FAMILY}{VERSION}":
            raise FileError(
                path,
                f"written by another version of hgedge (format '{brief(form)}', not "
                f"'{FAMILY}{VERSION}'); upgrade hgprompt-edge, or {AGAIN}",
            )
        if document["reference"] != digest_of(reference):
            raise FileError(
                path,
                f"is about another model, or about an earlier fit of this one; name the "
                f"folder of this model with `state`, or {AGAIN}",
            )
        return from_state(reference, document)
    except OSError as error:
        reason = os_reason(error)
        raise FileError(path, f"cannot be read ({reason}); check the path") from error
    except DAMAGE as error:
        raise FileError(path, f"damaged ({brief(error)}); {AGAIN}") from error


def _capital(capital: Capital) -> dict[str, Any]:
    arrays = {name: getattr(capital, name).tolist() for name in Capital.ARRAYS}
    return {"images": capital.images, **arrays}


def _fill(capital: Capital, found: Mapping[str, Any]) -> None:
    capital.images = _count(found["images"])
    for name in Capital.ARRAYS:
        setattr(capital, name, _like(found[name], getattr(capital, name)))


def _step(step: Direction) -> dict[str, Any]:
    return {
        "round": step.round,
        "begin": step.begin,
        "next_begin": step.next_begin,
        "along": step.along.tolist(),
        "total": step.total.tolist(),
        "summed": step.summed,
        "capital": _capital(step.capital),
        "urns": step.urns.flat().tolist(),
    }


def _fill_step(step: Direction, found: Mapping[str, Any]) -> None:
    for name in ("round", "begin", "next_begin", "summed"):
        setattr(step, name, _count(found[name]))
    if step.summed >= step.length:
        raise ValueError("a round holds too many images")
    step.total = _like(found["total"], step.total)
    along = _like(found["along"], step.along)
    step.restore(along, _integers(found["urns"]))
    _fill(step.capital, found["capital"])


def _shift(found: Mapping[str, Any] | None, images: int) -> Shift | None:
    if found is None:
        return None
    words, rank = {name: str(found[name]) for name in ("test", "change")}, float(found["rank"])
    if not 0 <= rank <= 1:
        raise ValueError("a rank is not between 0 and 1")
    if words["test"] not in (DISTANCE, DIRECTION):
        raise ValueError(f"there is no test '{brief(words['test'])}'")
    if words["change"] not in {bet.kind for bet in ALL}:
        raise ValueError(f"there is no change '{brief(words['change'])}'")
    at, since = _count(found["at"]), _count(found["since"])
    if not since <= at <= images:
        raise ValueError("a shift is of images that were not seen")
    return Shift(at=at, since=since, rank=rank, **words)


def _served(found: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    if not isinstance(found, dict):
        raise ValueError("the files that were served are no table")
    served = {}
    for name, stamp in found.items():
        size, changed = stamp
        if type(size) is not int or type(changed) is not int:
            raise ValueError(f"size and time of '{brief(name)}' are no numbers")
        served[name] = size, changed
    return served


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise ValueError(f"'{brief(value)}' is no count")
    return value


def _integers(values: object) -> npt.NDArray[np.int64]:
    array = np.array(values)
    if array.dtype != np.int64 or (array < 0).any():
        raise ValueError("counts are not whole numbers from 0 on")
    return array


def _like(values: object, like: Array) -> Array:
    """Read an array of the shape and kind of another; finite, counts not below 0."""
    array = _integers(values) if like.dtype.kind == "i" else np.array(values, like.dtype)
    if array.shape != like.shape or not np.isfinite(array).all():
        raise ValueError(
            f"numbers are not finite or of shape {list(array.shape)}, not {list(like.shape)}"
        )
    return array
