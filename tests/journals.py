"""Journals for tests, and processes that work on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.state.history import Journal, Version

ROOT = Path(__file__).resolve().parents[1]
BANK = "ab" * 32
FACTORY = np.array([0.5, 0.25, 0.25], np.float32)
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mix(first: float) -> npt.NDArray[np.float32]:
    return np.array([first, 1 - first, 0], np.float32)


def open_journal(folder: Path, **options: Any) -> Journal:
    return Journal(folder / "state", BANK, FACTORY, **options)


def learn(journal: Journal, first: float, **options: Any) -> Version:
    return journal.commit(mix(first), method="labelled", images=7, figures={}, **options)


def in_child(code: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    start = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from hgprompt_edge.state.history import Journal\n"
        "from hgprompt_edge.errors import UserError\n"
        f"state, BANK = Path({str(folder / 'state')!r}), {BANK!r}\n"
        "FACTORY = np.array([0.5, 0.25, 0.25], np.float32)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
