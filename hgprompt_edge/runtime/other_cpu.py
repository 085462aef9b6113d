"""Whether an int8 model computes on this CPU what it computed on the one that exported it.

Its accuracy was measured there. A CPU or runtime that multiplies int8 otherwise gives other logits
without a word, and PyTorch's logits cannot show it: int8 is far from those anywhere. So the file
carries what itself gave for its probe images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgprompt_edge.artifacts.ir_weights import ir_weights
from hgprompt_edge.artifacts.metadata import Metadata
from hgprompt_edge.errors import FileError, UserError
from hgprompt_edge.files import cache_folder, write_bytes
from hgprompt_edge.runtime.cpu import cpu_name
from hgprompt_edge.runtime.engines.engine import Engine, Floats, Pixels

BOUND = 0.07
"""Root mean square of the difference, relative to that of the logits. Where all products are exact,
float operations still round otherwise, and now and then an activation goes to the next step: up to
0.05 measured on four images. Products that saturate moved logits by 0.09 to 0.5."""

ADVICE = "its accuracy here is unknown; export it on a CPU like this one, or in float32"
Given = Mapping[str, Floats]


@dataclass(frozen=True)
class Agreement:
    """The logits of an int8 model here, compared with those where it was exported.

    Attributes
    ----------
    ok
        The difference is within `BOUND`.
    difference
        Root mean square of the difference, relative to that of the logits.
    exported_on, here
        The two CPUs.
    """

    ok: bool
    difference: float
    exported_on: str
    here: str

    def __str__(self) -> str:
        return (
            f"logits differ by {100 * self.difference:.2g} % (up to {100 * BOUND:.2g} % is "
            f"rounding) from those on the CPU that accuracy was measured on ({self.exported_on}); "
            f"this is {self.here}"
        )


def probe_logits(engine: Engine, images: Pixels, given: Given | None = None) -> Floats:
    """Logits `[n, K]` of images `[n, S, S, 3]`, run one at a time.

    So none sets the scale of another's activations, and memory is that of a single prediction.
    """
    return np.concatenate([engine.run(image[None], given) for image in images])


def describe_cpu(engine: Engine, images: Pixels, given: Given | None = None) -> dict[str, Any]:
    """Return what an int8 model records of the CPU on which its accuracy was measured."""
    return {"cpu": cpu_name(), "probe_logits": probe_logits(engine, images, given).tolist()}


def compare_cpus(
    path: Path, engine: Engine, metadata: Metadata, given: Given | None = None
) -> Agreement:
    """Compare a model's logits here with those that it records.

    Raises
    ------
    UserError
        The model carries no probe images or no logits of its own.
    """
    try:
        images, _ = metadata.probe()
        exported_on = str(metadata.quantization["cpu"])
        recorded = np.array(metadata.quantization["probe_logits"], np.float32)
        if not len(images) or recorded.shape != (len(images), len(metadata.classes)):
            raise ValueError("they do not fit its probe images")
    except (KeyError, ValueError, TypeError) as error:
        raise FileError(
            path,
            "an int8 model whose own logits on its probe images are missing or damaged, so it "
            "cannot be checked on this CPU; export it again",
        ) from error
    found = probe_logits(engine, images, given)
    difference = _relative(found, recorded)
    return Agreement(difference <= BOUND, difference, exported_on, cpu_name())


def check_once(
    path: Path, engine: Engine, metadata: Metadata, given: Given | None = None
) -> str | None:
    """Compare as `compare_cpus`, the first time only; returns a warning or None.

    What was found is kept in the cache for this file, CPU and runtime. Where the cache cannot be
    written, each start compares.
    """
    place = _place(path, engine)
    with suppress(OSError, ValueError, KeyError, TypeError):
        if place is not None:
            kept = json.loads(place.read_text())["warning"]
            return None if kept is None else str(kept)
    try:
        found = compare_cpus(path, engine, metadata, given)
        warning = None if found.ok else f"{path}: {found}; {ADVICE}"
    except UserError as error:
        warning = str(error)
    with suppress(OSError, UserError):
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, json.dumps({"warning": warning}).encode())
    return warning


def _relative(found: Floats, recorded: Floats) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    difference = np.square(found.astype(np.float64) - recorded).mean()
    return float(np.sqrt(difference / max(np.square(recorded.astype(np.float64)).mean(), 1e-12)))


def _place(path: Path, engine: Engine) -> Path | None:
    """Where it is kept that this file was checked; None where a user has no cache."""
    try:
        stats = [p.stat() for p in (path, ir_weights(path)) if p.is_file()]
        files = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        key = json.dumps([str(path.resolve()), files, cpu_name(), engine.runtime])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return cache_folder() / "int8" / f"{name}.json"
    except (OSError, RuntimeError):  # the latter: this user has no home
        return None
