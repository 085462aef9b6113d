"""One mix from what many devices learned, that a minority of broken ones cannot move (numpy only).

By number of devices, whatever mix and count of images they send. Of several versions that one
device sent, the newest counts. Its number is believed: that holds against a broken device that
sends often, not against somebody who makes numbers up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.bank_entries import bank_entries, bank_sha256
from hgprompt_edge.artifacts.bundle import Bundle, Floats, check_one_prompt
from hgprompt_edge.errors import FileError, MismatchError, UserError, brief
from hgprompt_edge.images.listing import files_in
from hgprompt_edge.state.update_file import Update, read_update
from hgprompt_edge.state.version import classes_digest

CAP = 4.0
"""A device counts at most as much as this many times the median device."""
REACH = 3.0
"""Devices up to this many times the median distance from the middle one are averaged ..."""
NEAR = 0.05
"""... and in any case those that differ from it in this share of the mix, or less."""
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Merged:
    """What many devices come to.

    Attributes
    ----------
    weights
        `[M]` float32 on the simplex.
    shares
        `[n]` float64: what each update counted for, summing to 1; 0 for those left out as too far
        from the others.
    """

    weights: Floats
    shares: Doubles


@dataclass(frozen=True)
class Delivery:
    """Updates that can be averaged, and why the other files are not.

    Attributes
    ----------
    paths, updates
        In the order of the files.
    refused
        One sentence for each file that does not belong here.
    idle
        One for each that does, but adds nothing: its device has learned nothing, or it came twice,
        or the same device sent a newer version.
    """

    paths: tuple[Path, ...]
    updates: tuple[Update, ...]
    refused: tuple[str, ...]
    idle: tuple[str, ...]


def merge(updates: Sequence[Update]) -> Merged:
    """Average the mixes of devices, weighted by their counts of images; see `robust_mean`."""
    mixes = np.stack([update.weights.astype(np.float64) for update in updates])
    counts = np.array([update.images for update in updates], np.float64)
    mixes /= mixes.sum(axis=1, keepdims=True)
    weights, shares = robust_mean(mixes, counts)
    return Merged((weights / weights.sum()).astype(np.float32), shares)


def robust_mean(mixes: Doubles, counts: Doubles) -> tuple[Doubles, Doubles]:
    """Weighted mean of the mixes near the middle one: `(mean [M], shares [n])`.

    The middle one has the smallest sum of distances to the others; distance is the share of the mix
    that differs (half the L1 norm). Averaged are those within `REACH` times the median distance
    from it, or within `NEAR`, with counts up to `CAP` times the median count.

    The breakdown point is 1/2. Let `f` of `n` devices send anything, `2 f < n`, and the others be
    within `r` of a mix `c`. Then the middle one is within `R = r (3 n - 2 f) / (n - 2 f)` of `c`:
    its sum of distances is at least `(n - f)(R - r)` plus that to the broken ones, an honest one's
    at most `2 r (n - f) + f (R + r)` plus the same. The median distance is at most the largest
    honest one, `R + r`, so the mean is within `R + max(REACH (R + r), NEAR)` of `c`, whatever the
    counts. Two devices have no majority and are both averaged.

    Parameters
    ----------
    mixes
        `[n, M]` on the simplex.
    counts
        `[n]`, above 0.
    """
    middle = mixes[np.argmin([_distance(mixes, one).sum() for one in mixes])]
    distances = _distance(mixes, middle)
    kept = distances <= max(REACH * float(np.median(distances)), NEAR)
    shares = np.where(kept, np.minimum(counts, CAP * np.median(counts)), 0)
    shares = shares / shares.sum()
    # Differences to the middle one, so that devices that agree give exactly what they agree on.
    return middle + shares @ (mixes - middle), shares


def _distance(mixes: Doubles, one: Doubles) -> Doubles:
    distances: Doubles = np.abs(mixes - one).sum(axis=1) / 2
    return distances


def read_updates(paths: Sequence[Path], bundle: Bundle) -> Delivery:
    """Read what devices sent for a bundle; a folder stands for the `*.json` files in it.

    Left out, with a sentence: files that are no updates, of another bank, other classes or another
    resize rule, sent twice, of a device that sent a newer one, or of devices that have learned
    nothing.

    Raises
    ------
    UserError
        No files, half of them or more do not belong here, or no device has learned anything.
    """
    check_one_prompt(bundle, "merge")
    bank, classes = bank_sha256(bundle), classes_digest(bundle.classes)
    files = _find(paths)
    usable: dict[bytes, tuple[Path, Update]] = {}
    refused, idle = [], []
    for path in files:
        try:
            update = read_update(path)
            _check(path, update, bundle, bank, classes)
        except UserError as error:
            refused.append(str(error))
            continue
        key = repr((update.device, update.time, update.version, update.images)).encode()
        key += update.weights.tobytes()
        if key in usable:
            idle.append(f"{path}: the same as {usable[key][0]}; one of them counts")
        else:
            usable[key] = path, update
    if 2 * len(refused) >= len(files):
        raise UserError(
            f"{len(refused)} of {len(files)} files cannot be used; the first: {refused[0]}"
        )
    kept, newest = [], _newest(usable.values())
    for path, update in usable.values():
        last_path, last = newest.get(update.device, (path, update))
        if last.version > update.version:
            idle.append(f"{path}: its device sent a newer version, {last.version} ({last_path})")
        elif not update.images:
            idle.append(f"{path}: its device has learned nothing ({update.method})")
        else:
            kept.append((path, update))
    if not kept:
        raise UserError(f"there is nothing to merge; {idle[0]}")
    found, updates = zip(*kept, strict=True)
    return Delivery(found, updates, tuple(refused), tuple(idle))


def _newest(updates: Iterable[tuple[Path, Update]]) -> dict[str, tuple[Path, Update]]:
    """Find the last version that each device sent, of those that say which one they are from."""
    newest: dict[str, tuple[Path, Update]] = {}
    for path, update in updates:
        if update.device:
            before = newest.setdefault(update.device, (path, update))
            if update.version > before[1].version:
                newest[update.device] = path, update
    return newest


def summary(delivery: Delivery, merged: Merged) -> dict[str, Any]:
    """Figures of a merge, for the bundle that comes of it."""
    counted = [p for p, share in zip(delivery.updates, merged.shares, strict=True) if share]
    return {
        "devices": len(counted),
        "left_out": len(delivery.updates) - len(counted) + len(delivery.refused + delivery.idle),
        "images": sum(update.images for update in counted),
    }


def _find(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += files_in(path, ".json") if path.is_dir() else [path]
    if not files:
        raise FileError(paths[0], "holds no *.json; name files that devices sent")
    return files


def _check(path: Path, update: Update, bundle: Bundle, bank: str, classes: str) -> None:
    if update.bank_sha256 != bank:
        raise _misfit(
            path, bundle, f"it was learned with the bank {update.bank_sha256[:12]}, not {bank[:12]}"
        )
    if update.classes_sha256 != classes:
        raise _misfit(path, bundle, "it was learned for other classes")
    if update.resize != (mode := bundle.preprocessing.crop_mode):
        raise _misfit(
            path,
            bundle,
            f"it was learned with the resize rule {brief(update.resize)}, not {mode}",
        )
    if len(update.weights) != len(bank_entries(bundle)):
        raise FileError(
            path,
            f"weighs {len(update.weights)} entries of {len(bank_entries(bundle))}; send it again "
            "from the device",
        )


def _misfit(path: Path, bundle: Bundle, difference: str) -> MismatchError:
    advice = "name the bundle that its model came from with `bundle`"
    return MismatchError(path, f"the bundle of {bundle.task}", difference, advice)
