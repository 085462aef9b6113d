"""What errors say in Python, what the command line makes of it, and what no message may hold."""

from __future__ import annotations

import ast
import functools
import pickle
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from command_line import run
from hypothesis import given
from hypothesis import strategies as st

from hgprompt_edge.artifacts.device_bank import NO_PROMPT, Bank, write_bank
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.cli.main import app
from hgprompt_edge.cli.shared.parameters import NAMED, OPTIONS, as_options
from hgprompt_edge.data import find_task
from hgprompt_edge.errors import (
    BatchMemoryError,
    FileError,
    MismatchError,
    MissingPackageError,
    ParameterError,
    UserError,
    argument,
)
from hgprompt_edge.maths.head import Head
from hgprompt_edge.prompts.bank import read_bank
from hgprompt_edge.runtime.contract import check_same_export

PACKAGE = Path(__file__).resolve().parents[1] / "hgprompt_edge"
CLI = PACKAGE / "cli"
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if CLI not in path.parents]


def test_a_parameter_is_named_as_in_python() -> None:
    with pytest.raises(ParameterError) as caught:
        load_backbone("tiny", image_size=65)
    error = caught.value
    assert (error.parameter, error.value) == ("image_size", 65)
    assert str(error).startswith("`image_size=65`: tiny cuts images into patches of 8 pixels")
    assert as_options(error).startswith("--image-size 65: tiny cuts images into patches of 8 pixel")


def test_a_path_that_is_passed_reads_as_a_string(tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        find_task(None, data=tmp_path / "none")
    assert caught.value.value == tmp_path / "none"
    assert str(caught.value).startswith(f"`data='{tmp_path}/none'`: no such file or folder; name")
    assert as_options(caught.value).startswith(f"--data {tmp_path}/none: no such file or folder; ")


def test_a_file_and_the_line_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        read_bank(tmp_path)
    assert caught.value.path == tmp_path
    for part in ("train800", "val200", "test"):
        (tmp_path / f"{part}.txt").write_text("a.jpg 0\nb.jpg\n")
    with pytest.raises(FileError) as caught:
        find_task("mine", data=tmp_path)
    assert (caught.value.path, caught.value.place) == (tmp_path / "train800.txt", "line 2")
    assert str(caught.value).startswith(f"{tmp_path}/train800.txt, line 2: not a path and the num")


def test_two_files_that_do_not_belong_together(tmp_path: Path) -> None:
    head = Head(np.ones((2, 3), "f"), np.ones(2, "f"))
    bank = Bank((NO_PROMPT,), None, np.ones(1, "f"), head, "a" * 64)
    place, model = tmp_path / "m.bank.safetensors", tmp_path / "m.onnx"
    write_bank(place, bank)
    with pytest.raises(MismatchError) as caught:
        check_same_export(place, bank, model, sha256=bank.sha256, content="", classes=5)
    assert (caught.value.path, caught.value.other) == (place, model)
    assert str(caught.value) == (
        f"{place} does not fit {model}: its head has 2 classes, not 5; copy all files of one export"
    )


def test_a_batch_that_does_not_fit_and_a_package_that_is_missing() -> None:
    memory = BatchMemoryError(64, 7)
    assert (memory.parameter, memory.value) == ("batch_size", 64)
    assert str(memory) == (
        "`batch_size=64`: not enough memory for 7 images at a time; give a smaller one"
    )
    missing = MissingPackageError("int8 for OpenVINO", "nncf", "int8")
    assert (missing.package, missing.extra) == ("nncf", "int8")
    assert str(missing).endswith("not installed; run `pip install 'hgprompt-edge[int8]'`")
    alone = MissingPackageError("this", "h5py")
    assert str(alone).endswith("not installed; run `pip install h5py`")


@pytest.mark.parametrize(
    "error",
    [
        ParameterError("data", Path("a b"), "none"),
        BatchMemoryError(64, 7),
        FileError(Path("a.csv"), "no label", "line 3"),
        MismatchError("a", "b", "it differs", "copy both"),
        MissingPackageError("this", "that", "extra"),
    ],
)
def test_errors_survive_a_process_and_are_user_errors(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UserError)
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("name one with `data`", "name one with --data"),
        ("use `device='cpu'`, or", "use --device cpu, or"),
        ("(`max_drop=0.5`)", "(--max-drop 0.5)"),
        ("run `hgedge fit` with `keep_sources=True`", "run `hgedge fit` with --keep-sources"),
        ("`keep_sources=False`", "--no-keep-sources"),
        ("leave out `forward_only`", "leave out --method cma"),
        ("`task=''`: must be", "--task '': must be"),
        ("`limit=0` is of Python", "`limit=0` is of Python"),
        ("save `model.state_dict()`", "save `model.state_dict()`"),
        ("run `pip install 'hgprompt-edge[sign]'`", "run `pip install 'hgprompt-edge[sign]'`"),
    ],
)
def test_the_command_line_prints_options(text: str, printed: str) -> None:
    assert as_options(text) == printed


NAMES = st.sampled_from(sorted(OPTIONS))
ODD = st.text(st.sampled_from("ab `'\"\\=:\n\udcfcé")) | st.text() | NAMES.map(argument)


@given(NAMES, ODD.filter(bool), ODD)
def test_no_value_is_changed(name: str, value: str, rest: str) -> None:
    error = ParameterError(name, value, "use `data`")
    assert as_options(error) == f"{OPTIONS[name]} {value}: use --data"
    assert as_options(ParameterError(name, Path("x", value), "")) == (
        f"{OPTIONS[name]} {Path('x', value)}: "
    )
    assert as_options(FileError(value, "use `data`", "line 1")) == f"{value}, line 1: use --data"
    assert as_options(MismatchError(value, "b", "c", "use `data`")) == (
        f"{value} does not fit b: c; use --data"
    )
    if not any(found[1] in OPTIONS for found in NAMED.finditer(rest)):
        assert as_options(rest) == rest


@given(st.text(string.ascii_lowercase + "_", min_size=1).filter(lambda name: name not in OPTIONS))
def test_what_is_no_parameter_stays(name: str) -> None:
    for text in (f"`{name}`", f"`{name}=1`", f"`{name} data`"):
        assert as_options(text) == text


def test_odd_names_come_through_the_command_line(tmp_path: Path) -> None:
    place = tmp_path / "my `task` 'x' \\ y"
    found = run("fit", "--data", str(place))
    assert found.stderr.startswith(f"hgedge: --data {place}: no such file or folder; name")
    found = run("verify", str(place))
    assert found.stderr.startswith(f"hgedge: {place}: no such model file; make it with `hgedge ex")


# What the code says.


def strings(path: Path) -> Iterator[tuple[str, str]]:
    """All texts of a module, without the help of options, and where they are."""
    tree = ast.parse(path.read_text())
    helps = {
        id(node)
        for call in ast.walk(tree)
        if isinstance(call, ast.keyword) and call.arg == "help"
        for node in ast.walk(call)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in helps:
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value


@functools.cache
def parameters() -> set[str]:
    """Names of parameters and of fields in the library."""
    found = set()
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found |= {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def test_no_text_of_the_library_names_an_option() -> None:
    found = [text for path in LIBRARY for text in strings(path) if re.search("--[a-z]", text[1])]
    assert found == []


def test_errors_name_parameters_that_there_are() -> None:
    named = set()
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            first = node.args[0] if node.args else None
            if node.func.id in ("ParameterError", "argument") and isinstance(first, ast.Constant):
                named.add(first.value)
        for where, text in strings(path):
            for found in NAMED.finditer(text):
                if found[2] is not None and found[1] != "dynamic_img_size":  # of timm
                    assert found[1] in parameters(), where
    assert len(named) > 15
    assert named <= parameters()
    assert named - OPTIONS.keys() == {"limit", "split"}, "those that no command takes"


def test_options_of_parameters_are_options_of_commands() -> None:
    assert OPTIONS.keys() <= parameters()
    known: set[str] = set()
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
    for option in OPTIONS.values():
        assert option.split()[0] in known


def test_the_command_line_itself_names_options() -> None:
    for path in sorted(CLI.rglob("*.py")):
        for where, text in strings(path):
            named = [found[0] for found in NAMED.finditer(text) if found[1] in OPTIONS]
            assert not named or path.name == "parameters.py" or "\n\n" in text, (where, named)
