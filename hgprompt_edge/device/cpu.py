"""What this CPU can do that decides how fast models run."""

from __future__ import annotations

from pathlib import Path

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")


def cpu_features() -> list[str]:
    """Return the instruction sets of this CPU that decide how fast models run."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            flags.update(line.split(":", 1)[1].split())
    return [name for name in CPU_FEATURES if name in flags]
