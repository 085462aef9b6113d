"""Files are whole or absent, and hostile ones are refused by a sentence."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hgprompt_edge import files
from hgprompt_edge.cli.shared.outputs import check_writable
from hgprompt_edge.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_the_old_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pets.hgbundle"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of file systems: FAT and others refuse a second name for a file."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not request.param:
        monkeypatch.setattr(os, "link", refuse)


def write_set(places: list[Path], data: bytes) -> None:
    with files.atomic_paths(*places) as temporary:
        for path in temporary:
            path.write_bytes(data)


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("count", [1, 3])
def test_files_of_a_set_replace_old_ones(tmp_path: Path, count: int) -> None:
    places = [tmp_path / name for name in "abc"[:count]]
    for data in (b"old", b"new"):
        write_set(places, data)
        assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [data] * count


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_all_files_of_a_set_are_replaced_or_none(
    tmp_path: Path, fill_disk: Callable[[int], None], fails_at: int
) -> None:
    places = [tmp_path / name for name in "abc"]
    (tmp_path / "a").write_bytes(b"old a")  # b is new
    (tmp_path / "c").write_bytes(b"old c")
    (tmp_path / "a").chmod(0o640)
    fill_disk(fails_at)
    with pytest.raises(UserError, match="the disk is full"):
        write_set(places, b"new")
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"a": b"old a", "c": b"old c"}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_run_left_goes_after_a_day(tmp_path: Path) -> None:
    day = 24 * 3600
    ages = {
        ".[a].12345678.tmp": day + 60,
        ".[a].abcdefgh.tmp": day - 60,
        ".b.12345678.tmp": 9 * day,
    }
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.onnx").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_set([tmp_path / "[a].onnx"], b"new")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".[a].abcdefgh.tmp", ".b.12345678.tmp", "[a].onnx"}


def test_what_windows_does_not_open_or_flush_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, writable = os.open, set()

    def opened(path: Path, flags: int, *mode: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        descriptor = honest(path, flags, *mode)
        if flags & os.O_RDWR:
            writable.add(descriptor)
        return descriptor

    def flush(descriptor: int) -> None:
        if descriptor not in writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(os, "name", "not posix")
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", flush)
    files.write_bytes(tmp_path / "a.onnx", b"new")
    assert (tmp_path / "a.onnx").read_bytes() == b"new"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist"):
        files.write_bytes(tmp_path / "nowhere" / "a.onnx", b"")


@given(
    values=hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)),
    note=st.text(max_size=30),
)
def test_round_trip_and_same_content_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, note: str
) -> None:
    folder = tmp_path_factory.mktemp("roundtrip")
    metadata = {f"key{i}": note for i in range(6)}
    for name in ("a", "b"):
        files.write_safetensors(folder / name, {"x": values, "y": values}, metadata)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    tensors, found = files.read_safetensors(folder / "a")
    np.testing.assert_array_equal(tensors["x"], values)
    assert found == metadata


HOSTILE = {
    "empty": b"",
    "short": b"\x08\x00",
    "text": b"this is not a tensor file at all",
    "gigabyte header": struct.pack("<Q", 5 << 30) + b"{}",
    "header past the end": struct.pack("<Q", 1000) + b"{}",
    "not json": struct.pack("<Q", 8) + b"{{{{{{{{",
    "a list": struct.pack("<Q", 8) + b"[1,2,3] ",
    "offsets past the end": (lambda header: struct.pack("<Q", len(header)) + header)(
        b'{"prompt":{"dtype":"F32","shape":[9,9],"data_offsets":[0,324]}}'
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"hostile\.safetensors") as caught:
        files.read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_an_unwritable_folder_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="--output: cannot write to the folder"):
        check_writable(tmp_path / "file", "--output")
