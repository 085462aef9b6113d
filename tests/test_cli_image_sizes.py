"""`hgedge compare --image-sizes` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import class_folders, run, small_bank
from hypothesis import given
from hypothesis import strategies as st

from hgprompt_edge.cli.image_sizes import parse_sizes


def test_sizes_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
    document = json.loads((tmp_path / "mine.sizes.json").read_text())
    assert document["learned_at"] == 64
    assert [(row["image_size"], row["folded"]) for row in document["rows"]] == [
        (size, folded) for size in (64, 72) for folded in range(4)
    ]
    assert document["rows"][0]["latency_ratio"] == 1
    assert (tmp_path / "mine.sizes.png").read_bytes().startswith(b"\x89PNG")


BAD_CALLS = {
    "words without the option": ("64 72 --task digits", "64: not expected"),
    "no number": (
        "--image-sizes 64 large --task digits",
        "--image-sizes large: must be whole numbers of pixels",
    ),
    "negative": ("--image-sizes=-64 --task digits", "--image-sizes -64: must be whole numbers"),
    "no number at all": ("--image-sizes , --task digits", "--image-sizes ,: must be whole numbers"),
    "no multiple of the patch": (
        "--image-sizes 64 65 --backbone tiny --task digits",
        "--image-sizes 65: tiny cuts images into patches of 8 pixels; give multiples of 8",
    ),
    "below a patch": (
        "--image-sizes 0 --backbone tiny --task digits",
        "--image-sizes 0: tiny cuts images into patches of 8 pixels",
    ),
    "with methods": (
        "--image-sizes 64 --methods none --task digits",
        "--methods: does not go with --image-sizes",
    ),
    "with steps of tune": (
        "--image-sizes 64 --tune-steps 20 --task digits",
        "--tune-steps: does not go with --image-sizes",
    ),
    "with another size of the prompts": (
        "--image-sizes 64 --image-size 64 --task digits",
        "--image-size: does not go with --image-sizes",
    ),
    "without prompts": (
        "--image-sizes 64 --sources none --backbone tiny --task digits",
        "--sources: there are no bundled prompts for tiny",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_one_sentence_and_nothing_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, words = BAD_CALLS[name]
    result = run("compare", *options.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


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
