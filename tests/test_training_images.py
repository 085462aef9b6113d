"""A bundle and a model remember their training images by hashes; evaluate finds them again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run, small_bank
from pictures import scene
from PIL import ImageOps
from small_vits import make_backbone, make_bundle
from toys import shorten_start

from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import read_bundle, write_bundle
from hgprompt_edge.artifacts.training_images import MOST, TrainingImages, find_known, remember
from hgprompt_edge.errors import UserError
from hgprompt_edge.export.onnx_file import describe
from hgprompt_edge.files import read_safetensors, write_safetensors
from hgprompt_edge.images.picture_hash import HASH_BYTES, Hashes, hash_picture, stack


def hashes_of(count: int) -> Hashes:
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
    return Hashes(np.arange(1, count + 1, dtype=np.uint64) << np.uint64(40), looks, looks)


def same(first: TrainingImages | None, second: TrainingImages | None) -> bool:
    assert first is not None
    assert second is not None
    return (
        first.facts == second.facts
        and np.array_equal(first.digests, second.digests)
        and np.array_equal(first.looks, second.looks)
    )


def remembered(*parts: Hashes) -> TrainingImages:
    trained = remember(*parts)
    assert trained is not None
    return trained


def test_text_and_tensors_hold_the_same(tmp_path: Path) -> None:
    trained = remembered(hashes_of(7), hashes_of(3))
    assert trained.count == 10
    assert same(TrainingImages.from_json(trained.to_json()), trained)
    bundle = replace(make_bundle(make_backbone()), trained=trained)
    write_bundle(tmp_path / "a.hgbundle", bundle)
    assert same(read_bundle(tmp_path / "a.hgbundle").trained, trained)
    assert describe(bundle)["hgprompt.training_images"] == trained.to_json()


def test_of_many_images_a_sample_is_kept() -> None:
    trained = remembered(hashes_of(MOST + 500))
    assert (trained.count, len(trained.digests)) == (MOST + 500, MOST)
    assert len(trained.to_json()) < 54 * MOST
    assert len(np.unique(trained.digests)) == MOST
    assert same(remember(hashes_of(MOST + 500)), trained)


def test_drawn_images_are_not_remembered(tmp_path: Path) -> None:
    assert remember(hashes_of(2), None) is None
    bundle = make_bundle(make_backbone())
    write_bundle(tmp_path / "a.hgbundle", bundle)
    assert read_bundle(tmp_path / "a.hgbundle").trained is None
    assert "hgprompt.training_images" not in describe(bundle)


def damaged(text: str, **changes: object) -> str:
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "changes", [{"count": 2}, {"count": "x"}, {"hashes": "AAAA"}, {"hashes": "!"}, {"hashes": 1}]
)
def test_damaged_text_is_refused(changes: dict[str, object]) -> None:
    text = remembered(hashes_of(3)).to_json()
    with pytest.raises((ValueError, TypeError, LookupError)):
        TrainingImages.from_json(damaged(text, **changes))


@pytest.mark.parametrize("fault", ["no looks", "no facts", "short", "floats", "too many"])
def test_damaged_tensors_are_refused(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "a.hgbundle"
    bundle = replace(make_bundle(make_backbone()), trained=remembered(hashes_of(3)))
    write_bundle(path, bundle)
    tensors, metadata = read_safetensors(path)
    if fault == "no looks":
        del tensors["training.looks"]
    elif fault == "no facts":
        del metadata["training_images"]
    elif fault == "short":
        tensors["training.looks"] = tensors["training.looks"][:2]
    elif fault == "floats":
        tensors["training.digests"] = tensors["training.digests"].astype(np.float32)
    else:
        metadata["training_images"] = '{"count": 2, "near": true}'
    write_safetensors(path, tensors, metadata)
    with pytest.raises(UserError, match="damaged bundle"):
        read_bundle(path)


def test_known_images_are_those_of_equal_pixels_and_their_copies() -> None:
    pytest.importorskip("imagehash")
    trained = remembered(stack([hash_picture(scene(i)) for i in range(10)]))
    asked = [scene(20), scene(3), ImageOps.mirror(scene(4)), scene(5).resize((80, 60)), scene(21)]
    known = find_known(stack([hash_picture(picture) for picture in asked]), trained)
    assert known.same.tolist() == [1]
    assert known.near.tolist() == [2, 3]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that was fitted on `d`, its model, and one without hashes."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten_start(patch)
        small_bank(folder / "bank")
        for k, label in enumerate(("dots", "ring")):
            for part, count in (("train", 6), ("test", 3)):
                (folder / "d" / part / label).mkdir(parents=True)
                for i in range(count):
                    number = 100 * k + i + (50 if part == "test" else 0)
                    scene(number, (80, 80)).save(folder / "d" / part / label / f"{i}.png")
        fit = run("fit", "--sources", "bank", "--steps", "0", "--data", "d")
        assert fit.exit_code == 0, fit.output
        for words in (("export",), ("export", "--no-training-hashes", "-o", "silent.onnx")):
            exported = run(*words)
            assert exported.exit_code == 0, exported.output
    return folder


def bundle_of(folder: Path) -> Bundle:
    return read_bundle(folder / "d.hgbundle")


def test_a_fit_remembers_training_and_validation_images(fitted: Path) -> None:
    trained = bundle_of(fitted).trained
    assert trained is not None
    paths = sorted((fitted / "d" / "train").rglob("*.png"))
    expected = {hash_picture(scene(100 * k + i, (80, 80))).digest for k in (0, 1) for i in range(6)}
    assert len(paths) == trained.count == len(trained.digests) == 12
    assert set(trained.digests.tolist()) == expected


def test_evaluate_says_which_images_trained_the_model(fitted: Path) -> None:
    model = str(fitted / "d.onnx")
    clean = run("evaluate", model, "--data", str(fitted / "d"))
    assert clean.exit_code == 0, clean.output
    assert "training images" not in clean.stderr.replace("near-copies of its training images", "")
    asked = run("evaluate", model, "--data", str(fitted / "d"), "--split", "all", "--json")
    assert asked.exit_code == 0, asked.output
    said = " ".join(asked.stderr.split())
    assert "12 of the 18 images were among its training images, pixel for pixel" in said
    document = json.loads(asked.stdout)
    found = document["models"][0]["training_images"]
    assert sorted(found["same"]) == sorted(
        f"train/{label}/{i}.png" for label in ("dots", "ring") for i in range(6)
    )
    assert (found["count"], found["recorded"], found["near_copies"]) == (12, 12, [])
    row = json.loads(
        run("evaluate", model, "--data", str(fitted / "d"), "--split", "test", "--json").stdout
    )["models"][0]
    assert found["accuracy_on_new_images"] == row["accuracy"], "the others are the test part"
    assert "accuracy on the other 6 images" in said
    assert document["two_classes"] == []


def test_evaluate_names_a_picture_in_two_classes(fitted: Path, tmp_path: Path) -> None:
    for number, label in enumerate(("dots", "ring")):
        (tmp_path / "e" / label).mkdir(parents=True)
        scene(300, (80, 80)).save(tmp_path / "e" / label / "same.bmp")
        scene(301 + number, (80, 80)).save(tmp_path / "e" / label / "own.png")
    asked = run("evaluate", str(fitted / "d.onnx"), "--data", str(tmp_path / "e"), "--json")
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["two_classes"] == [["dots/same.bmp", "ring/same.bmp"]]
    assert "1 image is a copy, pixel for pixel, of images of another class" in " ".join(
        asked.stderr.split()
    )


def test_a_model_without_hashes_says_so(fitted: Path) -> None:
    model = fitted / "silent.onnx"
    keys = {entry.key for entry in onnx.load(model, load_external_data=False).metadata_props}
    assert "hgprompt.training_images" not in keys
    asked = run("evaluate", str(model), "--data", str(fitted / "d"), "--json")
    assert json.loads(asked.stdout)["models"][0]["training_images"] is None
    assert "does not record which images it was trained on" in " ".join(asked.stderr.split())
    assert run("verify", str(model), "--bundle", str(fitted / "d.hgbundle")).exit_code == 0
