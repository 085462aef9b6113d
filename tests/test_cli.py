"""The command line as a user meets it: the main job letter for letter, and bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from layouts import listed, write_parquet
from PIL import Image
from pyarrow.parquet import write_table
from safetensors.numpy import save_file as save_safetensors
from typer.testing import CliRunner, Result

from hgprompt_edge.cli.main import app
from hgprompt_edge.device.predictor import Predictor
from hgprompt_edge.files import write_safetensors
from hgprompt_edge.prompts import bundled_bank, read_bank

PETS = ("Abyssinian", "Birman", "Bombay")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def photo(path: Path, hue: int, seed: int) -> None:
    """Save a noisy square whose colour tells the class."""
    rng = np.random.default_rng([hue, seed])
    base = np.full((48, 56, 3), 60.0)
    base[..., hue] = 180
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (base + rng.normal(0, 25, base.shape)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


def class_folders(folder: Path, per_class: int = 12) -> Path:
    for hue, name in enumerate(PETS):
        for index in range(per_class):
            photo(folder / name / f"{index}.jpg", hue, index)
    return folder


def pets_archive(folder: Path) -> None:
    """Lay out images as the Oxford-IIIT Pet archive does."""
    base = folder / "oxford-iiit-pet"
    for part, numbers in (("trainval", range(1, 11)), ("test", range(11, 15))):
        lines = []
        for hue, name in enumerate(PETS):
            for i in numbers:
                photo(base / "images" / f"{name}_{i}.jpg", hue, i)
                lines.append(f"{name}_{i} {hue + 1} 1 1")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def small_bank(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(bundled_bank().glob("*.safetensors"))[:count]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ./prompts and ./data, as in the README."""
    folder = tmp_path_factory.mktemp("workplace")
    small_bank(folder / "prompts")
    pets_archive(folder / "data")
    photo(folder / "photo.jpg", 0, 999)
    return folder


def hgedge(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    command = [sys.executable, "-m", "hgprompt_edge.cli.main", *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HGEDGE_CACHE": str(folder / "cache"), **environment},
    )


def test_the_three_commands_letter_for_letter(workplace: Path) -> None:
    fit = hgedge(workplace, *"fit --sources ./prompts --task pets".split())
    assert fit.returncode == 0, fit.stderr
    assert "chosen on held-out images" in fit.stdout
    assert "next: hgedge export" in fit.stdout
    assert (workplace / "pets.hgbundle").exists()
    assert (workplace / "pets.png").read_bytes().startswith(b"\x89PNG")

    export = hgedge(workplace, *"export --format onnx".split())
    assert export.returncode == 0, export.stderr
    assert "equal to PyTorch" in export.stdout
    assert "pets.hgbundle, the newest bundle here" in export.stderr

    blocked = "raise ImportError('not on a device')"
    for name in ("torch", "timm", "onnx", "scipy", "sklearn", "matplotlib", "torchvision"):
        (workplace / "nothing" / name).mkdir(parents=True, exist_ok=True)
        (workplace / "nothing" / name / "__init__.py").write_text(blocked)
    predict = hgedge(
        workplace,
        *"predict --model pets.onnx photo.jpg --json".split(),
        PYTHONPATH=str(workplace / "nothing"),
    )
    assert predict.returncode == 0, predict.stderr
    (answer,) = json.loads(predict.stdout)
    assert answer["image"] == "photo.jpg"
    assert answer["classes"][0]["label"] == "Abyssinian"
    assert 0 < answer["classes"][0]["probability"] <= 1


def test_fit_prints_one_json_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bank, data = small_bank(tmp_path / "bank"), class_folders(tmp_path / "mine")
    words = f"fit --sources {bank} --data {data} --refine 1 --json"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["task"] == "mine"
    assert [row["method"] for row in document["table"]] == [
        "none",
        "best_source",
        "uniform",
        "learned",
    ]
    assert sum(document["learned_weights"].values()) == pytest.approx(1)
    first = (tmp_path / "mine.hgbundle").read_bytes()
    assert run(*words.split()).exit_code == 0
    assert (tmp_path / "mine.hgbundle").read_bytes() == first


def test_predict_as_table_and_csv(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (workplace / "pets.onnx").exists():
        pytest.skip("needs the model of the test above")
    monkeypatch.chdir(workplace)
    table = run(*"predict --model pets.onnx photo.jpg --top 2".split())
    assert table.exit_code == 0
    assert "photo.jpg" in table.stdout
    result = run(*"predict --model pets.onnx data/oxford-iiit-pet/images --csv --top 2".split())
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 2 * 42
    assert {row["rank"] for row in rows} == {"1", "2"}
    (workplace / "broken.jpg").write_bytes(b"no image")
    broken = run(*"predict --model pets.onnx photo.jpg broken.jpg".split())
    assert broken.exit_code == 2
    assert "photo.jpg" in broken.stdout
    assert "broken.jpg" in broken.stderr


def test_prompt_show_and_cache(tmp_path: Path) -> None:
    shown = run("prompt", "show", "bundled")
    assert shown.exit_code == 0
    assert "gtsrb" in shown.stdout
    facts = json.loads(run("prompt", "show", "bundled", "--json").stdout)
    assert all(fact["init_seed"] == 0 for fact in facts)
    assert json.loads(run("cache", "show", "--json").stdout)["files"] == 0
    assert json.loads(run("cache", "clear", "--json").stdout)["files"] == 0
    assert json.loads(run("doctor", "--json").stdout)["packages"]["numpy"]


def test_prompt_train_writes_a_prompt_that_fit_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgprompt_edge.vit.start.NEUTRAL_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    data = class_folders(tmp_path / "mine", 20)
    words = f"prompt train --data {data} --tokens 2 --epochs 1 --batch-size 16 --all-images"
    result = run(*words.split())
    assert result.exit_code == 0, result.stderr
    assert "unprompted" in result.stdout
    assert [path.name for path in (tmp_path / "prompts").iterdir()] == ["mine.safetensors"]
    fit = run("fit", "--sources", "prompts", "--data", str(data), "--refine", "0", "--steps", "5")
    assert fit.exit_code == 0, fit.stderr


def test_compare_and_tune(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgprompt_edge.vit.start.NEUTRAL_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGEDGE_CACHE", str(workplace / "cache"))
    data = class_folders(tmp_path / "mine", 20)
    images = f"--sources {workplace / 'prompts'} --data {data}".split()
    methods = "none,uniform,soup,hgprompt,tune"
    compared = run("compare", *images, "--methods", methods, "--tune-steps", "1")
    assert compared.exit_code == 0, compared.stderr
    assert "HGPrompt, then tuned" in compared.stdout
    document = json.loads((tmp_path / "mine.compare.json").read_text())
    assert [row["method"] for row in document["rows"]] == methods.split(",")
    assert (tmp_path / "mine.compare.png").read_bytes().startswith(b"\x89PNG")
    assert run("fit", *images, "--refine", "0", "--steps", "5").exit_code == 0
    tuned = run("tune", "--data", str(data), "--steps", "1", "--batch-size", "16", "--json")
    assert tuned.exit_code == 0, tuned.stderr
    result = json.loads(tuned.stdout)
    assert [row["method"] for row in result["table"]][-1] == "tuned"
    assert sorted(path.name for path in tmp_path.glob("*.hgbundle")) == [
        "mine.hgbundle",
        "mine.tuned.hgbundle",
    ]
    assert not list(tmp_path.glob(".*.tuning"))
    exported = run("export", "mine.tuned.hgbundle", "--output", "mine.onnx")
    assert exported.exit_code == 0, exported.stderr


def vpt_file(path: Path, tokens: np.ndarray) -> None:
    """Save tokens as the VPT code does."""
    torch.save({"shallow_prompt": tokens[:1], "deep_prompt": tokens[1:]}, path)


def test_prompts_of_others_are_imported_matched_and_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = np.random.default_rng(0).normal(size=(8, 3, 192)).astype(np.float32)
    vpt_file(tmp_path / "prompt_ep100.pth", tokens)
    shuffled = {f"layers.{i}.prompt": tokens[i, ::-1].copy() for i in range(8)}
    save_safetensors(shuffled, tmp_path / "other.safetensors")
    common = "--backbone bundled --preprocessing imagenet"
    first = run(*f"prompt import prompt_ep100.pth {common} --name a --task svhn".split())
    assert first.exit_code == 0, first.stderr
    assert "deep: 8 layers x 3 tokens x 192; pixels: mean 0.485 0.456 0.406, std" in first.stdout
    assert first.stdout.endswith("next: hgedge fit --sources prompts --task NAME\n")
    second = run(*f"prompt import other.safetensors {common} --name b --json".split())
    assert json.loads(second.stdout)["normalization"]["mean"] == [0.485, 0.456, 0.406]
    shown = json.loads(run("prompt", "show", "prompts", "--json").stdout)
    assert [(fact["name"], fact["family"]) for fact in shown] == [("a", "digits"), ("b", "")]
    assert all(fact["init_seed"] is None for fact in shown)
    assert "None" not in run("prompt", "show", "prompts").stdout
    for prompt in read_bank("prompts").prompts:
        np.testing.assert_array_equal(prompt.tokens, tokens)

    data = str(class_folders(tmp_path / "mine"))
    fit = run(*"fit --sources prompts --refine 0 --steps 5 --data".split(), data)
    assert fit.exit_code == 0, fit.stderr
    assert "b: not known to share a's init_seed; its tokens were matched to it" in fit.stderr
    assert "normalised as for these prompts: mean 0.485 0.456 0.406" in fit.stderr
    export = run("export")
    assert export.exit_code == 0, export.stderr
    assert Predictor(tmp_path / "mine.onnx").preprocessing.mean == (0.485, 0.456, 0.406)


def test_an_imported_prompt_does_not_fit_a_bank_of_other_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_bank(tmp_path / "prompts", 1)
    vpt_file(tmp_path / "a.pth", read_bank("bundled").tokens[0])
    words = "prompt import a.pth --backbone bundled --name z --preprocessing"
    for pixels, code in (("imagenet", 2), ("inception", 0), ("backbone", 0)):
        assert run(*words.split(), pixels).exit_code == 0
        shown = run("prompt", "show", "prompts")
        assert shown.exit_code == code
        assert ("keep one bank a normalisation" in shown.stderr) == (code == 2)


BAD_IMPORTS = {
    "missing": ("none.pth --backbone bundled --name a", "none.pth: no such file"),
    "a folder": (". --backbone bundled --name a", ".: no such file"),
    "a path as name": ("a.pth --backbone bundled --name ../a", "--name '../a': must be"),
    "no name": ("a.pth --backbone bundled --name=", "--name '': must be"),
    "unknown backbone": ("a.pth --backbone vit_tin --name a", "--backbone vit_tin: neither"),
    "another width": ("a.pth --backbone bundled --name a", "a.pth: its tokens are 100 wide"),
    "truncated": ("half.pth --backbone bundled --name a", "half.pth: truncated or not"),
    "code": ("code.pth --backbone bundled --name a", "code.pth: wants posix.system"),
}


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_a_bad_import_is_one_sentence_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vpt_file(tmp_path / "a.pth", np.ones((8, 3, 100), np.float32))
    (tmp_path / "half.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:2000])
    torch.save({"shallow_prompt": Code()}, tmp_path / "code.pth")
    words, message = BAD_IMPORTS[name]
    before = sorted(tmp_path.rglob("*"))
    result = run("prompt", "import", *words.split(), "--preprocessing", "imagenet")
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


class Code:
    """Pickled, it asks for a command when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def empty(tmp_path: Path) -> str:
    (tmp_path / "empty").mkdir()
    return "--sources empty --task digits"


def truncated_prompt(tmp_path: Path) -> str:
    bank = small_bank(tmp_path / "bank", 1)
    path = next(bank.iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    return "--sources bank --task digits"


def gigabyte_header(tmp_path: Path) -> str:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "a.safetensors").write_bytes(struct.pack("<Q", 3 << 30) + b"{}")
    return "--sources bank --task digits"


def prompt_with_nan(tmp_path: Path) -> str:
    (tmp_path / "bank").mkdir()
    tokens = np.full((8, 2, 192), np.nan, np.float32)
    write_safetensors(
        tmp_path / "bank" / "a.safetensors", {"prompt": tokens}, {"format": "hgprompt.prompt/1"}
    )
    return "--sources bank --task digits"


def no_class_folders(tmp_path: Path) -> str:
    photo(tmp_path / "flat" / "a.jpg", 0, 0)
    return "--data flat"


def single_class(tmp_path: Path) -> str:
    for index in range(5):
        photo(tmp_path / "one" / "only" / f"{index}.jpg", 0, index)
    return "--data one"


def lonely_image(tmp_path: Path) -> str:
    class_folders(tmp_path / "mine")
    photo(tmp_path / "mine" / "lonely" / "a.jpg", 1, 1)
    return "--data mine"


def unreadable_images(tmp_path: Path) -> str:
    folder = class_folders(tmp_path / "mine")
    (folder / PETS[0] / "3.jpg").write_bytes(b"not an image")
    return "--data mine"


def list_of_missing_images(tmp_path: Path) -> str:
    folder = listed(tmp_path / "kitti", 4)
    (folder / "images" / "test" / "000002.png").unlink()
    return "--data kitti"


def list_with_a_label_outside(tmp_path: Path) -> str:
    folder = listed(tmp_path / "kitti", 5)
    return f"--task kitti --data {folder.name}"


def list_without_a_test_list(tmp_path: Path) -> str:
    (listed(tmp_path / "data" / "vtab-1k" / "dmlab", 6) / "test.txt").unlink()
    return "--task dmlab"


def parquet_without_images(tmp_path: Path) -> str:
    table = pyarrow.table({"text": ["a", "b"] * 9, "label": [0, 1] * 9})
    (tmp_path / "mine").mkdir()
    write_table(table, tmp_path / "mine" / "train.parquet")
    return "--data mine"


def parquet_with_a_label_outside(tmp_path: Path) -> str:
    write_parquet(tmp_path / "mine" / "train.parquet", [0, 1, 2] * 6, names=("a", "b"))
    return "--data mine"


def hub_out_of_reach(_: Path) -> str:
    return "--task cifar100 --data hf:uoft-cs/cifar100"


def output_not_writable(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("")
    return "--task digits --output file/a.hgbundle"


BAD_FITS = {
    "nothing to fit": (lambda _: "", "--task: name a data set"),
    "unknown task": (lambda _: "--task pest", "pets"),
    "missing data": (lambda _: "--data nowhere", "nowhere"),
    "known task without data": (lambda _: "--task pets", "--download"),
    "missing bank": (lambda _: "--sources nowhere --task digits", "--sources nowhere"),
    "empty bank": (empty, "the bank is empty"),
    "truncated prompt": (truncated_prompt, "truncated or not a safetensors file"),
    "gigabyte header": (gigabyte_header, "the header claims"),
    "NaN": (prompt_with_nan, "NaN or inf"),
    "another backbone": (lambda _: "--task digits --backbone vit_tiny_patch16_22", "vit_tiny"),
    "no class folders": (no_class_folders, "flat"),
    "single class": (single_class, "one"),
    "lonely image": (lonely_image, "lonely"),
    "unreadable": (unreadable_images, "3.jpg"),
    "list of missing images": (list_of_missing_images, "such as images/test/000002.png"),
    "list with a label outside": (list_with_a_label_outside, "the class 4 is outside of 0 to 3"),
    "list without a test list": (list_without_a_test_list, "dmlab: no test.txt beside"),
    "parquet without images": (parquet_without_images, "no image column among text, label"),
    "parquet with a label outside": (parquet_with_a_label_outside, "row 2: the label 2 is outside"),
    "hub out of reach": (hub_out_of_reach, "name their local folder with --data DIR"),
    "no id of the hub": (lambda _: "--data hf:cifar100", "write hf:ORG/NAME"),
    "by hand": (lambda _: "--task retinopathy", "into data/vtab-1k/diabetic_retinopathy, or name"),
    "near a structured task": (lambda _: "--task dsprites-locations", "near: dsprites-location"),
    "not writable": (output_not_writable, "--output: cannot write"),
}


def no_network(*_: object, **__: object) -> None:
    raise ConnectionError("name or service not known")


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    make, words = BAD_FITS[name]
    options = make(tmp_path).split()
    before = sorted(tmp_path.rglob("*"))
    result = run("fit", *options)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_in_two_lists_is_told_and_the_fit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = listed(tmp_path / "data" / "vtab-1k" / "kitti", 4, per_class=6)
    test = (folder / "test.txt").read_text().splitlines()
    with (folder / "train800.txt").open("a") as file:
        file.write("\n".join(test[:2]))
    bank = small_bank(tmp_path / "prompts")
    result = run(*f"fit --sources {bank} --task kitti --refine 0 --steps 5".split())
    assert result.exit_code == 0, result.stderr
    assert "2 image(s) of test.txt are in the training lists, too" in result.stderr
    assert "kitti: 4 classes; 24 train, 4 validation, 4 test images" in result.stdout
    assert (tmp_path / "kitti.hgbundle").exists()


BAD_CALLS = {
    "predict without a model": "predict --model none.onnx a.jpg",
    "export without a bundle": "export",
    "export of a foreign file": "export foreign.hgbundle",
    "show of nothing": "prompt show nowhere",
    "prompt train without a task": "prompt train",
    "compare without a task": "compare",
    "compare with an unknown method": "compare --task digits --methods none,best",
    "tune without a bundle": "tune --task digits",
    "import without saying which pixels": "prompt import a.pth --backbone bundled --name a",
    "import for no backbone": "prompt import a.pth --preprocessing imagenet --name a",
    "unknown option": "fit --tasks digits",
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_exit_with_two(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.hgbundle").write_bytes(b"something else")
    result = run(*BAD_CALLS[name].split())
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_defaults_are_those_of_the_estimator() -> None:
    from hgprompt_edge import HGPrompt
    from hgprompt_edge.cli.fit import fit

    estimator, command = signature(HGPrompt).parameters, signature(fit).parameters
    for name in ("lam", "steps", "refine", "space", "head", "seed", "keep_sources"):
        assert getattr(command[name].default, "value", command[name].default) == (
            estimator[name].default
        )


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgprompt_edge.transfer.fit.HGPrompt.fit", interrupt)
    result = run("fit", "--data", str(class_folders(tmp_path / "mine")))
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert not list(tmp_path.glob("*.hgbundle"))


def test_a_bug_shows_its_traceback_and_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hgprompt_edge.prompts.read_bank", broken)
    monkeypatch.chdir(tmp_path)
    result = run("fit", "--task", "digits")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "this is a bug" in result.stderr
