"""`images.zip` with `labels.csv`: where they lie, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgprompt_edge.data import load_task
from hgprompt_edge.data.layouts import zipped as zipped_module
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

RULE = Preprocessing(8, 8)
ROWS = [
    (f"{split}/{label}/{i}.png", label, split)
    for split, count in (("train", 10), ("test", 4))
    for label in ("a", "b")
    for i in range(count)
]


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(rows: list[tuple[str, ...]], header: str = "file,label,split") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def pack(path: Path, files: list[str], extra: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for seed, name in enumerate(files):
            archive.writestr(name, png(seed))
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return path


def whole(folder: Path, labels: str | None = None) -> Path:
    pack(folder / "images.zip", [row[0] for row in ROWS])
    (folder / "labels.csv").write_text(table(ROWS) if labels is None else labels, "utf-8")
    return folder


def test_folder_with_both(tmp_path: Path) -> None:
    task = load_task(None, RULE, data=whole(tmp_path / "mine"))
    assert (task.name, task.family, task.flips) == ("mine", "", True)
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 8)
    assert {name.split("/")[0] for name in task.test.names} == {"test"}
    for name, pixels in zip(task.test.names, task.test.pixels, strict=True):
        seed = [row[0] for row in ROWS].index(name)
        expected = np.asarray(Image.open(io.BytesIO(png(seed))))
        np.testing.assert_array_equal(pixels, expected)


def test_path_of_the_zip_with_labels_beside_or_inside(tmp_path: Path) -> None:
    beside = load_task(None, RULE, data=whole(tmp_path / "mine") / "images.zip")
    assert beside.name == "mine"
    path = pack(tmp_path / "own.zip", [row[0] for row in ROWS], {"labels.csv": table(ROWS)})
    inside = load_task(None, RULE, data=path)
    assert inside.name == "own"
    assert inside.digest == beside.digest


def test_validation_rows_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = [
        (f, label, "val" if "train/a/0" in f or "train/b/0" in f else s) for f, label, s in ROWS
    ]
    task = load_task(None, RULE, data=whole(tmp_path, "\ufeff" + table(rows)))
    assert sorted(task.validation.names) == ["train/a/0.png", "train/b/0.png"]
    assert len(task.train) == 18


@pytest.mark.parametrize(
    ("name", "family", "flips"),
    [
        ("gtsrb", "signs", False),
        ("sign-language-digits", "digits", False),
        ("dtd", "texture", True),
    ],
)
def test_names_of_known_sets(tmp_path: Path, name: str, family: str, flips: bool) -> None:
    task = load_task(None, RULE, data=whole(tmp_path / name))
    assert (task.name, task.family, task.flips) == (name, family, flips)
    relabelled = load_task("other", RULE, data=tmp_path / name)
    assert (relabelled.name, relabelled.family, relabelled.flips) == ("other", family, flips)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (table([*ROWS, ("gone.png", "a", "train")]), r"names 1 file\(s\) .* such as gone\.png"),
        (table([row[:2] for row in ROWS], "file,label"), "no column split"),
        (table(ROWS, "path,label,split"), "no column file"),
        ("", "no column file"),
        (table([("train/a/0.png", "a", "extra")]), "line 2: unknown split 'extra'"),
        (table([("train/a/0.png", "", "train")]), "line 2: no label"),
        (table([("train/a/0.png", "a")]), "line 2: unknown split ''"),
        (table([*ROWS, ROWS[0]]), r"train/a/0\.png listed more than once"),
        (table([*ROWS, (ROWS[0][0], "b", "test")]), r"train/a/0\.png listed more than once"),
        (table([row for row in ROWS if row[1] == "a"]), r"only one class \('a'\)"),
        (table([row for row in ROWS if row[2] == "test"]), "no training images"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, labels: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_task("x", RULE, data=whole(tmp_path, labels))
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    whole(tmp_path / "a")
    (tmp_path / "a" / "labels.csv").unlink()
    with pytest.raises(UserError, match=r"images\.zip: no labels\.csv in it or beside it"):
        load_task(None, RULE, data=tmp_path / "a")
    whole(tmp_path / "b")
    (tmp_path / "b" / "labels.csv").write_bytes(b"\xff\xfe\x00,\x80")
    with pytest.raises(UserError, match=r"labels\.csv: cannot be read as UTF-8"):
        load_task(None, RULE, data=tmp_path / "b")
    whole(tmp_path / "c")
    data = (tmp_path / "c" / "images.zip").read_bytes()
    (tmp_path / "c" / "images.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"images\.zip: not a readable zip file"):
        load_task(None, RULE, data=tmp_path / "c")


def test_damaged_members_are_unreadable_images(tmp_path: Path) -> None:
    path = whole(tmp_path) / "images.zip"
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("train/a/3.png").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 60 : offset + 80] = bytes(20)
    path.write_bytes(bytes(data))
    (found,) = load_task(None, RULE, data=tmp_path).unreadable
    assert str(found).startswith("train/a/3.png: cannot be unpacked")


def test_images_that_the_table_does_not_name_are_left_out_by_name(tmp_path: Path) -> None:
    path = whole(tmp_path) / "images.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/a/extra.png", b"x")
        archive.writestr("__MACOSX/train/a/._extra.png", b"x")
    (found,) = load_task(None, RULE, data=tmp_path).left_out
    assert str(found) == "train/a/extra.png: not in labels.csv"


def test_zip_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped_module, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(UserError, match=r"28 of 28 images cannot be read.*unpacks to \d+ bytes"):
        load_task(None, RULE, data=whole(tmp_path))


def test_real_sets(shared: Path) -> None:
    for name, classes, train, test in (("gtsrb", 43, 1000, 1000), ("weather4", 4, 652, 447)):
        task = load_task(None, RULE, data=shared / "assets" / "datasets" / name)
        assert len(task.classes) == classes
        assert len(task.train) + len(task.validation) == train
        assert len(task.test) == test
        assert not {*task.train.names} & {*task.validation.names}
        assert task.unreadable == ()
