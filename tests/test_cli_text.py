"""Text of users and files is printed as it is, whatever it holds and the terminal can encode."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import class_folders, hgedge, photo, run, small_bank
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from hgprompt_edge.cli.shared import console
from hgprompt_edge.cli.shared.text import AS_GIVEN, as_json
from hgprompt_edge.compare.compare_figure import draw_comparison
from hgprompt_edge.compare.run import Result

LATIN_1 = os.fsdecode(b"stra\xdfe.jpg")
NASTY = ("street[night].jpg", "set [/2024].jpg", "week\\[b].jpg", ":smile: [bold]x[/bold].jpg")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, one of them with a name that markup would swallow."""
    folder = tmp_path_factory.mktemp("text")
    data = class_folders(folder / "mine")
    (data / "Birman").rename(data / "[b]irman[x]")
    options = f"--backbone tiny --sources none --output {folder / 'mine.hgbundle'}"
    assert run("fit", "--data", str(data), *options.split()).exit_code == 0
    path = folder / "mine.onnx"
    assert run("export", str(folder / "mine.hgbundle"), "-o", str(path)).exit_code == 0
    return path


def test_names_are_printed_as_they_were_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NASTY:
        photo(tmp_path / "in" / name, 1, 1)
    (tmp_path / "in" / "broken [x].jpg").write_bytes(b"nothing")
    result = run("predict", "--model", str(model), "in")
    assert result.exit_code == 2  # of the broken one
    for name in NASTY:
        assert f"in/{name}" in result.stdout
    assert "[b]irman[x]" in result.stdout
    assert "in/broken [x].jpg: not a readable image" in result.stderr
    assert "hgedge: --data [/y]: no such" in run("fit", "--data", "[/y]").stderr


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(document=DOCUMENTS, bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_json_has_null_for_what_is_no_number(document: object, bad: float) -> None:
    """As of one validation image: the uncertainty is infinite. Other parsers refuse `Infinity`."""
    text = as_json({"error": bad, "rows": [(document, bad)], "same": document})
    parsed = json.loads(text, parse_constant=pytest.fail)
    assert parsed == {"error": None, "rows": [[document, None]], "same": document}


@given(document=DOCUMENTS)
def test_json_is_otherwise_that_of_python(document: object) -> None:
    assert as_json(document) == json.dumps(document, indent=2, ensure_ascii=False)


def test_a_name_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.out.print("a\x1b[31m\rb\nc")
    table = Table("\x07title")
    table.add_row("\x9b2J")
    console.out.print(table)
    console.note("gone: \x1b[2J")
    printed = capsys.readouterr()
    assert "a\\x1b[31m\\x0db\nc\n" in printed.out
    assert "\\x07title" in printed.out
    assert "\\x9b2J" in printed.out
    assert "gone: \\x1b[2J" in printed.err


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_text_without_control_characters_is_printed_letter_for_letter(text: str) -> None:
    stream = io.StringIO()
    stdout, sys.stdout = sys.stdout, stream
    try:
        console.out.print(text)
    finally:
        sys.stdout = stdout
    assert stream.getvalue() == text + "\n"


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_a_name_that_is_not_utf_8_is_predicted(model: Path, tmp_path: Path, encoding: str) -> None:
    for name in (LATIN_1, "ok.jpg"):
        photo(tmp_path / "in" / name, 0, 3)
    rows = {}
    for form in ("", "--json", "--csv"):
        words = ("predict", "--model", str(model), "in", *form.split())
        result = hgedge(tmp_path, *words, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, result.stderr
        rows[form] = result.stdout
    names = ["in/ok.jpg", f"in/{LATIN_1}"]
    assert [line.split()[0] for line in rows[""].splitlines()[1:]] == names
    assert [row["image"] for row in json.loads(rows["--json"])] == names
    assert [row[0] for row in csv.reader(io.StringIO(rows["--csv"]))][1:] == names


def test_what_a_terminal_lacks_is_drawn_in_ascii(tmp_path: Path) -> None:
    data, bank = class_folders(tmp_path / "mine", 4), small_bank(tmp_path / "bank", 1)
    (data / "Birman").rename(data / "gr\u00fcn \u4e2d")
    words = f"fit --data {data} --sources {bank} --steps 0 --verbose".split()
    result = hgedge(tmp_path, *words, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert "by layer" in result.stdout
    assert "next: hgedge export mine.hgbundle" in result.stdout
    shown = hgedge(tmp_path, *"export --help".split(), PYTHONIOENCODING="cp1252")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("text", ["\u4e2d", "\u00b1", "\udcfc", "\u2581\u2588", "x\udcfc\u4e2dy"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_any_encoding_takes_any_text(text: str, encoding: str) -> None:
    text.encode(encoding, AS_GIVEN)
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", AS_GIVEN)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_a_class_that_cannot_be_stored_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = class_folders(tmp_path / "mine")
    (data / "Birman").rename(data / os.fsdecode(b"gr\xfcn"))
    before = sorted(tmp_path.rglob("*"))
    result = run(*"fit --data mine --backbone tiny".split())
    assert result.exit_code == 2
    assert result.stderr == (
        "hgedge: mine: the class 'gr\\udcfcn': the name is not valid UTF-8; rename it\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a b.hgbundle", "[x] $(y).hgbundle", "-x", "it's"])
def test_the_next_command_can_be_pasted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print_next("export", Path(name), "--adapt")
    line = capsys.readouterr().out.removeprefix("next: ").strip()
    program, command, path, option = shlex.split(line)
    assert (program, command, option) == ("hgedge", "export", "--adapt")
    assert Path(path) == Path(name)
    assert not path.startswith("-")


def test_a_dollar_sign_is_no_formula(tmp_path: Path) -> None:
    none = np.zeros(0, dtype=bool)
    row = Result("uniform", 0.5, None, None, None, none, np.ones(1), 1.0, 1, 1, 0.1)
    draw_comparison(r"a$\frac$b", [r"$\x$"], [row], [], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
