"""Folders of class folders: layouts, splits, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgprompt_edge.data import Task, load_task
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing, read_image

RULE = Preprocessing(8, 8)


def fill(folder: Path, count: int, seed: int = 0, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, count, *folder.name.encode()])
    for i in range(count):
        pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.{suffix}")


def names(task: Task) -> dict[str, set[str]]:
    return {key: set(getattr(task, key).names) for key in ("train", "validation", "test")}


def check(task: Task) -> None:
    """No name in two splits; arrays fit each other; labels fit the classes."""
    found = names(task)
    total = sum(len(getattr(task, key)) for key in found)
    assert len(set().union(*found.values())) == total
    for key in found:
        images = getattr(task, key)
        assert images.pixels.dtype == np.uint8
        assert images.labels.dtype == np.int64
        assert images.pixels.shape == (len(images), 8, 8, 3)
        assert len(images.names) == len(images.labels) == len(images)
        assert set(images.labels) <= set(range(len(task.classes)))


def test_class_folders(tmp_path: Path) -> None:
    for name, count in (("cat", 50), ("dog", 30), ("eel", 20)):
        fill(tmp_path / name, count)
    task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert task.name == tmp_path.name
    assert (task.family, task.flips, task.unreadable) == ("", True, ())
    assert task.classes == ("cat", "dog", "eel")
    assert np.bincount(task.test.labels).tolist() == [10, 6, 4]
    assert np.bincount(task.validation.labels).tolist() == [8, 5, 3]
    assert np.bincount(task.train.labels).tolist() == [32, 19, 13]
    for images in (task.train, task.validation, task.test):
        for name, label, pixels in zip(images.names, images.labels, images.pixels, strict=True):
            assert name.split("/")[0] == task.classes[label]
            np.testing.assert_array_equal(pixels, read_image(tmp_path / name, RULE))


def test_seed_moves_validation_and_leaves_test(tmp_path: Path) -> None:
    fill(tmp_path / "a", 40)
    fill(tmp_path / "b", 40)
    first, again, other = (load_task(None, RULE, data=tmp_path, seed=s) for s in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert names(first)["test"] == names(other)["test"]
    assert names(first)["validation"] != names(other)["validation"]


def test_digest_follows_pixels(tmp_path: Path) -> None:
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    before = load_task(None, RULE, data=tmp_path).digest
    fill(tmp_path / "b", 5, seed=1)
    assert load_task(None, RULE, data=tmp_path).digest != before


def test_limit_is_a_stratified_sample(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 60)
    fill(tmp_path / "train" / "b", 20)
    fill(tmp_path / "train" / "rare", 2)
    fill(tmp_path / "test" / "a", 7)
    task = load_task("x", RULE, data=tmp_path, limit=20)
    check(task)
    assert len(task.train) + len(task.validation) == 20
    assert (task.train.labels == 2).sum() == (task.validation.labels == 2).sum() == 1
    assert len(task.test) == 7
    everything = load_task("x", RULE, data=tmp_path, limit=None)
    assert len(everything.train) + len(everything.validation) == 82
    with pytest.raises(UserError, match="`limit=0`: must be at least 1"):
        load_task("x", RULE, data=tmp_path, limit=0)


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val"])
def test_official_splits(tmp_path: Path, word: str) -> None:
    for part, count in (("train", 10), (word, 3), ("test", 4)):
        fill(tmp_path / part / "a", count)
        fill(tmp_path / part / "b", count)
    task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 6, 8)
    assert all(name.startswith(word) for name in task.validation.names)
    small = load_task(None, RULE, data=tmp_path, limit=10)
    assert (len(small.train), len(small.validation), len(small.test)) == (8, 2, 8)


def test_train_alone_and_train_with_validation(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 10)
    fill(tmp_path / "train" / "b", 10)
    alone = load_task(None, RULE, data=tmp_path)
    assert (alone.classes, len(alone.test)) == (("a", "b"), 4)
    fill(tmp_path / "val" / "a", 3)
    both = load_task(None, RULE, data=tmp_path)
    check(both)
    assert (len(both.train), len(both.validation), len(both.test)) == (16, 3, 4)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    for name in ("train", "bus", "test"):
        fill(tmp_path / name, 5)
    assert load_task(None, RULE, data=tmp_path).classes == ("bus", "test", "train")


@pytest.mark.parametrize(
    ("parts", "flat", "left_out", "test"),
    [
        (["train", "test", "extra"], [], "extra", 4),
        (["train", "val", "validation"], [], "validation", 4),
        (["train"], ["test"], "test", 4),
    ],
)
def test_folders_beside_the_splits_are_no_classes(
    tmp_path: Path, parts: list[str], flat: list[str], left_out: str, test: int
) -> None:
    for part in parts:
        fill(tmp_path / part / "cat", 10 if part == "train" else 2)
        fill(tmp_path / part / "dog", 10 if part == "train" else 2)
    for part in flat:
        fill(tmp_path / part, 3)
    with pytest.warns(
        UserWarning, match=f": {left_out} not read, since train is the training part"
    ):
        task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert (task.classes, len(task.test)) == (("cat", "dog"), test)
    assert not any(name.startswith(f"{left_out}/") for name in set().union(*names(task).values()))


def test_a_class_called_train_may_have_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "2024", 5)
    fill(tmp_path / "bus" / "2024", 5)
    assert load_task(None, RULE, data=tmp_path).classes == ("bus", "train")


def test_nested_hidden_and_other_files(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "2024" / "may", 4, suffix="JPG")
    fill(tmp_path / "a" / ".thumbnails", 4)
    fill(tmp_path / "b", 4)
    fill(tmp_path / ".cache", 4)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "b" / "._000.png").write_bytes(b"x")
    (tmp_path / "b" / "notes.txt").write_text("x")
    task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert task.classes == ("a", "b")
    assert len(task.train) + len(task.validation) + len(task.test) == 8
    assert "a/2024/may/000.JPG" in set().union(*names(task).values())


def test_names_of_files_need_not_be_utf8(tmp_path: Path) -> None:
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    try:
        (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "\udcff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    check(load_task(None, RULE, data=tmp_path))


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    calls: list[tuple[int, int]] = []
    load_task(None, RULE, data=tmp_path, progress=lambda *c: calls.append(c))
    assert calls == [(i, 10) for i in range(1, 11)]


def refused(data: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_task(None, RULE, data=data)
    assert "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", r"`data='.*none'`: no such file or folder; name the folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"no class folders with images in it \(it is empty\); lay the images out")
    flat = tmp_path / "flat"
    fill(flat, 3)
    (flat / "notes.txt").write_text("x")
    refused(flat, r"no class folders .*it has 0 folders, 3 images and 1 other file")
    single = tmp_path / "single"
    fill(single / "cat", 3)
    refused(single, r"only one class \('cat'\); a task needs images of at least two classes")
    (single / "dog").mkdir()
    refused(single, r"the class folder 'dog' has no images; add some or remove it")
    fill(single / "dog", 1)
    refused(single, r"only one image of dog; a class needs at least two")
    text = tmp_path / "text.txt"
    text.write_text("x")
    refused(text, r"text\.txt'`: neither a folder nor a zip file")


def test_class_with_one_image_warns_in_official_splits(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "a", 5)
    fill(tmp_path / "train" / "b", 1)
    fill(tmp_path / "test" / "a", 1)
    with pytest.warns(UserWarning, match="only one image of b"):
        task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert (task.train.labels == 1).sum() == 1
    assert (task.validation.labels == 1).sum() == 0


def test_a_part_without_some_of_the_classes_warns(tmp_path: Path) -> None:
    for part, labels in (("train", "abc"), ("val", "ab"), ("test", "a")):
        for label in labels:
            fill(tmp_path / part / label, 4)
    with pytest.warns(UserWarning, match="part has no image of") as warned:
        check(load_task(None, RULE, data=tmp_path))
    assert [str(warning.message).partition(": ")[2] for warning in warned] == [
        "the validation part has no image of c, so it cannot judge it",
        "the test part has no image of b, c, so it says nothing about them",
    ]


@pytest.mark.parametrize("empty", ["test", "test/a", "val"])
def test_a_part_without_images_is_told(tmp_path: Path, empty: str) -> None:
    fill(tmp_path / "train" / "a", 10)
    fill(tmp_path / "train" / "b", 10)
    (tmp_path / empty).mkdir(parents=True)
    part = empty.partition("/")[0]
    told = f": {part} holds no images, so images of train take their place; put some there or"
    with pytest.warns(UserWarning, match=told):
        task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert len(task.test) == 4


def test_class_of_the_test_part_alone_is_refused(tmp_path: Path) -> None:
    for part, labels in (("train", "ab"), ("test", "abc")):
        for label in labels:
            fill(tmp_path / part / label, 4)
    refused(tmp_path, "the test part holds c, of which the training part has no image")


def test_unreadable_images(tmp_path: Path) -> None:
    fill(tmp_path / "a", 100)
    fill(tmp_path / "b", 100)
    (tmp_path / "a" / "003.png").write_bytes(b"\x89PNG")
    (tmp_path / "b" / "099.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert sorted(item.name for item in task.unreadable) == ["a/003.png", "b/099.png"]
    assert len(task.train) + len(task.validation) + len(task.test) == 198
    for i in range(10, 15):
        (tmp_path / "a" / f"{i:03d}.png").write_text("x")
    refused(tmp_path, r"7 of 200 images cannot be read, more than 1 % \(.*png: .*; \.\.\.\)")


def test_one_unreadable_image_of_a_few_is_skipped_two_are_too_many(tmp_path: Path) -> None:
    fill(tmp_path / "a", 9)
    fill(tmp_path / "b", 9)
    (tmp_path / "a" / "003.png").write_bytes(b"\x89PNG")
    task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert [item.name for item in task.unreadable] == ["a/003.png"]
    (tmp_path / "b" / "003.png").write_bytes(b"\x89PNG")
    refused(tmp_path, r"2 of 18 images cannot be read, more than 1 % \(a/003\.png: .*; b/003")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training", "testing"),
        ("train_set", "test_set"),
        ("Training images", "Holdout"),
        ("train2017", "evaluation"),
        ("trainset", "held-out"),
    ],
)
def test_parts_by_other_names(tmp_path: Path, train: str, test: str) -> None:
    for part, count in ((train, 8), (test, 5)):
        for label in ("dots", "lines", "ring"):
            fill(tmp_path / part / label, count)
    task = load_task(None, RULE, data=tmp_path)
    check(task)
    assert task.classes == ("dots", "lines", "ring")
    assert (len(task.train) + len(task.validation), len(task.test)) == (24, 15)
    assert all(name.startswith(test) for name in task.test.names)


@pytest.mark.parametrize(
    "parts", [("part A", "part B"), ("2023", "2024"), ("dots", "ring"), ("fold1", "fold2", "fold3")]
)
def test_folders_that_all_hold_the_same_folders_are_refused(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    """Parts of the data, or classes with parts of their own: both would mix test and train."""
    for part in parts:
        for inner in ("train", "test"):
            fill(tmp_path / part / inner, 5)
    fill(tmp_path / parts[0] / "rare", 5)
    refused(tmp_path, r"all hold the folders test, train, so they may be parts of the data")
    fill(tmp_path / parts[0], 1)
    assert load_task(None, RULE, data=tmp_path).classes == parts


def test_eval_tests_where_nothing_else_does(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("eval", 4), ("test", 3)):
        fill(tmp_path / part / "a", count)
        fill(tmp_path / part / "b", count)
    with pytest.warns(UserWarning, match=": eval not read, since train is the training part"):
        assert len(load_task(None, RULE, data=tmp_path).test) == 6


def test_what_lies_there_and_is_not_used_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    fill(tmp_path / "b" / "@eaDir" / "000.png", 2, suffix="jpg")
    fill(tmp_path / ".cache", 1)
    fill(tmp_path, 1)
    (tmp_path / "a" / "._000.png").write_bytes(b"x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "README.md").write_text("x")
    task = load_task(None, RULE, data=tmp_path)
    assert [str(item) for item in task.left_out] == [
        "000.png: beside the class folders",
        ".cache/000.png: in a hidden folder (.cache)",
        "a/._000.png: hidden",
        "a/notes.txt: of a type that is not read (.txt)",
        "b/@eaDir/000.png/000.jpg: in a system folder (@eaDir)",
        "b/@eaDir/000.png/001.jpg: in a system folder (@eaDir)",
    ]
    assert sum(len(part) for part in (task.train, task.validation, task.test)) == 10


def test_a_class_of_thumbnails_alone_holds_no_images(tmp_path: Path) -> None:
    fill(tmp_path / "a", 5)
    fill(tmp_path / "b", 5)
    fill(tmp_path / "c" / "@eaDir", 2)
    refused(tmp_path, r"the class folder 'c' has no images \(2 in a system folder \(@eaDir\)\);")


def test_class_that_unreadable_images_leave_with_one(tmp_path: Path) -> None:
    fill(tmp_path / "a", 200)
    fill(tmp_path / "b", 2)
    (tmp_path / "b" / "000.png").write_text("x")
    refused(tmp_path, "only one image of b")
