"""How many cores this process may use, which is often fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: by its affinity and its cgroups' CPU quota.

    Parameters
    ----------
    root
        Folder that holds `proc` and `sys`.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to ask for
        cores = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([cores, *quotas]))


def fewer_cores() -> int | None:
    """Cores that this process may use where those are fewer than the machine has, else None.

    Where a process may use all of them, a runtime knows better which of them share a core.
    """
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else None


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each cgroup above this process grants, of versions 1 and 2 of cgroups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no controllers here; a container may see its own group as the root.
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = Path(group.lstrip("/"))
        for path in (folder, *folder.parents):
            quota = _quota(mount / path)
            if quota is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """Cores that one cgroup grants; None: as many as there are."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)  # `max` in version 2, -1 in version 1: no bound
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None
