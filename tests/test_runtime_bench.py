"""What bench measures: every figure is there and plausible, and no bad model gets one."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
from small_vits import make_backbone, make_bundle
from typer.testing import CliRunner

from hgprompt_edge.cli.main import app
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.runtime.bench import bench, peak_bytes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, backbone = tmp_path_factory.mktemp("models"), make_backbone()
    paths = [folder / "a.onnx", folder / "b.onnx"]
    for path, opset in zip(paths, (23, 20), strict=True):
        export_onnx(make_bundle(backbone), backbone, path, opset=opset)
    return paths


def test_every_figure_is_measured(models: list[Path]) -> None:
    rounds: list[tuple[int, int]] = []
    first, second = bench(
        models, threads=1, batch=3, runs=5, report=lambda *round_: rounds.append(round_)
    )
    assert rounds == [(i, 5) for i in range(1, 6)]
    assert (first.model, second.model) == tuple(str(path) for path in models)
    assert first.runtime.startswith("onnxruntime ")
    assert first.file_mb == models[0].stat().st_size / 1e6
    for row in (first, second):
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        # Throughput is of all runs, so it lies between that of the fastest and of the slowest.
        assert row.images_per_s >= 3 / (row.p99_ms * 2 / 1e3)
        assert 0 < row.load_ms < row.cold_start_ms
        # Python with numpy and onnxruntime, and much less than this process with PyTorch.
        assert 20 < row.peak_mb < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    assert first.ratio == 1
    assert second.ratio == second.p50_ms / first.p50_ms


def test_peak_memory_grows_with_what_is_held_and_stays() -> None:
    before = peak_bytes()
    held = b"x" * (before + (64 << 20))  # more than was ever held before
    peak = peak_bytes()
    assert peak >= before + (32 << 20)
    del held
    assert peak_bytes() > before + (32 << 20)


@pytest.mark.parametrize("windows", [True, False])
def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch, windows: bool) -> None:
    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    if windows:
        monkeypatch.setitem(sys.modules, "resource", None)
    assert (peak_bytes() == 0) == windows


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *words])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_table_or_one_document(models: list[Path]) -> None:
    code, table, _ = run(*map(str, models), "--runs", "2")
    assert code == 0
    assert table.startswith("cpu: ")
    assert "threads 1, batch 1, 2 runs" in table
    for name in ("p50 ms", "p99", "img/s", "ratio", "load ms", "start", "peak MB", "file"):
        assert name in table
    code, text, _ = run(str(models[0]), "--runs", "2", "--batch", "4", "--json")
    assert code == 0
    document = json.loads(text)
    assert (document["threads"], document["batch"], document["runs"]) == (1, 4, 2)
    (row,) = document["models"]
    assert {"p50_ms", "p90_ms", "p99_ms", "images_per_s", "load_ms", "cold_start_ms"} < set(row)
    assert {"peak_mb", "file_mb", "runtime", "ratio"} < set(row)


def test_bad_models_are_named(models: list[Path], tmp_path: Path) -> None:
    code, text, error = run(str(models[0]), str(tmp_path / "none.onnx"))
    assert (code, text) == (2, "")
    assert "none.onnx: no such model file" in error
    (tmp_path / "cut.onnx").write_bytes(models[0].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.onnx: truncated or not an ONNX file"):
        bench([tmp_path / "cut.onnx"])
    assert run(str(models[0]), "--runs", "0")[0] == 2
