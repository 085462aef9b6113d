"""One way to open a file in onnxruntime, for the model and for the graph of its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from hgprompt_edge.cores import fewer_cores


def open_session(
    path: Path, threads: int | None = None, settings: Mapping[str, str] | None = None
) -> ort.InferenceSession:
    """Open a file on the CPU.

    Parameters
    ----------
    threads
        Of one run; None: as many as this process may use. The runtime by itself goes by the
        machine, and threads without a core of their own wait for each other.
    settings
        Entries of onnxruntime's session configuration.

    Raises
    ------
    Exception
        Whatever the runtime raises; its errors have no common base.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    # A plan of the memory, held beside what the first run took: megabytes for no speed.
    options.enable_mem_pattern = False
    threads = fewer_cores() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        # Else it prints a banner on stdout, tries the same provider again and fails again.
        enable_fallback=0,
    )
