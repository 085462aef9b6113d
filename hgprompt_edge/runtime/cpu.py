"""What this CPU can do that decides how fast models run, and how they round."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd",
    "asimddp",
)  # fmt: skip


def cpu_features() -> list[str]:
    """Return the instruction sets of this CPU that decide how fast models run."""
    flags: set[str] = set()
    for name, value in _cpuinfo():
        if name in ("flags", "Features"):
            flags.update(value.split())
    return [name for name in CPU_FEATURES if name in flags]


def cpu_name() -> str:
    """Name of this CPU and its instruction sets, as a model records where it was measured."""
    names = [value for name, value in _cpuinfo() if name == "model name"]
    return " ".join([names[0] if names else platform.machine(), *cpu_features()])


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    lines = (line.partition(":") for line in text.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in lines]
