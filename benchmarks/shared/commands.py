"""Run `hgedge`, or a benchmark again, in a process of its own, and measure it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, done.stderr]))
"""
"""Runs a command from a small process: a child's peak starts at that of its parent."""


@dataclass(frozen=True)
class Finished:
    """What a command took: seconds on the clock and of processors, most memory in bytes."""

    code: int
    seconds: float
    processor_seconds: float
    peak: int
    failure: str


def hgedge(
    *words: str, folder: Path | None = None, before: Callable[[], None] | None = None
) -> Finished:
    """Run a command of ours with one thread; `before` runs in the child first."""
    cache = {} if folder is None else {"HGEDGE_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, "-m", "hgprompt_edge.cli.main", *words],
        stdout=subprocess.PIPE,
        check=True,
        cwd=folder,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **cache},
        preexec_fn=before,
    )
    seconds = time.perf_counter() - began
    code, processor, peak, said = json.loads(done.stdout)
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(code, seconds, processor, unit * peak, failure(words[0], code, said))


def failure(command: str, code: int, said: str) -> str:
    """Return what a failed command said last, or its exit code; nothing of one that did its work.

    Exit code 1 is that of adapt's guard, and of Python for any exception.
    """
    raised = "Traceback" in said or "this is a bug" in said
    if code == 0 or (command == "adapt" and code == 1 and not raised):
        return ""
    return said[-300:].strip() or f"exit code {code}"


def again(name: str, *words: str) -> Sequence[str]:
    """Command line of a benchmark, to run a part of it in a process of its own."""
    return (sys.executable, str(BENCHMARKS), name, *words)
