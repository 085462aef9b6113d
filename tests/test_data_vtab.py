"""The 19 tasks of VTAB-1k by name, each on small lists of the benchmark's layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from layouts import listed, write_list

from hgprompt_edge.data import load_task
from hgprompt_edge.data.generated import KINDS
from hgprompt_edge.data.known_tasks import FAMILIES
from hgprompt_edge.data.layouts.archives.layouts import LAYOUTS
from hgprompt_edge.data.vtab import ALIASES, VTAB
from hgprompt_edge.errors import UserError
from hgprompt_edge.images.preprocess import Preprocessing

RULE = Preprocessing(8, 8)
# Zhai et al. 2019, table 1 of the appendix; the counts of the archive's list readers.
CLASSES = {
    "caltech101": 102,
    "cifar": 100,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "sun397": 397,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy": 5,
    "clevr_count": 8,
    "clevr_dist": 6,
    "dmlab": 6,
    "kitti": 4,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}


def test_the_table_is_the_benchmark() -> None:
    assert {task.folders[0]: task.classes for task in VTAB.values()} == CLASSES
    groups = [task.group for task in VTAB.values()]
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    folders = [folder for task in VTAB.values() for folder in {task.name, *task.folders}]
    assert len(folders) == len(set(folders)) == len(ALIASES)
    for task in VTAB.values():
        assert len(set(task.class_names)) == task.classes
        assert task.like in {"", *KINDS}
        assert task.attribute is None or task.attribute.values >= task.classes
    assert {*LAYOUTS} < {*VTAB}
    # A prompt of a task, imported under any of its names, is left out for that task.
    assert all(FAMILIES[alias] == VTAB[name].family for alias, name in ALIASES.items())


@pytest.mark.parametrize("name", VTAB)
def test_each_task_reads_its_lists(tmp_path: Path, name: str) -> None:
    task = VTAB[name]
    folder = listed(tmp_path / "vtab-1k" / task.folders[0], task.classes, per_class=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_task(name, RULE, data=tmp_path)
    assert (loaded.name, loaded.family, loaded.flips) == (name, task.family, task.flips)
    assert loaded.classes == task.class_names
    for images, part in (
        (loaded.train, "train800"),
        (loaded.validation, "val200"),
        (loaded.test, "test"),
    ):
        # 10 comes after 9, not after 1: label k is class k of the benchmark.
        np.testing.assert_array_equal(images.labels, np.arange(task.classes))
        assert images.names[0] == f"images/{part}/000000.png"
    for data, asked in ((folder.parent, name), (folder, None), (tmp_path, task.folders[-1])):
        assert load_task(asked, RULE, data=data).digest == loaded.digest


@pytest.mark.parametrize("name", sorted({*VTAB} - {*LAYOUTS}))
def test_what_must_be_fetched_by_hand_says_from_whom_and_where_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    task = VTAB[name]
    (tmp_path / "else").mkdir()
    for data, base in ((None, "data"), (Path("else"), "else")):
        with pytest.raises(UserError) as caught:
            load_task(name, RULE, data=data)
        message = str(caught.value)
        assert message.startswith(f"`task='{name}'`: {task.title} is not in {base} and must be")
        assert f"into {base}/vtab-1k/{task.folders[0]}," in message
        assert f"(the images are from {task.owner})" in message
        assert task.like in message
        assert "\n" not in message


def test_other_tasks_of_the_benchmark_are_not_taken_for_classes(tmp_path: Path) -> None:
    root = tmp_path / "vtab-1k"
    listed(root / "kitti", 4)
    listed(root / "mine", 4)
    for data in (tmp_path, root):
        with pytest.raises(UserError) as caught:
            load_task("dsprites-orientation", RULE, data=data)
        message = str(caught.value)
        assert message.startswith(
            f"`task='dsprites-orientation'`: dSprites-Orientation is not in {data}"
        )
        assert f"into {root}/dsprites_ori, or" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smallnorb", "smallnorb-elevation or smallnorb-azimuth"),
        ("clevr-cuont", "clevr-count"),
        ("Diabetic_Retinopathy", "retinopathy"),
        ("oxford_flowers", "flowers"),
    ],
)
def test_unknown_names_get_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"`task='{name}'`: no such task; did you mean {near}"):
        load_task(name, RULE)


def test_one_thousand_images_are_used_as_published(tmp_path: Path) -> None:
    write_list(tmp_path, "train800", [i % 5 for i in range(800)])
    write_list(tmp_path, "val200", [i % 5 for i in range(200)], first=1000)
    write_list(tmp_path, "test", [0, 1, 2, 3, 4], first=2000)
    task = load_task("retinopathy", RULE, data=tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (800, 200, 5)
    assert {name.split("/")[1] for name in task.validation.names} == {"val200"}
    other = load_task("retinopathy", RULE, data=tmp_path, seed=1)
    assert other.digest == task.digest
    assert load_task("retinopathy", RULE, data=tmp_path, limit=None).digest == task.digest
    few = load_task("retinopathy", RULE, data=tmp_path, limit=100)
    assert (len(few.train), len(few.validation), len(few.test)) == (80, 20, 5)
