"""OpenVINO's own writers, with a full disk told as Python's are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgprompt_edge.runtime.engines.openvino_engine import import_openvino


def save_ir(model: Any, path: Path, *, half: bool = False) -> None:
    """Write `NAME.xml` and `NAME.bin`, weights in float16 where `half`.

    Raises
    ------
    OSError
        The disk is full.
    """
    with _disk_errors():
        import_openvino().save_model(model, path, compress_to_fp16=half)


def serialize_ir(model: Any, path: Path) -> None:
    """Write `NAME.xml` and `NAME.bin` with the weights as they are.

    Raises
    ------
    OSError
        The disk is full.
    """
    with _disk_errors():
        import_openvino().serialize(model, path, path.with_suffix(".bin"))


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Give the error of a stream the number that it lacks."""
    try:
        yield
    except RuntimeError as error:
        if "iostream" not in str(error):
            raise
        # Written is into a folder just made beside the output, so no other reason is left.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
