"""Threads: how many a runtime starts, and one predictor that many threads share."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
from planted import Planted
from small_vits import make_backbone, make_bundle
from toys import pixels_of

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor

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
from hgprompt_edge.maths.head import Head
from hgprompt_edge.runtime.predictor import Predictor

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


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_each_of_eight_threads_gets_the_logits_of_its_own_images(
    model: Path, bundle: Bundle, tmp_path: Path, runtime: str
) -> None:
    if runtime == "openvino":
        if find_spec("openvino") is None:
            pytest.skip("needs openvino")
        from hgprompt_edge.export.openvino_file import export_openvino

        model = tmp_path / "m.xml"
        export_openvino(bundle, make_backbone(), model)
    predictor = Predictor(model)
    pixels = pixels_of(72)
    batches = [pixels[start : start + 1 + start % 3] for start in range(0, 72, 3)]
    alone = [predictor.logits(batch) for batch in batches]
    start = Barrier(8)

    def serve(thread: int) -> None:
        start.wait()
        for turn in range(len(batches)):
            index = (turn + 11 * thread) % len(batches)
            found = predictor.logits(batches[index])
            np.testing.assert_allclose(found, alone[index], atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(serve, thread) for thread in range(8)]:
            done.result()


def test_threads_that_refresh_serve_mix_and_head_of_one_version(tmp_path: Path) -> None:
    planted = Planted(tmp_path, "learned")
    bank, images, state = planted.bank, planted.images[:1], tmp_path / "state"
    versions = [
        (np.roll(bank.initial, turn), bank.head.bias + np.float32(3 * turn)) for turn in range(6)
    ]
    fresh, wanted = Predictor(planted.path), []
    for mix, bias in versions:
        fresh.set_weights(mix, Head(bank.head.weight, bias))
        wanted.append(fresh.logits(images))
    over = Event()

    def serve(predictor: Predictor) -> int:
        served = 0
        while not (over.is_set() and served):
            predictor.refresh()
            found = predictor.logits(images)
            assert any(np.allclose(found, one, atol=1e-3) for one in wanted)
            served += 1
        return served

    with open_history(state, bank, planted.predictor.metadata) as history:

        def learn(turn: int) -> None:
            mix, bias = versions[turn % len(versions)]
            history.commit(mix, method="labelled", images=1, figures={}, head_bias=bias)

        learn(0)
        shared = Predictor(planted.path, state=state)
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(serve, shared) for _ in range(8)]
            for turn in range(1, 41):
                learn(turn)
            over.set()
            assert all(done.result() for done in running)
        shared.refresh()
        np.testing.assert_allclose(shared.logits(images), wanted[40 % 6], atol=1e-3)
