"""Histories for tests, and processes that work on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgprompt_edge.state.history import History, Version

ROOT = Path(__file__).resolve().parents[1]
BANK = "ab" * 32
INITIAL = np.array([0.5, 0.25, 0.25], np.float32)
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mix(first: float) -> npt.NDArray[np.float32]:
    return np.array([first, 1 - first, 0], np.float32)


def open_history(folder: Path, **options: Any) -> History:
    return History(folder / "state", BANK, INITIAL, **options)


def learn(history: History, first: float, **options: Any) -> Version:
    return history.commit(mix(first), method="labelled", images=7, figures={}, **options)


def in_child(code: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    start = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from hgprompt_edge.state.history import History\n"
        "from hgprompt_edge.errors import UserError\n"
        f"state, BANK = Path({str(folder / 'state')!r}), {BANK!r}\n"
        "INITIAL = np.array([0.5, 0.25, 0.25], np.float32)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )
