"""Time: of one action, and of several that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors together."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def in_turns(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, warm: int = 2
) -> dict[Any, float]:
    """Median seconds of each call; whatever else the machine does hits all of them.

    The first `warm` rounds do not count. The order is drawn anew in each round, so that none always
    follows another.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(-warm, rounds):
        for which in np.random.default_rng(max(turn, 0)).permutation(len(calls)):
            name = list(calls)[which]
            clock, _ = timed(calls[name])
            if turn >= 0:
                seconds[name].append(clock)
    return {name: float(np.median(taken)) for name, taken in seconds.items()}
