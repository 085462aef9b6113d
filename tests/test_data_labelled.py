"""Which images a model is judged on: the part of every layout, never one that it learned from."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from layouts import listed, picture, png, write_parquet

from hgprompt_edge.data import load_task
from hgprompt_edge.data.labelled import Labelled, find_labelled
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

COUNTS = {"ant": 10, "bee": 7, "cat": 5}


def classes(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(place, index).save(folder / name / f"{folder.name}{index}.png")
    return folder


def names(found: Labelled) -> set[str]:
    assert len({entry.name for entry in found.entries}) == len(found.entries)
    return {entry.name for entry in found.entries}


def test_class_folders_give_all_images_and_say_how_to_leave_some_out(tmp_path: Path) -> None:
    data = classes(tmp_path / "mine")
    found = find_labelled(data)
    assert (found.part, len(found.entries), found.classes) == ("all", 22, tuple(COUNTS))
    assert "`part='test'`" in found.note
    assert all(entry.label == entry.name.split("/")[0] for entry in found.entries)


def test_what_a_model_was_fitted_on_is_left_out_as_fit_leaves_it_out(tmp_path: Path) -> None:
    data = classes(tmp_path / "mine")
    task = load_task(None, Preprocessing(8, 8), data=data)
    by_name, asked = find_labelled(data, fitted_on={"mine"}), find_labelled(data, "test")
    assert by_name.part == asked.part == "test"
    assert names(by_name) == names(asked) == set(task.test.names)
    assert "fitted on a task of this name" in by_name.note
    assert set(by_name.parts) == {"train", "test"}
    learned = {entry.name for entry in by_name.parts["train"]}
    assert learned == {*task.train.names, *task.validation.names}
    assert len(names(find_labelled(data, "all", {"mine"}))) == 22
    assert names(find_labelled(data, "train")) == learned


def test_folders_of_parts(tmp_path: Path) -> None:
    for part in ("training", "val", "testing"):
        classes(tmp_path / "d" / part)
    found = find_labelled(tmp_path / "d")
    assert (found.part, found.note, len(found.entries)) == ("test", "", 22)
    assert {entry.name.split("/")[0] for entry in found.entries} == {"testing"}
    assert {entry.name.split("/")[0] for entry in found.parts["train"]} == {"training"}
    assert len(find_labelled(tmp_path / "d", "validation").entries) == 22
    assert len(find_labelled(tmp_path / "d", "all").entries) == 66
    # Where nothing trains there is no doubt which part is meant.
    shutil.rmtree(tmp_path / "d" / "training")
    assert find_labelled(tmp_path / "d").part == "test"
    shutil.rmtree(tmp_path / "d" / "testing")
    assert find_labelled(tmp_path / "d").part == "validation"
    with pytest.raises(UserError, match=r"`part='test'`: .* has no such part \(validation\)"):
        find_labelled(tmp_path / "d", "test")


def test_a_validation_part_that_helped_to_choose_does_not_judge(tmp_path: Path) -> None:
    for part in ("train", "val"):
        classes(tmp_path / "d" / part)
    found = find_labelled(tmp_path / "d")
    task = load_task(None, Preprocessing(8, 8), data=tmp_path / "d")
    assert names(found) == set(task.test.names)
    assert {name.split("/")[0] for name in names(found)} == {"train"}
    assert "`part='validation'`" in found.note


def test_too_few_images_to_learn_from_are_enough_to_judge_on(tmp_path: Path) -> None:
    one = classes(tmp_path / "one", {"ant": 1})
    assert len(find_labelled(one, fitted_on={"one"}).entries) == 1
    two = classes(tmp_path / "two", {"ant": 1, "bee": 3})
    assert find_labelled(two, fitted_on={"two"}).part == "all"


def test_a_zip_file_with_labels(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for index in range(4):
            archive.writestr(f"{index}.png", png(0, index))
    rows = ["0.png,ant,train", "1.png,ant,test", "2.png,bee,test", "3.png,bee,train"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    found = find_labelled(tmp_path)
    assert (found.part, names(found)) == ("test", {"1.png", "2.png"})
    everything = ["file,label,split", *(row.replace("train", "test") for row in rows)]
    (tmp_path / "labels.csv").write_text("\n".join(everything))
    assert len(find_labelled(tmp_path).entries) == 4
    (tmp_path / "labels.csv").write_text("\n".join([*everything, "1.png,bee,test"]))
    with pytest.raises(UserError, match=r"1\.png listed more than once"):
        find_labelled(tmp_path)


def test_lists_of_the_benchmark(tmp_path: Path) -> None:
    found = find_labelled(listed(tmp_path / "d", 3))
    assert (found.part, len(found.entries), found.classes) == ("test", 3, ("0", "1", "2"))


def test_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    data, labels = tmp_path / "d", [0, 1, 2] * 5
    write_parquet(data / "test-0.parquet", labels, names=tuple(COUNTS))
    found = find_labelled(data)  # without anything to train on
    assert (found.part, len(found.entries), found.classes) == ("test", 15, tuple(COUNTS))
    write_parquet(data / "train-0.parquet", labels * 2, names=tuple(COUNTS), first=100)
    assert len(find_labelled(data).entries) == 15
    assert len(find_labelled(data, "all").entries) == 45
    write_parquet(tmp_path / "e" / "some.parquet", labels, names=tuple(COUNTS))
    assert find_labelled(tmp_path / "e").part == "all"
    assert find_labelled(tmp_path / "e", fitted_on={"e"}).part == "test"


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_no_images(tmp_path: Path, make: object) -> None:
    with pytest.raises(UserError, match=r"no such file or folder|no class folders"):
        find_labelled(make(tmp_path))  # type: ignore[operator]


def test_an_empty_class_is_refused_by_name(tmp_path: Path) -> None:
    data = classes(tmp_path / "mine")
    (data / "dog").mkdir()
    with pytest.raises(UserError, match="the class folder 'dog' has no images"):
        find_labelled(data)
