"""Benchmarks: pages are what their rows say, every script starts, and the rooms stay small."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = {path.stem: path for path in (ROOT / "docs" / "results").glob("*.md")}
FILES = sorted(path for path in BENCHMARKS.rglob("*.py") if path.name != "__main__.py")
SCRIPTS = [path for path in FILES if '__name__ == "__main__"' in path.read_text()]
BELOW = {
    "shared": {"shared"},
    "bundled": {"shared", "bundled"},
    "fast": {"shared", "fast"},
    "safe": {"shared", "safe", "helps"},
    "watch": {"shared", "watch"},
    "method": {"shared", "method"},
    "helps": {"shared", "helps", "safe"},
}
"""Rooms that a room may import; adapting is measured in two of them, on one page."""
sys.path.insert(0, str(BENCHMARKS))

from bundled import bank_tiny  # noqa: E402
from method import objective  # noqa: E402
from reports import REPORTS  # noqa: E402
from shared.intervals import bootstrap  # noqa: E402
from shared.pages import fill, table  # noqa: E402
from shared.rows import gather_rows, read_rows, results_file, select, write_rows  # noqa: E402
from shared.timing import in_turns  # noqa: E402


@pytest.mark.parametrize("name", sorted({*PAGES, *REPORTS}))
def test_a_page_is_what_its_rows_say(name: str) -> None:
    assert REPORTS[name]() == PAGES[name].read_text(), "run `python benchmarks reports`"


def test_the_page_of_the_bank_is_what_its_files_say() -> None:
    bank = ROOT / "models" / "hgprompt_edge_models" / "tiny" / "bank"
    assert bank_tiny.report(bank) == (bank / "README.md").read_text()


def test_figures_in_prose_are_those_of_the_rows() -> None:
    method = " ".join((ROOT / "docs" / "method.md").read_text().split())
    permuted = read_rows(results_file("permuted"))
    gains = [row["best_source"] for row in permuted]
    chance = f"more than 2 nats in {sum(g > 2 for g in gains)} of {len(gains)} draws"
    assert f"{chance} and up to {max(gains):.1f}" in method
    checks = select(read_rows(results_file("gradient_check")), halvings=2)
    cells, refused = (sum(row[key] for row in checks) for key in ("cells", "refused"))
    assert refused == 0
    assert f"Of {cells} right gradients under a shift, the check refuses none" in method
    kills = json.loads(results_file("kills").read_text())
    assert (kills["lost"], kills["unreadable"], kills["wrong"]) == (0, 0, 0)
    guide = (ROOT / "docs" / "guide" / "many-devices.md").read_text()
    assert f"killed a writing process {kills['kills']} times" in " ".join(guide.split())


GAIN = r"[+-]\d+\.\d\s\([+-]\d+\.\d\sto\s[+-]\d+\.\d"


def test_gains_in_the_readme_are_those_of_the_study() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Does it help?")[2].partition("\n## ")[0]
    gains = [" ".join(gain.split()) for gain in re.findall(GAIN, section)]
    assert len(gains) > 20
    assert [gain for gain in gains if gain not in PAGES["transfer"].read_text()] == []


def test_correlations_in_the_method_are_those_of_the_study() -> None:
    method = (ROOT / "docs" / "method.md").read_text()
    evidence = method.partition("**Evidence.** On the 16 tasks")[2].partition("([all")[0]
    found = re.findall(r"(-?\d\.\d\d)\s\((-?\d\.\d\d)\sto\s(-?\d\.\d\d)\)", evidence)
    assert len(found) == 3
    page = PAGES["objective"].read_text().replace("+", "")
    for mean, low, high in found:
        assert f"| {mean} | {low} to {high} |" in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_can_be_imported(path: Path) -> None:
    name = ".".join(path.relative_to(BENCHMARKS).with_suffix("").parts)
    assert hasattr(importlib.import_module(name), "main") == (path in SCRIPTS)


def test_rows_of_every_result_belong_to_a_script() -> None:
    sources = " ".join(path.read_text() for path in FILES)
    names = {path.stem for path in (BENCHMARKS / "results").glob("*.json")}
    assert {name for name in names if f'"{name}"' not in sources} <= {"fit", "kills"}


def test_the_list_names_every_script_and_no_other() -> None:
    readme = (BENCHMARKS / "README.md").read_text()
    named = {
        name
        for row in readme.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`(\w+)`", row.split("|")[2])
    }
    assert named == {path.stem for path in SCRIPTS} - {"reports", "speed_report"}
    assert len(readme.splitlines()) <= 40


def test_rooms_are_small_and_import_downwards() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            room = (
                node.module.split(".")[0]
                if isinstance(node, ast.ImportFrom) and node.module
                else ""
            )
            if room in BELOW and path.parent != BENCHMARKS:
                assert room in BELOW[path.parent.name], path
    for room in BELOW:
        assert len(list((BENCHMARKS / room).glob("*.py"))) <= 12, room


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_benchmark_runs_by_its_name() -> None:
    done = run("kills", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: kills.py")


def test_an_unknown_name_shows_the_list() -> None:
    done = run("nonsense")
    assert done.returncode == 1
    assert "there is no benchmark called nonsense" in done.stderr
    assert done.stdout.startswith("# Benchmarks")


def test_a_gap_without_a_figure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"heads\.md: .*\['table', 'tabel'\]|\['tabel', 'table'\]"):
        fill("heads", tabel="")


def test_a_table_has_its_head_and_rows() -> None:
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_newer_rows_replace_those_of_the_same_keys(tmp_path: Path) -> None:
    results, work = tmp_path / "all.json", tmp_path / "work"
    write_rows(results, [{"task": "b", "x": 1}, {"task": "a", "x": 1}])
    write_rows(work / "cell.json", [{"task": "b", "x": 2}])
    gather_rows(results, work, ("task",))
    assert read_rows(results) == [{"task": "a", "x": 1}, {"task": "b", "x": 2}]


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    gains, sizes = rng.normal(1, 1, 40), rng.uniform(1, 2, 40)

    def ratio(above: Any, below: Any, axis: int = -1) -> Any:
        return above.sum(axis) / below.sum(axis)

    for found, data, statistic in (
        (bootstrap(gains), (gains,), np.mean),
        (bootstrap(gains, sizes), (gains, sizes), ratio),
    ):
        expected = stats.bootstrap(
            data, statistic, paired=True, method="percentile", rng=rng
        ).confidence_interval
        np.testing.assert_allclose(found, expected, atol=0.03)


def test_calls_take_turns_and_warm_up_first() -> None:
    said: list[str] = []
    medians = in_turns({name: lambda name=name: said.append(name) for name in "abc"}, 5, warm=2)
    assert list(medians) == ["a", "b", "c"]
    rounds = ["".join(said[i : i + 3]) for i in range(0, len(said), 3)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 7
    assert len(set(rounds[2:])) > 1


def test_the_study_of_the_objective_ranks_as_its_scores_do() -> None:
    accuracies = (0.5, 0.6, 0.7, 0.8)
    rows: list[dict[str, Any]] = [
        {"candidate": f"source {i}", "accuracy": right, "test": 100, "log_loss": -i, "H": 7 - i}
        for i, right in enumerate(accuracies)
    ]
    rows.append({"candidate": "mix 0", "accuracy": 0.9, "test": 100, "log_loss": -4, "H": 3})
    assert objective.correlation("log_loss", rows) == pytest.approx(1), "less is better"
    assert objective.correlation("H", rows) == pytest.approx(-1)
    error = np.sqrt(0.65 * 0.35 / 100)
    assert objective.span(rows) == pytest.approx(0.3 / error), "of the sources, without the mixes"


def test_starts_are_compared_draw_by_draw_and_each_set_counts_once() -> None:
    def rows(
        task: str, seed: int, sources: str, accuracies: tuple[float, ...]
    ) -> list[dict[str, Any]]:
        draw = {"task": task, "seed": seed, "per_class": 5}
        return [
            {**draw, "score": score, "source": source, "accuracy": right, "mix_accuracy": mixed}
            for score, source, right, mixed in zip(
                ("H_d", "log_loss"), sources, accuracies[:2], accuracies[2:], strict=True
            )
        ]

    found = objective.starts(
        [
            *rows("a", 0, "pq", (0.5, 0.6, 0.4, 0.7)),
            *reversed(rows("a", 1, "pp", (0.5, 0.5, 0.5, 0.5))),
            *rows("b", 0, "pr", (0.6, 0.5, 0.6, 0.5)),
            *rows("c", 0, "pr", (0.7, 0.6, 0.6, 0.7)),
        ]
    )
    assert {name: found[name] for name in ("draws", "same", "better", "worse", "by_set")} == {
        "draws": 4,
        "same": 1,
        "better": 2,
        "worse": 1,
        "by_set": "a +15.0, b -10.0, c +10.0",
    }
    text = str(found["starts"])
    assert "| highest H_d | 60.0 % | 55.0 % |" in text
    assert "| lowest log-loss | 55.0 % | 60.0 % |" in text
    assert "+5.0 (-10.0 to +15.0)" in text, "the interval is of paired differences, over sets"
