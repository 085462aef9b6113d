"""Where and how images run through a backbone: device, precision, workers, memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from hgprompt_edge.cores import usable_cores

CPU_MICRO_BATCH, DEVICE_MICRO_BATCH = 64, 256
"""Images at a time: on a CPU more do not fit its cache, on an accelerator fewer leave it idle."""
CGROUP_MEMORY = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Compute:
    """Where and how images run through a backbone.

    Attributes
    ----------
    device
        `cpu`, `cuda` or `mps`. Features come back to the CPU in float32.
    precision
        `float32` or `bfloat16`.
    workers
        Threads that take micro-batches of images, on a CPU.
    threads
        Threads inside the operators of each worker.
    micro_batch
        Images that a worker takes at a time, at most.
    """

    device: str = "cpu"
    precision: str = "float32"
    workers: int = 1
    threads: int = 1
    micro_batch: int = CPU_MICRO_BATCH

    def __str__(self) -> str:
        """Return it as a command reports it."""
        if self.device != "cpu":
            return f"{self.precision} on {self.device}"
        workers, threads = _count(self.workers, "worker"), _count(self.threads, "thread")
        return f"{self.precision} on cpu, {workers} of {threads}"

    def parts(self, images: int) -> list[slice]:
        """Cut images into parts of nearly equal size, as many as keep all workers busy."""
        rounds = -(-images // (self.micro_batch * self.workers))
        count = min(rounds * self.workers, images)
        ends = [images * part // count for part in range(count + 1)] if count else []
        return [slice(start, end) for start, end in pairwise(ends)]


def usable_threads() -> int:
    """Count the threads that this process may use.

    No more than cores by affinity and the cgroup's quota, nor than PyTorch was told to use, be it
    by OMP_NUM_THREADS.
    """
    return max(1, min(torch.get_num_threads(), usable_cores()))


def available_memory(device: str) -> int:
    """Return the bytes that are free on a device now: of a CPU's memory, 8 GiB if unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError, IndexError):
        free = 8 << 30
    return min([free, *_memory_limits()])


def _memory_limits(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that a container of ours may use, of either version of cgroups."""
    found = []
    for name in CGROUP_MEMORY:
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # else `max`
            found.append(int(text))
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")
