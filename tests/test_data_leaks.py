"""Copies between parts and classes are counted and named; groups stay on one side of a split."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import scene
from PIL import Image, ImageOps

from hgprompt_edge.data import Task, find_task, load_task
from hgprompt_edge.data.leaks import Leaks, find_leaks
from hgprompt_edge.data.split import carve_test_groups, split, split_groups
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

RULE = Preprocessing(8, 8)
CLASSES = ("cat", "dog")


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def parts(folder: Path, train: int = 8, test: int = 5) -> Path:
    """Lay out different pictures as PART/CLASS/NUMBER.png."""
    for k, label in enumerate(CLASSES):
        for i in range(train + test):
            part = "train" if i < train else "test"
            save(folder / part / label / f"{i}.png", scene(100 * k + i))
    return folder


def leaks_of(folder: Path, **options: bool) -> tuple[Task, Leaks]:
    task = load_task(None, RULE, data=folder, **options)
    leaks = find_leaks(task)
    assert leaks is not None
    return task, leaks


def names(copies: object) -> dict[str, str]:
    return {copy.name: copy.of for copy in copies}  # type: ignore[attr-defined]


def test_different_pictures_are_no_leaks(tmp_path: Path) -> None:
    _, leaks = leaks_of(parts(tmp_path))
    assert not leaks


def test_the_same_pixels_under_other_names_and_formats(tmp_path: Path) -> None:
    folder = parts(tmp_path)
    save(folder / "test/cat/copy-1.png", scene(2), compress_level=0)
    save(folder / "test/dog/copy-2.bmp", scene(105))
    task, leaks = leaks_of(folder)
    assert names(leaks.test) == {
        "test/cat/copy-1.png": "train/cat/2.png",
        "test/dog/copy-2.bmp": "train/dog/5.png",
    }
    assert all(copy.same and copy.part == "test" for copy in leaks.test)
    held = set(task.validation.names)
    assert {copy.of_part for copy in leaks.test if copy.of in held} <= {"validation"}
    assert not leaks.validation
    assert not leaks.classes


def test_a_picture_in_two_classes(tmp_path: Path) -> None:
    folder = parts(tmp_path)
    save(folder / "train/cat/also.bmp", scene(103))
    _, leaks = leaks_of(folder)
    (copy,) = leaks.classes
    assert {copy.name, copy.of} == {"train/cat/also.bmp", "train/dog/3.png"}
    assert {copy.label, copy.of_label} == set(CLASSES)
    assert copy.same


def test_many_copies_of_one_picture_are_one_pair_each(tmp_path: Path) -> None:
    folder = parts(tmp_path, train=4)
    for i in range(6):
        save(folder / f"test/cat/again-{i}.png", scene(1), compress_level=i)
    _, leaks = leaks_of(folder)
    assert names(leaks.test) == {f"test/cat/again-{i}.png": "train/cat/1.png" for i in range(6)}


def test_black_pictures_are_no_copies_of_each_other(tmp_path: Path) -> None:
    folder = parts(tmp_path)
    for part in ("train", "test"):
        for label in CLASSES:
            save(folder / part / label / "black.png", Image.new("RGB", (60, 60)))
    assert not leaks_of(folder)[1]


def test_near_copies_are_told_from_equal_pixels(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    folder = parts(tmp_path)
    save(folder / "test/cat/mirrored.jpg", ImageOps.mirror(scene(3)), quality=60)
    save(folder / "test/cat/half.png", scene(4).resize((80, 60)))
    save(folder / "test/cat/same.bmp", scene(5))
    _, leaks = leaks_of(folder)
    assert leaks.near
    assert names(leaks.test) == {
        "test/cat/mirrored.jpg": "train/cat/3.png",
        "test/cat/half.png": "train/cat/4.png",
        "test/cat/same.bmp": "train/cat/5.png",
    }
    assert [copy.name for copy in leaks.test if copy.same] == ["test/cat/same.bmp"]


def test_without_the_library_equal_pixels_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgprompt_edge.images.picture_hash._library", lambda: None)
    folder = parts(tmp_path)
    save(folder / "test/cat/half.png", scene(4).resize((80, 60)))
    save(folder / "test/cat/same.bmp", scene(5))
    _, leaks = leaks_of(folder)
    assert not leaks.near
    assert names(leaks.test) == {"test/cat/same.bmp": "train/cat/5.png"}
    with pytest.raises(UserError, match="`group_by_hash` needs ImageHash"):
        find_task(None, data=folder, group_by_hash=True)


def test_drawn_tasks_are_not_searched() -> None:
    assert find_leaks(load_task("generated-count", RULE, limit=30)) is None
    with pytest.raises(UserError, match="`group_by_hash`: generated-count is drawn by hgedge"):
        find_task("generated-count", group_by_hash=True)


def test_a_drawn_split_keeps_copies_on_one_side(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    for k, label in enumerate(CLASSES):
        for i in range(10):
            picture = scene(100 * k + i)
            save(tmp_path / label / f"{i}-a.png", picture)
            save(tmp_path / label / f"{i}-b.jpg", ImageOps.mirror(picture), quality=80)
    plain, leaks = leaks_of(tmp_path)
    assert leaks.test
    assert leaks.validation
    task, leaks = leaks_of(tmp_path, group_by_hash=True)
    assert task.grouped
    assert not leaks
    sizes = [len(images) for images in (task.train, task.validation, task.test)]
    assert sizes == [28, 4, 8]  # of 16 and 20 a class: whole pairs
    together = {*task.train.names, *task.validation.names, *task.test.names}
    assert together == {*plain.train.names, *plain.validation.names, *plain.test.names}
    assert set(task.train.labels) == set(task.validation.labels) == set(task.test.labels)


def test_a_given_test_part_stays_and_its_copies_do_not_train(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    folder = parts(tmp_path, train=10)
    save(folder / "test/cat/half.png", scene(4).resize((80, 60)))
    before = load_task(None, RULE, data=folder)
    task, leaks = leaks_of(folder, group_by_hash=True)
    assert not leaks
    assert task.test.names == before.test.names
    assert [str(item) for item in task.left_out] == ["train/cat/4.png: a copy of a test image"]
    assert "train/cat/4.png" not in {*task.train.names, *task.validation.names}


def test_a_given_validation_part_stays_and_its_copies_do_not_train(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    folder = parts(tmp_path)
    for k, label in enumerate(CLASSES):
        save(folder / "val" / label / "new.png", scene(100 * k + 50))
        save(folder / "val" / label / "old.png", scene(100 * k + 3))
        save(folder / "val" / label / "tested.png", scene(100 * k + 9))
    task, leaks = leaks_of(folder, group_by_hash=True)
    assert not leaks
    assert sorted(task.validation.names) == [
        f"val/{label}/{name}.png" for label in CLASSES for name in ("new", "old")
    ]
    assert sorted((item.name, item.reason) for item in task.left_out) == [
        ("train/cat/3.png", "a copy of a validation image"),
        ("train/dog/3.png", "a copy of a validation image"),
        ("val/cat/tested.png", "a copy of a test image"),
        ("val/dog/tested.png", "a copy of a test image"),
    ]


def test_a_class_of_copies_cannot_be_split(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    for i in range(8):
        save(tmp_path / "one" / "cat" / f"{i}.png", scene(i))
        save(tmp_path / "one" / "dog" / f"{i}.jpg", scene(100), quality=40 + 7 * i)
    with pytest.raises(
        UserError, match=r"the 8 training images of the class dog are one group \(such as dog/0"
    ):
        load_task(None, RULE, data=tmp_path / "one", group_by_hash=True)
    folder = parts(tmp_path / "two")
    for i in range(8):
        save(folder / f"test/cat/copy-{i}.png", scene(i))
    with pytest.raises(
        UserError, match="all 8 training images of the class cat are copies of validation or test"
    ):
        load_task(None, RULE, data=folder, group_by_hash=True)


def packed(folder: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, (file, *_) in enumerate(rows):
            save(folder / "picture.png", scene(number, (40, 40)))
            archive.write(folder / "picture.png", file)
    lines = ["file,label,split,group", *(",".join(row) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def grouped_rows(per_group: int = 3) -> list[tuple[str, str, str, str]]:
    return [
        (f"{label}/{object_}-{i}.png", label, "train", f"{label}{object_}")
        for label in CLASSES
        for object_ in range(6)
        for i in range(per_group)
    ]


def test_groups_of_the_table_stay_together(tmp_path: Path) -> None:
    rows = grouped_rows()
    task = load_task(None, RULE, data=packed(tmp_path, rows))
    group_of = {row[0]: row[3] for row in rows}
    train, held = (
        {group_of[name] for name in images.names} for images in (task.train, task.validation)
    )
    assert not train & held
    assert len(task.validation) == 6
    assert set(task.validation.labels) == {0, 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((4, "train", ""), "labels.csv, line 6: no group; fill it in"),
        ((4, "test", "cat1"), r"the group cat1 is in two splits \(cat/1-0.png in train, cat/1-1"),
    ],
)
def test_groups_that_are_refused(change: tuple[int, str, str], words: str, tmp_path: Path) -> None:
    rows = grouped_rows()
    place, split_name, group = change
    rows[place] = (*rows[place][:2], split_name, group)
    with pytest.raises(UserError, match=words):
        find_task(None, data=packed(tmp_path, rows))


def test_a_class_of_one_group_is_refused_by_name(tmp_path: Path) -> None:
    rows = [(*row[:3], "all" if row[1] == "dog" else row[3]) for row in grouped_rows()]
    with pytest.raises(UserError, match="18 training images of the class dog are one group"):
        load_task(None, RULE, data=packed(tmp_path, rows))


def test_a_group_that_two_classes_need_on_both_sides_is_refused(tmp_path: Path) -> None:
    rows = [(*row[:3], "ab"[i % 2]) for i, row in enumerate(grouped_rows())]
    task = load_task(None, RULE, data=packed(tmp_path, rows))
    assert len(task.validation) == 18
    rows = [(*row[:3], "a" if row[1] == "cat" else "ab"[i % 2]) for i, row in enumerate(rows)]
    with pytest.raises(UserError, match="cat are one group"):
        load_task(None, RULE, data=packed(tmp_path, rows))


members = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=1, max_size=80)


@given(members, st.integers(0, 9))
def test_no_group_is_on_both_sides(drawn: list[tuple[int, int]], seed: int) -> None:
    labels, groups = np.array(drawn).T
    for train, held in (
        split_groups(labels, groups, seed),
        carve_test_groups(labels, groups, share=0.2),
    ):
        assert sorted([*train, *held]) == list(range(len(labels)))
        assert not set(groups[train]) & set(groups[held])
        assert set(labels[train]) == set(labels)


@given(members, st.integers(0, 9))
def test_classes_of_their_own_groups_are_on_both_sides(
    drawn: list[tuple[int, int]], seed: int
) -> None:
    labels, groups = np.array(drawn).T
    groups = 100 * labels + groups
    _, held = split_groups(labels, groups, seed)
    for label in np.unique(labels):
        mine = labels == label
        if len(np.unique(groups[mine])) > 1:
            assert label in labels[held]
            largest = np.bincount(groups[mine]).max()
            assert np.sum(labels[held] == label) <= max(0.2 * mine.sum() + 1, largest)


@given(members, st.integers(0, 9))
def test_groups_of_one_are_split_as_images_are(drawn: list[tuple[int, int]], seed: int) -> None:
    labels = np.array(drawn)[:, 0]
    _, held = split_groups(labels, np.arange(len(labels)), seed)
    _, plain = split(labels, seed)
    assert np.bincount(labels[held]).tolist() == np.bincount(labels[plain]).tolist()
