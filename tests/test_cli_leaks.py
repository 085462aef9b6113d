"""What the commands say of copies, unasked."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from command_line import run, small_bank
from pictures import scene
from PIL import Image, ImageOps
from toys import shorten_start

from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.cli.shared.inputs import find_images_of
from hgprompt_edge.compare.contest import Budget
from hgprompt_edge.images.preprocess import Preprocessing

FIT = ("fit", "--sources", "bank", "--steps", "0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a test part of which two pictures a class are in the training part, too."""
    monkeypatch.chdir(tmp_path)
    shorten_start(monkeypatch)
    small_bank(tmp_path / "bank")
    for k, label in enumerate(("dots", "lines", "ring")):
        for part, count in (("train", 8), ("test", 3)):
            (tmp_path / "d" / part / label).mkdir(parents=True)
            for i in range(count):
                number = 100 * k + i + (50 if part == "test" else 0)
                scene(number, (80, 80)).save(tmp_path / "d" / part / label / f"{i:03d}.png")
        test = tmp_path / "d" / "test" / label
        scene(100 * k, (80, 80)).save(test / "copy-1.png", compress_level=0)
        scene(100 * k + 1, (80, 80)).save(test / "copy-2.bmp")
    return tmp_path


def said(output: str) -> str:
    return " ".join(output.split())


def test_fit_names_the_test_images_that_train(here: Path) -> None:
    fit = run(*FIT, "--data", "d")
    assert fit.exit_code == 0, fit.output
    assert (
        "d: 6 of the 15 test images are copies, pixel for pixel, of training or validation images, "
        "so that the accuracy on them says little about new images: test/dots/copy-1.png of "
        "train/dots/000.png; test/dots/copy-2.bmp of train/dots/001.png; test/lines/copy-1.png of "
        "train/lines/000.png; and 3 more, which --json names "
        "`hgedge fit --group-by-hash` keeps copies on one side of the split"
    ) in said(fit.stderr)
    assert "d.copies.png: the copies, each beside its original" in said(fit.stderr)
    with Image.open(here / "d.copies.png") as sheet:
        assert sheet.width > sheet.height


def test_compare_and_tune_say_so_and_json_names_all(here: Path) -> None:
    compared = run("compare", "--sources", "bank", "--data", "d", "--methods", "none", "--json")
    assert compared.exit_code == 0, compared.output
    leaks = json.loads(compared.stdout)["leaks"]
    assert len(leaks["test"]) == 6
    assert leaks["validation"] == leaks["classes"] == []
    assert leaks["test"][0] == {
        "name": "test/dots/copy-1.png",
        "part": "test",
        "label": "dots",
        "of": "train/dots/000.png",
        "of_part": "train",
        "of_label": "dots",
        "bits": 0,
        "same": True,
    }
    assert "6 of the 15 test images are copies" in said(compared.stderr)


def test_comparing_image_sizes_says_so_once_and_names_files_that_cannot_be_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgprompt_edge.compare.contest.Budget", partial(Budget, steps=0))
    (here / "d" / "train" / "dots" / "broken.png").write_text("no picture")
    sizes = ("--image-sizes", "64", "72")
    compared = run("compare", "--sources", "bank", "--data", "d", "--json", *sizes)
    assert compared.exit_code == 0, compared.output
    document = json.loads(compared.stdout)
    assert len(document["leaks"]["test"]) == 6
    assert [row["file"] for row in document["unreadable"]] == ["train/dots/broken.png"]
    assert said(compared.stderr).count("6 of the 15 test images are copies") == 1
    assert said(compared.stderr).count("skipped train/dots/broken.png") == 1


def test_without_copies_nothing_is_said_and_an_old_sheet_goes(here: Path) -> None:
    for path in (here / "d" / "test").rglob("copy-*"):
        path.unlink()
    (here / "d.copies.png").write_bytes(b"")
    fit = run(*FIT, "--data", "d", "--json")
    assert fit.exit_code == 0, fit.output
    assert "copies of" not in said(fit.stderr)
    leaks = json.loads(fit.stdout)["leaks"]
    assert leaks["test"] == leaks["validation"] == leaks["classes"] == []
    assert not (here / "d.copies.png").exists()


def test_two_classes_are_named(here: Path) -> None:
    for path in (here / "d" / "test").rglob("copy-*"):
        path.unlink()
    scene(101, (80, 80)).save(here / "d" / "test" / "ring" / "wrong.bmp")
    fit = run(*FIT, "--data", "d")
    assert (
        "d: 1 image is a copy, pixel for pixel, of images of another class: test/ring/wrong.bmp of "
        "train/lines/001.png; give each picture one class"
    ) in said(fit.stderr)


def test_a_bundle_finds_the_groups_of_its_fit_again(here: Path) -> None:
    pytest.importorskip("imagehash")
    for k in range(3):
        label = ("dots", "lines", "ring")[k]
        mirrored = ImageOps.mirror(scene(100 * k + 5, (80, 80)))
        mirrored.save(here / "d" / "train" / label / "mirrored.jpg")
    fit = run(*FIT, "--data", "d", "--group-by-hash", "--json")
    assert fit.exit_code == 0, fit.output
    assert "copies of" not in said(fit.stderr)
    document = json.loads(fit.stdout)
    assert document["leaks"]["test"] == document["leaks"]["validation"] == []
    left = {row["file"]: row["reason"] for row in document["files_left_out"]}
    assert left["train/dots/000.png"] == "a copy of a test image"
    assert len(left) == 6
    bundle = read_bundle(here / "d.hgbundle")
    assert bundle.group_by_hash
    again = find_images_of(bundle, None, None).load(bundle.preprocessing)
    assert again.digest == bundle.split_digest
    ungrouped = find_images_of(bundle, "other", here / "d")
    assert ungrouped.load(Preprocessing(8, 8)).left_out == ()
