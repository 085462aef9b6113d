"""Threads: how many a runtime starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_vits import make_backbone, make_bundle

from hgprompt_edge.bundle import Bundle
from hgprompt_edge.export.onnx_file import export_onnx

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(make_backbone())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    export_onnx(bundle, make_backbone(), path)
    return path


COUNT = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from hgprompt_edge.device.predictor import Predictor

def started(threads):
    before = len(os.listdir("/proc/self/task"))
    predictor = Predictor(Path(sys.argv[1]), threads=threads)
    predictor.logits(predictor.metadata.probe()[0])
    kept.append(predictor)
    return len(os.listdir("/proc/self/task")) - before

kept = []
started(1)  # what a runtime starts once a process
print(started(None), started(1), started(5))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_bound_to_one_core_starts_one_thread(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", COUNT, str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    by_default, one, five = map(int, result.stdout.split())
    assert by_default == one < five
