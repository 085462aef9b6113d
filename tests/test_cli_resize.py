"""`--resize` and `--preprocessing`: what a fit is told about pixels, all that follows obeys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import class_folders, run, small_bank
from PIL import Image, ImageDraw
from toys import shorten_start

from hgprompt_edge.artifacts.bundle_file import read_bundle
from hgprompt_edge.images.preprocess import read_image
from hgprompt_edge.prompts.bank import read_bank
from hgprompt_edge.runtime.predictor import Predictor

FIT = "fit --data banners --backbone tiny"
CUT = "half of the pictures lose 60 % of their area or more to the central crop"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Banners of 200 x 80 pixels, whose class is a disc at one of their ends."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(40):
        name = ("red", "blue")[index % 2]
        grey = rng.integers(90, 160, (80, 200, 1)).repeat(3, axis=2).astype(np.uint8)
        image = Image.fromarray(grey)
        left = int(rng.choice([4, 156]))
        ImageDraw.Draw(image).ellipse((left, 20, left + 40, 60), fill=name)
        path = tmp_path / "banners" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path


def test_what_stands_at_the_edge_is_seen_and_all_follow_the_bundle(here: Path) -> None:
    small_bank(here / "bank", 1)
    words = "fit --data banners --sources bank --steps 0 --resize letterbox --json"
    fit = run(*words.split())
    assert fit.exit_code == 0, fit.stderr
    document = json.loads(fit.stdout)
    assert document["table"][0]["test_accuracy"] == 1
    assert document["resize"] == {"rule": "letterbox", "cut_away": 0, "tried": []}
    rule = read_bundle(Path("banners.hgbundle")).preprocessing
    assert rule.fill == (128, 128, 128)

    for words in ("export banners.hgbundle", "verify banners.onnx --bundle banners.hgbundle"):
        result = run(*words.split())
        assert result.exit_code == 0, result.output
    assert Predictor(Path("banners.onnx")).preprocessing == rule
    paths = sorted(Path("banners").rglob("*.png"))
    shown = read_image(paths[0], rule)
    assert (shown[:19] == 128).all()
    assert (shown[19:45] != 128).any()
    rows = json.loads(run("predict", "--model", "banners.onnx", "banners", "--json").stdout)
    assert all(Path(row["image"]).parent.name == row["classes"][0]["label"] for row in rows)
    assert len(rows) == len(paths)

    tune = run(*"tune banners.hgbundle --steps 1 --batch-size 16".split())
    assert tune.exit_code == 0, "it read other pixels than those of the bundle"
    assert read_bundle(Path("banners.tuned.hgbundle")).preprocessing == rule


def test_auto_takes_what_held_out_images_prove(here: Path) -> None:
    plain = run(*FIT.split(), "--sources", "none")
    assert f"{CUT}; `--resize auto` tests on held-out images whether" in " ".join(
        plain.stderr.split()
    )
    assert "log-loss" not in plain.stdout
    result = run(*FIT.split(), *"--sources none --resize auto".split())
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("resize    32 images held out in turn change (90 % interval)")
    assert [line.split()[0] for line in lines[1:4]] == ["crop", "squash", "letterbox"]
    kept = read_bundle(Path("banners.hgbundle")).preprocessing.crop_mode
    assert lines[4].startswith(f"resize: {kept}, +")
    assert lines[4].endswith(" points over crop")
    assert kept in ("squash", "letterbox")
    assert "100.0 %" in lines[2]
    accuracy = [float(line.split()[1]) for line in lines[1:4]]
    change = [float(line.split(") ")[1].split()[0]) for line in lines[2:4]]
    differences = [each - accuracy[0] for each in accuracy[1:]]
    assert change == pytest.approx(differences, abs=0.11), "images count in parts in both"


def test_auto_keeps_the_crop_where_nothing_is_cut_off(here: Path) -> None:
    class_folders(here / "photos")  # 56 x 48
    for path in (here / "photos").rglob("*.jpg"):
        Image.open(path).crop((4, 0, 52, 48)).save(path)
    words = "fit --data photos --backbone tiny --sources none --resize auto --json"
    document = json.loads(run(*words.split()).stdout)["resize"]
    assert (document["rule"], document["cut_away"]) == ("crop", 0)
    own, *others = document["tried"]
    for each in others:
        assert (each["change"], each["gain"], each["error"]) == (0, 0, 0)
        assert each["low"] < 0 < each["high"]
        assert each["accuracy"] == own["accuracy"]


def test_compare_reads_pictures_by_the_rule(here: Path) -> None:
    small_bank(here / "bank", 1)
    words = "compare --data banners --sources bank --methods none --json --resize"
    found = [json.loads(run(*words.split(), rule).stdout)["rows"][0] for rule in ("crop", "squash")]
    assert found[0]["accuracy"] < 0.9
    assert found[1]["accuracy"] == 1


def test_the_pixels_of_the_prompts_may_be_named(here: Path) -> None:
    small_bank(here / "bank", 1)
    words = f"{FIT} --sources bank --steps 0 --preprocessing inception --json"
    assert run(*words.split()).exit_code == 0, "the same as the prompts'"


def test_pixels_that_are_not_normalised(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_start(monkeypatch)
    words = f"{FIT} --sources none --preprocessing none --resize letterbox -o raw.hgbundle"
    assert run(*words.split()).exit_code == 0
    rule = read_bundle(Path("raw.hgbundle")).preprocessing
    assert (rule.mean, rule.std, rule.fill) == ((0, 0, 0), (1, 1, 1), (0, 0, 0))

    train = "prompt train --data banners --backbone tiny --epochs 1 --batch-size 16 -o bank"
    trained = run(*train.split(), "--preprocessing", "none", "--task", "none")
    assert trained.exit_code == 0, trained.stderr
    bank = read_bank("bank")
    assert bank.start is not None
    assert bank.normalization == bank.start.normalization == ((0, 0, 0), (1, 1, 1))
    fit = run(*"fit --data banners --sources bank --steps 0 --resize letterbox".split())
    assert fit.exit_code == 0, fit.stderr
    assert "pixels are normalised as for these prompts: mean 0 0 0, std 1 1 1" in fit.stderr
    followed = read_bundle(Path("banners.hgbundle")).preprocessing
    assert followed == rule, "the border is filled with the mean of these pixels"
