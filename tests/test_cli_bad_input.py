"""Bad input at the command line: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from command_line import PETS, class_folders, photo, run, small_bank
from layouts import listed, write_parquet
from pyarrow.parquet import write_table
from typer.main import get_command

from hgprompt_edge.cli.main import app
from hgprompt_edge.compare.baselines import METHODS
from hgprompt_edge.files import write_safetensors


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


def named_by_a_path(tmp_path: Path) -> str:
    class_folders(tmp_path / "mine")
    return "--task a/b --data mine"


def lonely_image(tmp_path: Path) -> str:
    class_folders(tmp_path / "mine")
    photo(tmp_path / "mine" / "lonely" / "a.jpg", 1, 1)
    return "--data mine"


def unreadable_images(tmp_path: Path) -> str:
    folder = class_folders(tmp_path / "mine")
    for name in ("2.jpg", "3.jpg"):
        (folder / PETS[0] / name).write_bytes(b"not an image")
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
    "a path for a name": (named_by_a_path, "--task 'a/b': must be a name without"),
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
    "tune of two prompts": (lambda _: "--task digits --tune --folded 2", "--tune: trains one"),
    "not writable": (output_not_writable, "--output: cannot write"),
}


def no_network(*_: object, **__: object) -> None:
    raise ConnectionError("name or service not known")


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{call}", no_network)
    make, words = BAD_FITS[name]
    options = make(tmp_path).split()
    before = sorted(tmp_path.rglob("*"))
    result = run("fit", "--backbone", "tiny", *options)
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
    result = run(*f"fit --sources {bank} --task kitti --steps 0".split())
    assert result.exit_code == 0, result.stderr
    assert "2 image(s) of test.txt are in the training lists, too" in result.stderr
    assert "kitti: 4 classes; 24 train, 4 validation, 4 test images" in result.stdout
    assert (tmp_path / "kitti.hgbundle").exists()


def test_a_step_of_fewer_images_than_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in range(17):
        for index in range(4):
            photo(tmp_path / "many" / f"kind{label:02}" / f"{index}.jpg", label % 3, index)
    assert run(*"fit --backbone tiny --sources none --data many".split()).exit_code == 0
    before = sorted(tmp_path.iterdir())
    for words in ("tune many.hgbundle", "prompt train --backbone tiny --output many"):
        result = run(*words.split(), "--data", "many", "--batch-size", "16")
        assert result.exit_code == 2, result.stderr
        told = "--batch-size 16: fewer images a step than the 17 classes of many"
        assert told in result.stderr.splitlines()[-1]
        assert sorted(tmp_path.iterdir()) == before


BAD_CALLS = {
    "predict without a model": "predict --model none.onnx a.jpg",
    "evaluate without images": "evaluate none.onnx",
    "export without a bundle": "export",
    "export of a foreign file": "export foreign.hgbundle",
    "show of nothing": "prompt show nowhere",
    "prompt train without a task": "prompt train",
    "compare without a task": "compare",
    "compare with an unknown method": "compare --task digits --methods none,best",
    "tune without a bundle": "tune --task digits",
    "import without saying which pixels": "prompt import a.pth --backbone tiny --name a",
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


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict --model x.hgbundle a.jpg", "x.hgbundle: a bundle, not a model; run `hgedge exp"),
        ("adapt --model x.hgbundle --data .", "x.hgbundle: a bundle, not a model"),
        ("verify x.hgbundle", "x.hgbundle: a bundle, not a model"),
        ("bench x.hgbundle", "x.hgbundle: a bundle, not a model"),
        ("evaluate x.hgbundle --data .", "x.hgbundle: a bundle, not a model"),
        ("export x.onnx", "x.onnx: a model, not a bundle"),
        ("tune x.xml", "x.xml: a model, not a bundle"),
        ("condition x.onnx", "x.onnx: a model, not a bundle"),
    ],
)
def test_a_bundle_is_not_taken_for_a_model(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a.jpg", 0, 0)
    for name in ("x.hgbundle", "x.onnx", "x.xml"):
        (tmp_path / name).write_bytes(b"something else")
    result = run(*command.split())
    assert result.exit_code == 2
    assert words in result.stderr
    assert "truncated" not in result.stderr


def test_the_help_of_compare_names_every_method() -> None:
    (methods,) = (p for p in get_command(app).commands["compare"].params if p.name == "methods")
    named = methods.help.partition(": ")[2].rstrip(".").split(", ")
    assert named == list(METHODS)


@pytest.mark.parametrize("command", ["fit", "prompt train", "compare", "adapt"])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_has_32_bits_and_no_sign(command: str, seed: str) -> None:
    result = run(*command.split(), "--seed", seed)
    assert result.exit_code == 2
    assert "Invalid value for '--seed'" in result.stderr
