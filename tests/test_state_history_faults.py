"""Kills, full disks, damage, other files: the history serves what was committed or says why not."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from histories import AS_ROOT, BANK, INITIAL, ROOT, in_child, learn, mix, open_history
from hypothesis import given, settings
from hypothesis import strategies as st

from hgprompt_edge.errors import UserError
from hgprompt_edge.state.history import FILE, History


def kill(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "kills.json"
    script = [sys.executable, str(ROOT / "benchmarks"), "kills"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["--kills", str(kills), "--seed", str(kills), "--json", str(path)]
    subprocess.run([*script, *words], check=True, env=environment)
    counts = json.loads(path.read_text())
    assert counts["kills"] == kills
    assert counts["versions"] > kills
    assert counts["lost"] == counts["unreadable"] == counts["wrong"] == 0


def test_killed_at_random_moments_it_serves_what_was_last_committed(tmp_path: Path) -> None:
    kill(tmp_path, 25)


@pytest.mark.slow
def test_killed_at_five_hundred_random_moments(tmp_path: Path) -> None:
    kill(tmp_path, 500)


FILL = """
with History(state, BANK, INITIAL) as history:
    head = np.ones((100, 100), np.float32)
    print(history.current().id, flush=True)
    try:
        while True:
            print(history.commit(INITIAL, method="x", images=1, figures={}, head_weight=head).id)
    except UserError as error:
        print(error)
    print(history.current().id)
    with History(state, BANK, INITIAL, read_only=True) as reader:
        print(reader.current().id)
"""


def check_full(lines: list[str], folder: Path) -> None:
    *committed, message, current, read = lines
    assert "the disk is full" in message
    assert "the versions before are kept" in message
    assert len(committed) > 3
    assert committed[-1] == current == read
    with open_history(folder) as history:
        assert history.current().id == int(current)
        assert learn(history, 0.6).id == int(current) + 1


def test_a_file_that_cannot_grow_keeps_what_it_holds(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    child = in_child(FILL, tmp_path, preexec_fn=limit)
    check_full(child.communicate()[0].splitlines(), tmp_path)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not AS_ROOT or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1000)):
            pass


def test_a_full_disk_keeps_what_it_holds_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(200_000))
        lines = in_child(FILL, disk).communicate()[0].splitlines()
        with open_history(disk, read_only=True) as history:
            assert history.current().id == int(lines[-1])
        ballast.unlink()
        check_full(lines, disk)
        fill(disk / "more")
        with open_history(disk, read_only=True) as history:  # no room for SQLite's own files
            assert history.current().weights.tolist() == mix(0.6).tolist()
        with pytest.raises(UserError, match="the disk is full"):
            learn(open_history(disk), 0.7)


KILLED = """
import os
history = History(state, BANK, INITIAL)
history.commit(INITIAL, method="x", images=1, figures={})
os.kill(os.getpid(), 9)
"""
# Imported before, since nobody may not be able to read the interpreter's own files.
AS_NOBODY = "import filelock, os; os.setgid(65534); os.setuid(65534)\n" if AS_ROOT else ""


@pytest.mark.parametrize("tidy", [True, False])
def test_a_folder_that_cannot_be_written_is_read_and_refused_for_writing(tidy: bool) -> None:
    code = """
from hgprompt_edge.state.lock import only_one

with History(state, BANK, INITIAL, read_only=True) as history:
    print(history.current().id, history.changed())
for make in (
    lambda: History(state, BANK, INITIAL),
    lambda: History(state / "new", BANK, INITIAL),
    lambda: history.exclusive().__enter__(),
    lambda: only_one(state, "device").__enter__(),
):
    try:
        make()
    except UserError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        folder, state = Path(name), Path(name) / "state"
        in_child(KILLED, folder).wait()
        if tidy:
            open_history(folder).close()
        for path in state.iterdir():
            path.chmod(0o444)
        folder.chmod(0o755)
        state.chmod(0o555)
        first, *messages = in_child(AS_NOBODY + code, folder).communicate()[0].splitlines()
        state.chmod(0o755)
    assert first == "2 False"
    assert len(messages) == 4
    assert "history.sqlite: read-only; give a state folder that can be written" in messages[0]
    assert "cannot be made or opened (permission denied)" in messages[1]
    assert "state: cannot be locked (permission denied); name a state folder" in messages[2]
    assert "cannot be locked (permission denied); copy the folder to where" in messages[3]


def test_folders_above_the_state_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        History(tmp_path / "typo" / "state", BANK, INITIAL)
    assert not list(tmp_path.iterdir())


def change(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "state" / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_histories_of_others_are_refused(tmp_path: Path, read_only: bool) -> None:
    state = tmp_path / "state"
    with open_history(tmp_path, classes=("cat", "dog")) as history:
        learn(history, 0.6)
    before = (state / FILE).read_bytes()
    with pytest.raises(
        UserError, match=r"state does not fit this model: .*another bank; name another state folder"
    ):
        History(state, "cd" * 32, INITIAL, read_only=read_only)
    with pytest.raises(UserError, match="with other classes"):
        open_history(tmp_path, classes=("dog", "cat"), read_only=read_only)
    open_history(tmp_path, classes=("cat", "dog"), read_only=read_only).close()
    assert (state / FILE).read_bytes() == before
    change(tmp_path, "PRAGMA user_version = 2")
    with pytest.raises(UserError, match=r"format 2 is newer .*\(1\); upgrade hgprompt-edge"):
        open_history(tmp_path, classes=("cat", "dog"), read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_what_was_learned_from_pictures_of_another_rule_is_refused(
    tmp_path: Path, read_only: bool
) -> None:
    with open_history(tmp_path, resize="center") as history:
        learn(history, 0.6)
    open_history(tmp_path, resize="center", read_only=read_only).close()
    with pytest.raises(UserError, match="a model with another resize rule than 'squash'"):
        open_history(tmp_path, resize="squash", read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_other_files_under_its_name_are_refused_and_left_alone(
    tmp_path: Path, read_only: bool
) -> None:
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / FILE
    path.write_bytes(b"these are holiday notes, and no database at all" * 50)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not a history of hgedge; name another state folder"):
        open_history(tmp_path, read_only=read_only)
    assert path.read_bytes() == before
    path.unlink()
    change(tmp_path, "CREATE TABLE photos (name TEXT)")
    with pytest.raises(UserError, match="not a history of hgedge; name another state folder"):
        open_history(tmp_path, read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_history_with_other_columns_is_refused(tmp_path: Path, read_only: bool) -> None:
    open_history(tmp_path).close()
    change(tmp_path, "ALTER TABLE version RENAME COLUMN facts TO figures")
    with pytest.raises(UserError, match=r"history.sqlite: unusable \(no such column: facts\)"):
        open_history(tmp_path, read_only=read_only).current()


def test_an_empty_file_is_a_history_that_was_not_made_yet(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE).touch()
    with open_history(tmp_path, read_only=True) as history:
        assert history.current().id == 1
    with open_history(tmp_path) as history:
        assert learn(history, 0.6).id == 2


def test_damaged_versions_are_passed_over(tmp_path: Path) -> None:
    with open_history(tmp_path) as history:
        learn(history, 0.6), learn(history, 0.7), learn(history, 0.8)
    change(tmp_path, "UPDATE version SET arrays = (SELECT arrays FROM version) WHERE id = 4")
    with open_history(tmp_path) as history:
        assert history.current().id == 3
        assert [version.id for version in history.versions()] == [1, 2, 3]
        new = learn(history, 0.9)
        assert (new.id, new.parent) == (5, 3)
        with pytest.raises(UserError, match="has no version 4"):
            history.rollback(4)
    change(tmp_path, "UPDATE version SET id = 7 WHERE id = 3")
    with open_history(tmp_path) as history:
        assert [version.id for version in history.versions()] == [1, 2, 5]
    for statement in ("facts = 8", "facts = NULL", "sha256 = arrays"):
        change(tmp_path, f"UPDATE version SET {statement}")
        with open_history(tmp_path) as history:
            assert history.current().weights.tolist() == INITIAL.tolist()
            assert len(history.versions()) == 1


@given(data=st.data())
@settings(max_examples=40)
def test_any_damage_to_the_bytes_is_a_sentence_or_leaves_whole_versions(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        with open_history(Path(name)) as history:
            head = np.full((40, 50), 2, np.float32)  # longer than a page of the file
            versions = [history.current()]
            versions += [
                learn(history, n / 8, head_weight=head if n % 2 else None) for n in range(6)
            ]
        path = Path(name) / "state" / FILE
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.sampled_from([1, 8, 512, 5000]))
        content[place : place + length] = bytes(
            byte ^ data.draw(st.sampled_from([1, 0x80, 0xFF]))
            for byte in content[place : place + length][:1]
        ) + bytes(len(content[place : place + length]) - 1)
        path.write_bytes(content)
        for read_only in (True, False):
            with (
                suppress(UserError),
                open_history(Path(name), read_only=read_only) as history,
            ):
                found = [history.current(), *history.versions()]
                whole = {repr(version) for version in versions}
                assert all(
                    repr(v) in whole or v.weights.tolist() == INITIAL.tolist() for v in found
                )
