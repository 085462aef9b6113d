"""`train800.txt`, `val200.txt`, `test.txt`: what is taken from them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import listed, write_list

from hgprompt_edge.data import load_task
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

RULE = Preprocessing(8, 8)


def rewrite(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_both_in_one_list_is_split_by_the_seed(tmp_path: Path) -> None:
    write_list(tmp_path, "train800val200", [i % 4 for i in range(40)])
    write_list(tmp_path, "test", [0, 1, 2, 3], first=100)
    task = load_task("kitti", RULE, data=tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (32, 8, 4)
    other = load_task("kitti", RULE, data=tmp_path, seed=1)
    assert other.validation.names != task.validation.names
    # Beside the two published parts it says the same again, and is not read.
    listed(tmp_path, 4)
    published = load_task("kitti", RULE, data=tmp_path)
    assert {name.split("/")[1] for name in published.train.names} == {"train800"}


def test_classes_without_a_training_image_keep_their_place(tmp_path: Path) -> None:
    write_list(tmp_path, "train800", [0, 0, 3, 3])
    write_list(tmp_path, "val200", [0, 1], first=10)
    write_list(tmp_path, "test", [2, 3], first=20)
    with pytest.warns(UserWarning, match=r"no training image of 2 of the 4 classes \(vehicle at"):
        task = load_task("kitti", RULE, data=tmp_path)
    assert len(task.classes) == 4
    assert task.train.labels.tolist() == [0, 0, 3, 3]
    assert task.validation.labels.tolist() == [0, 1]
    assert task.test.labels.tolist() == [2, 3]


def test_own_lists_are_numbered_or_named(tmp_path: Path) -> None:
    folder = listed(tmp_path / "mine", 11)
    task = load_task(None, RULE, data=folder)
    assert (task.name, task.family) == ("mine", "")
    assert task.classes == tuple(str(label) for label in range(11))
    assert task.test.labels.tolist() == list(range(11))
    rewrite(folder / "classes.txt", *(f"kind {10 - label}" for label in range(11)), "", " ")
    named = load_task(None, RULE, data=folder)
    assert named.classes == tuple(f"kind {10 - label}" for label in range(11))
    assert named.test.labels.tolist() == list(range(11))


def test_paths_with_spaces_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = listed(tmp_path, 4)
    (folder / "images/test/000000.png").rename(folder / "images/test/my photo.png")
    lines = (folder / "test.txt").read_text().splitlines()
    lines[0] = "\ufeffimages/test/my photo.png\t0 "
    rewrite(folder / "test.txt", *lines, "", "")
    assert load_task("kitti", RULE, data=folder).test.names[0] == "images/test/my photo.png"


def test_an_image_that_trains_and_tests_only_tests(tmp_path: Path) -> None:
    folder = listed(tmp_path, 4)
    lines = (folder / "test.txt").read_text().splitlines()
    train = (folder / "train800.txt").read_text().splitlines()
    rewrite(folder / "train800.txt", *train, *lines[:3])
    with pytest.warns(UserWarning, match=r"3 image\(s\) of test\.txt are in the training lists"):
        task = load_task("kitti", RULE, data=folder)
    assert (len(task.train), len(task.test)) == (8, 4)
    assert not {*task.train.names} & {*task.test.names}
    rewrite(folder / "train800.txt", *train, *train[:2])
    with pytest.warns(UserWarning, match=r"2 repeated row\(s\) count once"):
        assert len(load_task("kitti", RULE, data=folder).train) == 8


def test_one_image_under_two_spellings_of_its_path_is_one(tmp_path: Path) -> None:
    folder = listed(tmp_path, 4)
    train = (folder / "train800.txt").read_text().splitlines()
    other = ["./images/test/000000.png 0", "images//val200/../test/000001.png 1"]
    rewrite(folder / "train800.txt", *train, *other)
    with pytest.warns(UserWarning, match=r"2 image\(s\) of test\.txt are in the training lists"):
        task = load_task("kitti", RULE, data=folder)
    assert (len(task.train), len(task.test)) == (8, 4)


def test_a_folder_of_several_tasks_wants_a_name(tmp_path: Path) -> None:
    for name in ("kitti", "dmlab"):
        listed(tmp_path / "vtab-1k" / name, 4)
    with pytest.raises(
        UserError, match=r"holds 2 data set\(s\), such as dmlab, instead of class folders"
    ):
        load_task(None, RULE, data=tmp_path / "vtab-1k")
    assert load_task("kitti", RULE, data=tmp_path / "vtab-1k").name == "kitti"


BAD_LISTS = {
    "missing images": (
        {"val200.txt": ["images/gone.png 1", "images/lost.png 2"]},
        r"val200\.txt: names 2 image\(s\) that are not in .*, such as images/gone\.png; unpack",
    ),
    "a label outside": (
        {"test.txt": ["images/test/000000.png 0", "images/test/000001.png 4"]},
        r"test\.txt, line 2: the class 4 is not one of 0 to 3, the classes of KITTI-Distance; corr",
    ),
    "a negative label": ({"test.txt": ["images/test/000000.png -1"]}, "line 1: not a path and the"),
    "no label": ({"train800.txt": ["images/train800/000000.png"]}, "line 1: not a path and the"),
    "no path": ({"train800.txt": ["7"]}, r"line 1: not a path and the number of a class \(7\)"),
    "a path out of the folder": (
        {"test.txt": ["images/../../a.png 0"]},
        r"line 1: images/\.\./\.\./a\.png is not below the folder of the list; write it as images/",
    ),
    "an absolute path": ({"test.txt": ["/images/a.png 0"]}, "line 1: /images/a.png is not below"),
    "a name": ({"test.txt": ["images/test/000000.png cat"]}, "line 1: not a path and the number"),
    "an endless number": ({"test.txt": ["a.png " + "1" * 5000]}, "line 1: not a path and the"),
    "an empty list": ({"test.txt": ["", " "]}, r"test\.txt: is empty; copy it again"),
    "two classes": (
        {"val200.txt": ["images/val200/000000.png 0", "images/val200/000000.png 1"]},
        r"val200\.txt, line 2: images/val200/000000\.png has the class 1, and 0 in .*, line 1; cor",
    ),
    "one class": (
        {"train800.txt": ["images/train800/000000.png 1", "images/train800/000004.png 1"]},
        r"only one class \('vehicle at 8 to 20 m'\)",
    ),
    "too few class names": ({"classes.txt": ["a", "b"]}, r"classes\.txt: names 2 classes, and KI"),
    "a blank line among class names": (
        {"classes.txt": ["a", "b", "", "c", "d", ""]},
        r"classes\.txt, line 3: is blank, so that the classes after it may be misnumbered; name",
    ),
    "equal class names": ({"classes.txt": ["a", "b", "a", "c"]}, r"classes\.txt: names a twice"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_are_refused(tmp_path: Path, name: str) -> None:
    files, match = BAD_LISTS[name]
    folder = listed(tmp_path, 4)
    for file, lines in files.items():
        rewrite(folder / file, *lines)
    with pytest.raises(UserError, match=match) as caught:
        load_task("kitti", RULE, data=folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["val200.txt", "test.txt"])
def test_lists_that_are_missing_or_no_text(tmp_path: Path, name: str) -> None:
    folder = listed(tmp_path, 4)
    (folder / name).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=rf"{name}: cannot be read as UTF-8 text"):
        load_task("kitti", RULE, data=folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"no {name} beside the other lists"):
        load_task("kitti", RULE, data=folder)


def test_own_lists_with_a_number_that_cannot_be_a_class(tmp_path: Path) -> None:
    folder = listed(tmp_path / "mine", 4)
    rewrite(folder / "test.txt", "images/test/000000.png 999999999")
    with pytest.raises(UserError, match=r"test\.txt, line 1: the class 999999999 is outside of 0"):
        load_task(None, RULE, data=folder)
