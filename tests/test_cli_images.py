"""The same folder is the same images in every command, and what is not used is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import PETS, class_folders, photo, run, small_bank
from layouts import listed
from PIL import Image
from planted import Planted

from hgprompt_edge.cli.shared.left_out import write_left_out
from hgprompt_edge.data import load_task
from hgprompt_edge.images.preprocess import Preprocessing
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.runtime.watching.watch import watch


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """One picture in each of six formats, and one that a macOS copy has left."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    rng = np.random.default_rng(0)
    kinds = {"png": "PNG", "jfif": "JPEG", "jpe": "JPEG", "webp": "WEBP", "gif": "GIF"}
    for name, kind in {**kinds, "tga": "TGA"}.items():
        pixels = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"a.{name}", kind)
    (folder / "._a.png").write_bytes(b"macOS")
    return folder


def test_folder_names_and_watched_folder_give_the_same_rows(planted: Planted, mixed: Path) -> None:
    words = ("predict", "--model", str(planted.path), "--csv")
    by_folder = run(*words, str(mixed))
    assert by_folder.exit_code == 0, by_folder.stderr
    named = sorted(str(path) for path in mixed.glob("a.*"))
    assert run(*words, *named).stdout == by_folder.stdout
    rows = list(csv.reader(by_folder.stdout.splitlines()))[1:]
    assert [row[0] for row in rows] == named
    served = watch(Predictor(planted.path), mixed, sleep=lambda _: None)
    assert [str(next(served)[0].path) for _ in rows] == named
    assert "left out: 1 hidden; such as" in by_folder.stderr


def test_missing_paths_cost_no_other_row(planted: Planted, mixed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = [str(path) for path in (tmp_path / "gone.png", mixed / "a.png", empty)]
    result = run("predict", "--model", str(planted.path), "--csv", *paths)
    assert result.exit_code == 2
    assert [row[0] for row in csv.reader(result.stdout.splitlines())] == ["image", paths[1]]
    assert result.stderr.splitlines() == [
        f"{paths[0]}: no such file or folder",
        f"{paths[2]}: no images in this folder",
        "hgedge: 2 paths hold no image; the others were classified",
    ]
    document = json.loads(run("predict", "--model", str(planted.path), "--json", *paths).stdout)
    assert [row["image"] for row in document] == [paths[1], paths[0], paths[2]]
    assert [row["error"] for row in document] == [
        None,
        "no such file or folder",
        "no images in this folder",
    ]
    nothing = run("predict", "--model", str(planted.path), paths[0])
    assert nothing.exit_code == 2
    assert nothing.stderr == (
        f"hgedge: {paths[0]}: no such file or folder; name image files, or folders of them\n"
    )


def test_one_image_that_cannot_be_read(planted: Planted, mixed: Path) -> None:
    (mixed / "b.png").write_bytes(b"no image")
    one = run("predict", "--model", str(planted.path), str(mixed / "b.png"))
    assert one.exit_code == 2
    assert one.stderr.splitlines()[-1] == "hgedge: the image cannot be read"
    result = run("predict", "--model", str(planted.path), "--json", str(mixed))
    assert result.exit_code == 2
    assert "1 of 7 images cannot be read; the others were classified" in result.stderr
    errors = {Path(row["image"]).name: row["error"] for row in json.loads(result.stdout)}
    assert errors["b.png"] == "not a readable image (unknown format)"
    assert errors["._a.png"] == "left out: hidden"
    assert sum(error is None for error in errors.values()) == 6


def test_fit_names_what_it_did_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = class_folders(tmp_path / "mine")
    (data / PETS[0] / "3.jpg").write_bytes(b"no image")
    for index in range(4):
        photo(data / PETS[1] / "@eaDir" / f"{index}.jpg" / "THUMB_M.jpg", 1, index)
    result = run(*"fit --backbone tiny --sources none --data mine --json".split())
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert sum(document["images"].values()) == 23
    unreadable = {
        "file": f"{PETS[0]}/3.jpg",
        "reason": "not a readable image (unknown format)",
    }
    thumbnails = [
        {
            "file": f"{PETS[1]}/@eaDir/{index}.jpg/THUMB_M.jpg",
            "reason": "in a system folder (@eaDir)",
        }
        for index in range(4)
    ]
    assert document["unreadable"] == [unreadable]
    assert document["files_left_out"] == thumbnails
    with Path("mine.left-out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [unreadable, *thumbnails]
    assert f"skipped {PETS[0]}/3.jpg: not a readable image" in result.stderr
    assert "left out: 4 in a system folder (@eaDir); such as" in result.stderr
    assert "mine.left-out.csv: the 5 files that were not used, by name" in result.stderr
    # Once all files are used, the old table would lie.
    photo(data / PETS[0] / "3.jpg", 0, 3)
    for thumbnail in (data / PETS[1] / "@eaDir").rglob("*.jpg"):
        if thumbnail.is_file():
            thumbnail.unlink()
    write_left_out(load_task(None, Preprocessing(8, 8), data=data), Path("mine.hgbundle"))
    assert not Path("mine.left-out.csv").exists()


def test_an_image_in_two_lists_is_told_and_the_fit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = listed(tmp_path / "data" / "vtab-1k" / "kitti", 4, per_class=6)
    test = (folder / "test.txt").read_text().splitlines()
    with (folder / "train800.txt").open("a") as file:
        file.write("\n".join(test[:2]))
    bank = small_bank(tmp_path / "prompts")
    result = run(*f"fit --sources {bank} --task kitti --steps 0".split())
    assert result.exit_code == 0, result.stderr
    assert "2 image(s) of test.txt are in the training lists, too" in result.stderr
    assert "kitti: 4 classes; 24 train, 4 validation, 4 test images" in result.stdout
    assert (tmp_path / "kitti.hgbundle").exists()
