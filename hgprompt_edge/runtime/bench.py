"""How fast and how large models are on this machine.

Models take turns in one process, so that whatever else the machine does hits all of them alike.
Load time, cold start and memory are measured in a process of its own for each model:

    python -m hgprompt_edge.runtime.bench MODEL THREADS BATCH BEGAN
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.artifacts.ir_weights import ir_weights
from hgprompt_edge.errors import FileError

WARM_UP = 3
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measurement:
    """One model on this machine.

    Attributes
    ----------
    load_ms
        From the file to a model that is ready.
    cold_start_ms
        From the start of a process to its first prediction, Python's imports included.
    peak_mb
        Most memory that this process held, to the end of its first predictions; 0 where the system
        does not say.
    p50_ms, p90_ms, p99_ms
        Latency of one batch.
    images_per_s
        Throughput of the same runs.
    ratio
        Its median over that of the first model.
    folded_prompts
        Whose probabilities the model averages; each is a pass through the blocks.
    """

    model: str
    runtime: str
    file_mb: float
    load_ms: float
    cold_start_ms: float
    peak_mb: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    ratio: float
    folded_prompts: int


def bench(
    paths: Sequence[Path],
    *,
    threads: int | None = None,
    batch: int = 1,
    runs: int = 50,
    report: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Measure models against each other.

    Parameters
    ----------
    runs
        Timed runs of each model.
    report
        Called with (rounds done, rounds in all).

    Raises
    ------
    UserError
        A model that does not load, see `Predictor`, or gives no finite logits.
    """
    from hgprompt_edge.runtime.predictor import Predictor

    predictors = [Predictor(path, threads) for path in paths]
    images = [_noise(predictor.metadata.image_size, batch) for predictor in predictors]
    for path, predictor, pixels in zip(paths, predictors, images, strict=True):
        if not np.isfinite(predictor.logits(pixels)).all():
            raise FileError(path, "its logits are NaN or infinite; export the model again")
    alone = [_measure_alone(path, threads, batch) for path in paths]
    times = np.zeros((runs, len(paths)))
    for round_ in range(-WARM_UP, runs):
        for index, (predictor, pixels) in enumerate(zip(predictors, images, strict=True)):
            began = time.perf_counter()
            predictor.logits(pixels)
            if round_ >= 0:
                times[round_, index] = time.perf_counter() - began
        if report and round_ >= 0:
            report(round_ + 1, runs)
    p50, p90, p99 = np.percentile(times * 1e3, (50, 90, 99), axis=0)
    return [
        Measurement(
            model=str(path),
            runtime=predictors[i].runtime,
            file_mb=file_bytes(path) / 1e6,
            **alone[i],
            p50_ms=float(p50[i]),
            p90_ms=float(p90[i]),
            p99_ms=float(p99[i]),
            images_per_s=float(batch * runs / times[:, i].sum()),
            ratio=float(p50[i] / p50[0]),
            folded_prompts=predictors[i].metadata.folded_prompts,
        )
        for i, path in enumerate(paths)
    ]


def file_bytes(path: Path) -> int:
    """Size of a model on disk, with the weights that an OpenVINO model keeps beside it."""
    files = [path, ir_weights(path)] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files)


def peak_bytes() -> int:
    """Return the most memory that this process has held; 0 where the system does not say.

    `ru_maxrss` is the fallback alone: on Linux a new process begins with its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _peak_of_usage()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _peak_of_usage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _measure_alone(path: Path, threads: int | None, batch: int) -> dict[str, float]:
    words = [str(path), str(threads or 0), str(batch), repr(time.time())]
    command = [sys.executable, "-m", "hgprompt_edge.runtime.bench", *words]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        raise FileError(path, f"does not run in a process of its own ({last[0]}); export it again")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def _alone(path: Path, threads: int | None, batch: int, began: float) -> dict[str, Any]:
    """Measure what only a fresh process can tell."""
    from hgprompt_edge.runtime.predictor import Predictor

    loading = time.perf_counter()
    predictor = Predictor(path, threads)
    loaded = time.perf_counter()
    images = _noise(predictor.metadata.image_size, batch)
    predictor.logits(images[:1])
    cold = time.time() - began
    for _ in range(WARM_UP):
        predictor.logits(images)
    return {
        "load_ms": (loaded - loading) * 1e3,
        "cold_start_ms": cold * 1e3,
        "peak_mb": peak_bytes() / 1e6,
    }


def _noise(side: int, batch: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


if __name__ == "__main__":
    model, threads_, batch_, began_ = sys.argv[1:]
    print(json.dumps(_alone(Path(model), int(threads_) or None, int(batch_), float(began_))))
