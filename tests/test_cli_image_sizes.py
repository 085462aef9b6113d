"""`hgedge compare --image-sizes` as a user meets it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from command_line import class_folders, run, small_bank
from hypothesis import given
from hypothesis import strategies as st

from hgprompt_edge.cli.image_sizes import parse_sizes
from hgprompt_edge.compare.contest import Budget


def test_sizes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgprompt_edge.compare.contest.Budget", partial(Budget, steps=1))
    images = (
        f"--sources {small_bank(tmp_path / 'bank')} --data {class_folders(tmp_path / 'mine', 10)}"
    )
    result = run("compare", "--image-sizes", "72", "64", *images.split())
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == [
        *("pixels", "way", "kept", "held", "out", "test", "95", "%", "interval"),
        *("latency", "ms"),
    ]
    assert max(map(len, [header, *rows[:-1]])) <= 80
    assert [row.split()[0] for row in rows[:8]] == ["64"] * 4 + ["72"] * 4
    assert "the mix is learned at 64 px" in result.stderr
    assert "training images/s; this takes " in result.stderr
    document = json.loads((tmp_path / "mine.sizes.json").read_text())
    assert document["learned_at"] == 64
    assert [(row["image_size"], row["folded"]) for row in document["rows"]] == [
        (size, folded) for size in (64, 72) for folded in range(4)
    ]
    assert document["rows"][0]["latency_ratio"] == 1
    assert (tmp_path / "mine.sizes.png").read_bytes().startswith(b"\x89PNG")


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=6), st.data())
def test_any_way_to_write_a_list_gives_its_sizes(sizes: list[int], data: st.DataObject) -> None:
    words = [str(size) for size in sizes]
    cut = data.draw(st.integers(1, len(words)))
    for first, more in (
        (words[:1], words[1:]),
        ([",".join(words)], None),
        ([",".join(words[:cut])], words[cut:]),
        (words, None),
    ):
        assert parse_sizes(first, more, ()) == tuple(sorted(set(sizes)))
