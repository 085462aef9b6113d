"""Parquet files as Hugging Face writes them, local and from the hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import picture, write_parquet

from hgprompt_edge.data import load_task
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

pyarrow = pytest.importorskip("pyarrow")
huggingface_hub = pytest.importorskip("huggingface_hub")
RULE = Preprocessing(8, 12)
DMLAB = ["0", "1", "2", "3", "4", "5"]
LABELS = [i % 6 for i in range(36)]


def dataset(folder: Path, **options: Any) -> Path:
    """Write two training files and a test file of six classes, as the hub keeps them."""
    options = {"names": DMLAB, **options}
    for part in range(2):
        path = folder / "data" / f"train-{part:05d}-of-00002.parquet"
        write_parquet(path, LABELS, first=100 * part, **options)
    write_parquet(
        folder / "data" / "test-00000-of-00001.parquet", LABELS[:12], first=900, **options
    )
    return folder


def test_images_labels_and_splits(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "mine", names=["zebra", "ant", "bee", "cat", "dog", "elk"])
    task = load_task(None, RULE, data=folder)
    assert (task.name, task.family) == ("mine", "")
    assert task.classes == ("zebra", "ant", "bee", "cat", "dog", "elk")
    assert (len(task.train) + len(task.validation), len(task.test)) == (72, 12)
    for images in (task.train, task.test):
        for name, label, pixels in zip(images.names, images.labels, images.pixels, strict=True):
            file, row = name.rsplit("/", 1)
            first = {"train-00000": 0, "train-00001": 100, "test-00000": 900}[file[5:-17]]
            assert label == LABELS[int(row)]
            expected = np.asarray(picture(int(row) % 7, first + int(row)))[2:10, 2:10]
            np.testing.assert_array_equal(pixels, expected)


def test_a_known_task_by_name_folder_or_both(tmp_path: Path) -> None:
    dataset(tmp_path / "data" / "dmlab")
    by_name = load_task("dmlab", RULE, data=tmp_path / "data")
    by_folder = load_task(None, RULE, data=tmp_path / "data" / "dmlab")
    assert (by_name.name, by_name.family) == (by_folder.name, by_folder.family) == ("dmlab",) * 2
    assert by_name.digest == by_folder.digest


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet", "test.parquet", "extra-00000-of-00001.parquet"],
        ["default/train/0000.parquet", "default/test/0000.parquet"],
        ["data/train_0.parquet", "data/validation-00000-of-00001.parquet", "data/test.parquet"],
    ],
)
def test_splits_by_the_name_of_file_or_folder(tmp_path: Path, files: list[str]) -> None:
    for number, file in enumerate(files):
        write_parquet(tmp_path / file, LABELS, names=DMLAB, first=100 * number)
    task = load_task("dmlab", RULE, data=tmp_path)
    assert len(task.test) == 36
    assert len(task.train) + len(task.validation) == 36 * (1 + ("validation" in "".join(files)))


@pytest.mark.parametrize(
    ("files", "train", "validation"),
    [
        (["train800", "val200", "train800val200"], {"train800"}, {"val200"}),
        (["train800val200"], {"train800val200"}, {"train800val200"}),
        (["train", "val", "train800", "val200"], {"train"}, {"val"}),
    ],
)
@pytest.mark.parametrize("form", ["{}-00000-of-00001.parquet", "{}/0000.parquet"])
def test_the_benchmarks_own_splits_serve_where_there_is_no_other_training_part(
    tmp_path: Path, form: str, files: list[str], train: set[str], validation: set[str]
) -> None:
    for number, name in enumerate([*files, "test"]):
        write_parquet(tmp_path / form.format(name), LABELS, names=DMLAB, first=100 * number)
    task = load_task("dmlab", RULE, data=tmp_path)
    for images, expected in ((task.train, train), (task.validation, validation)):
        assert {re.split("[-/]", name)[0] for name in images.names} == expected
    assert len(task.test) == 36


def test_each_file_has_its_own_order_of_classes(tmp_path: Path) -> None:
    """Two files that number the same three classes otherwise; each is right for itself."""
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 2] * 8, names=["a", "b", "c"])
    write_parquet(tmp_path / "train-1.parquet", [2, 0, 1] * 8, names=["b", "c", "a"], first=50)
    write_parquet(tmp_path / "test.parquet", [0, 1, 2] * 4, names=["c", "a", "b"], first=90)
    task = load_task(None, RULE, data=tmp_path)
    assert task.classes == ("a", "b", "c")
    expected = {"train-0": "abc", "train-1": "abc", "test": "cab"}
    for images in (task.train, task.validation, task.test):
        for name, label in zip(images.names, images.labels, strict=True):
            file, row = name.split(".parquet/")
            assert task.classes[label] == expected[file][int(row) % 3]


def test_files_that_do_not_say_what_their_numbers_mean_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1, 2] * 8, names=["a", "b", "c"])
    write_parquet(tmp_path / "test.parquet", [0, 1, 2] * 4, first=90)
    with pytest.raises(UserError, match=r"test\.parquet: does not say which classes the numbers"):
        load_task(None, RULE, data=tmp_path)
    write_parquet(tmp_path / "test.parquet", [0, 1, 3] * 4, names=["b", "a", "c", "d"], first=90)
    with pytest.raises(UserError, match=r"the test part holds the class d, which the training"):
        load_task(None, RULE, data=tmp_path)
    write_parquet(tmp_path / "test.parquet", [0, 1] * 4, names=["a", "a"], first=90)
    with pytest.raises(UserError, match=r"test\.parquet: names the class a twice"):
        load_task(None, RULE, data=tmp_path)
    write_parquet(tmp_path / "test.parquet", ["c", "a"] * 4, first=90)
    assert load_task(None, RULE, data=tmp_path).test.labels.tolist() == [2, 0] * 4


def test_files_of_no_part_and_dot_files_are_not_read(tmp_path: Path) -> None:
    dataset(tmp_path)
    (tmp_path / "data" / "._train-00000-of-00002.parquet").write_bytes(b"macOS")
    write_parquet(tmp_path / "data" / "extra-0.parquet", LABELS, names=DMLAB, first=700)
    write_parquet(tmp_path / "data" / "eval-0.parquet", LABELS, names=DMLAB, first=800)
    task = load_task(None, RULE, data=tmp_path)
    assert {name.split("-")[0] for name in task.test.names} == {"data/test"}
    assert [item.name for item in task.left_out] == ["data/eval-0.parquet", "data/extra-0.parquet"]


@pytest.mark.parametrize("file", ["train.parquet", "0000.parquet"])
def test_a_test_part_is_carved_where_there_is_none(tmp_path: Path, file: str) -> None:
    write_parquet(tmp_path / file, LABELS * 2, names=DMLAB)
    task = load_task("dmlab", RULE, data=tmp_path)
    assert (len(task.train) + len(task.validation), len(task.test)) == (58, 14)
    assert load_task("dmlab", RULE, data=tmp_path, seed=1).test.names == task.test.names


@pytest.mark.parametrize(
    ("values", "options", "classes"),
    [
        ([str(label) for label in LABELS], {}, tuple(DMLAB)),
        ([label % 2 == 1 for label in LABELS], {}, ("0", "1")),
        ([2 + 8 * (label % 2) for label in LABELS], {}, ("2", "10")),
        (["ab"[label % 2] for label in LABELS], {"label": "class"}, ("a", "b")),
        (LABELS, {"label": "kind", "names": DMLAB}, tuple(DMLAB)),
        (LABELS, {"image": "webp", "label": "cls"}, tuple(DMLAB)),
        (LABELS, {"label": "fine_label", "more": {"coarse_label": LABELS}}, tuple(DMLAB)),
    ],
)
def test_columns_and_kinds_of_labels(
    tmp_path: Path, values: list[Any], options: dict[str, Any], classes: tuple[str, ...]
) -> None:
    write_parquet(tmp_path / "train.parquet", values, **options)
    assert load_task("mine", RULE, data=tmp_path).classes == classes


def test_the_label_of_a_structured_task_is_made_from_its_attribute(tmp_path: Path) -> None:
    attributes = {"label_x_position": [i % 32 for i in range(160)]}
    turns = [i % 40 for i in range(160)]
    write_parquet(tmp_path / "train.parquet", turns, label="label_orientation", more=attributes)
    write_parquet(
        tmp_path / "test.parquet", turns, label="label_orientation", more=attributes, first=500
    )
    turned = load_task("dsprites-orientation", RULE, data=tmp_path)
    moved = load_task("dsprites-location", RULE, data=tmp_path)
    assert len(turned.classes) == len(moved.classes) == 16
    # As the benchmark has it: 40 orientations by floor(k / 2.5), 32 positions by floor(k / 2).
    assert turned.test.labels.tolist() == [int(turn // 2.5) for turn in turns]
    assert moved.test.labels.tolist() == [x // 2 for x in attributes["label_x_position"]]


def test_other_class_counts_than_the_benchmarks_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="6 classes, where KITTI-Distance of the benchmark has 4"):
        load_task("kitti", RULE, data=dataset(tmp_path))


def test_damaged_and_empty_images_are_unreadable_ones(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    images = [{"bytes": b"no image" if i else b"", "path": "0.png"} for i in range(36)]
    table = pyarrow.table({"image": images, "label": LABELS})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=r"36 of 36 images cannot be read.*no bytes in the file"):
        load_task("dmlab", RULE, data=tmp_path)


def no_image(folder: Path) -> None:
    table = pyarrow.table({"text": ["a"] * 36, "label": LABELS})
    pyarrow.parquet.write_table(table, folder / "train.parquet")


def several_images(folder: Path) -> None:
    left = {"left": [b"x"] * 36, "right": [b"x"] * 36}
    pyarrow.parquet.write_table(pyarrow.table({**left, "label": LABELS}), folder / "train.parquet")


def truncated(folder: Path) -> None:
    path = write_parquet(folder / "train.parquet", LABELS)
    path.write_bytes(path.read_bytes()[:-100])


def pointer(folder: Path) -> None:
    (folder / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")


def other_columns(folder: Path) -> None:
    write_parquet(folder / "train.parquet", LABELS)
    write_parquet(folder / "test.parquet", LABELS, label="answer")


def unlabelled_test(folder: Path) -> None:
    write_parquet(folder / "train.parquet", LABELS, names=DMLAB)
    write_parquet(folder / "test.parquet", [-1] * 6, names=DMLAB)


def labelled(values: list[Any], **options: Any) -> Any:
    return lambda folder: write_parquet(folder / "train.parquet", values, **options)


BAD_FILES = {
    "no image column": (
        no_image,
        r"train\.parquet: no image column among text, label; add one that holds",
    ),
    "several image columns": (several_images, r"several image columns \(left, right\); call the"),
    "no label column": (
        labelled(LABELS, label="answer"),
        r"train\.parquet: no label column among image, answer; call it label",
    ),
    "truncated": (truncated, r"train\.parquet: not a readable parquet file"),
    "a pointer to the file": (pointer, r"train\.parquet: not a readable parquet file"),
    "other columns": (other_columns, r"test\.parquet: no column label, which other files"),
    "unlabelled": (
        unlabelled_test,
        r"test\.parquet, row 0: the label -1 is not one of the classes 0 to 5",
    ),
    "outside": (labelled([*LABELS, 6]), r"row 36: the label 6 is not one of the classes 0 to 5"),
    "none": (labelled([*LABELS, None]), r"row 36: the label None is not one of the classes 0 to 5"),
    "a number": (labelled([0.5] * 36), r"row 0: the label 0\.5 is not one of the classes 0 to 5"),
    "no training part": (
        lambda folder: write_parquet(folder / "test.parquet", LABELS),
        r"no training part among its parquet files \(test\.parquet\)",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    make, match = BAD_FILES[name]
    make(tmp_path)
    with pytest.raises(UserError, match=match) as caught:
        load_task("dmlab", RULE, data=tmp_path)
    assert "\n" not in str(caught.value)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"parquet needs pyarrow, which is not installed; run .*hgprompt-edge\[serv"
    ):
        load_task("dmlab", RULE, data=tmp_path)


def serve(monkeypatch: pytest.MonkeyPatch, branches: dict[str | None, Path]) -> list[Any]:
    """Let the hub answer with local folders, one a branch; what was fetched."""
    asked = []

    def listing(repository: str, **options: Any) -> list[str]:
        root = branches[options["revision"]]
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options["repo_type"], options["allow_patterns"]))
        return str(branches[options["revision"]])

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = dataset(tmp_path / "own")
    asked = serve(monkeypatch, {None: own})
    task = load_task(None, RULE, data=Path("hf:someone/dmlab"))
    assert asked == [("someone/dmlab", "dataset", "data/*.parquet")]
    assert task.name == "dmlab"
    assert task.digest == load_task("dmlab", RULE, data=own).digest
    assert load_task("mine", RULE, data=Path("hf:someone/dmlab")).name == "mine"


def test_configurations_and_the_converted_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("full", "small"):
        write_parquet(tmp_path / "own" / name / "train.parquet", LABELS, names=DMLAB)
    write_parquet(tmp_path / "other/plain_text/train.parquet", LABELS, names=DMLAB)
    (tmp_path / "bare").mkdir()
    asked = serve(monkeypatch, {None: tmp_path / "own"})
    with pytest.raises(UserError, match=r"several configurations \(full, small\); name one, as in"):
        load_task(None, RULE, data=Path("hf:a/b"))
    assert asked == []
    named = load_task(None, RULE, data=Path("hf:a/b/small"))
    assert asked[-1][2] == "small/*.parquet"
    assert named.name == "b"
    serve(monkeypatch, {None: tmp_path / "other"})
    assert load_task(None, RULE, data=Path("hf:a/b")).digest == named.digest
    serve(monkeypatch, {None: tmp_path / "bare", "refs/convert/parquet": tmp_path / "other"})
    assert load_task(None, RULE, data=Path("hf:a/b")).digest == named.digest
    serve(monkeypatch, {None: tmp_path / "bare", "refs/convert/parquet": tmp_path / "bare"})
    with pytest.raises(UserError, match="`data='hf:a/b'`: the data set has no parquet files there"):
        load_task(None, RULE, data=Path("hf:a/b"))


def test_the_hubs_conversion_keeps_a_folder_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    for number, part in enumerate(("train", "test", "extra")):
        path = tmp_path / "other" / "plain_text" / part / "0000.parquet"
        write_parquet(path, LABELS, names=DMLAB, first=100 * number)
    branches = {None: tmp_path / "bare", "refs/convert/parquet": tmp_path / "other"}
    asked = serve(monkeypatch, branches)
    task = load_task(None, RULE, data=Path("hf:a/b"))
    assert (len(task.train) + len(task.validation), len(task.test)) == (36, 36)
    assert asked == [("a/b", "dataset", "plain_text/*.parquet")]
    write_parquet(tmp_path / "other" / "small" / "train" / "0000.parquet", LABELS, names=DMLAB)
    with pytest.raises(
        UserError, match=r"\(plain_text, small\); name one, as in hf:a/b/plain_text"
    ):
        load_task(None, RULE, data=Path("hf:a/b"))
    assert load_task(None, RULE, data=Path("hf:a/b/plain_text")).digest == task.digest
    split = load_task(None, RULE, data=Path("hf:a/b/plain_text/train"))
    assert len(split.train) + len(split.validation) + len(split.test) == 36


def test_without_a_network_what_was_fetched_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    serve(monkeypatch, {None: dataset(tmp_path)})
    digest = load_task(None, RULE, data=Path("hf:a/b")).digest
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    assert load_task(None, RULE, data=Path("hf:a/b")).digest == digest


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("name or service not known.\nand more")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        load_task("cifar100", RULE, data=Path("hf:uoft-cs/cifar100"))
    assert str(caught.value) == (
        "`data='hf:uoft-cs/cifar100'`: could not be fetched from the hub (name or service not "
        "known); download its parquet files elsewhere and name their local folder with `data`"
    )


@pytest.mark.parametrize("data", ["hf:", "hf:name", "hf:a/b c", "hf:a/b/../../c?"])
def test_ids_that_are_none(data: str) -> None:
    with pytest.raises(UserError, match="not the id of a data set; write hf:ORG/NAME"):
        load_task("dmlab", RULE, data=Path(data))
