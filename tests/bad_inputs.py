"""A folder with good and bad inputs for every command, on which each message can be asked for."""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow
import torch
from command_line import PETS, class_folders, photo, run, small_bank
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from layouts import listed, png, write_parquet
from PIL import Image
from planted import Planted
from pyarrow.parquet import write_table
from small_vits import make_bundle
from test_export_folded import TWO, of

from hgprompt_edge.artifacts.bank_entries import bank_sha256
from hgprompt_edge.artifacts.bundle import Bundle
from hgprompt_edge.artifacts.bundle_file import write_bundle
from hgprompt_edge.artifacts.folded import FoldedPrompt
from hgprompt_edge.backbones.load import load_backbone
from hgprompt_edge.export.device_folder import export_device
from hgprompt_edge.export.device_sources import Source
from hgprompt_edge.export.onnx_file import export_onnx
from hgprompt_edge.files import write_safetensors
from hgprompt_edge.runtime.learned import open_history
from hgprompt_edge.runtime.predictor import Predictor
from hgprompt_edge.state.update_file import write_update
from hgprompt_edge.state.version import Version

PROMPT = {"format": "hgprompt.prompt/1"}


def make_bad_inputs(folder: Path) -> None:
    """Fill `folder`; every path in the commands is relative to it."""
    (folder / "empty").mkdir()
    (folder / "blocked.png").mkdir()
    (folder / "file").write_text("")
    photo(folder / "a.jpg", 0, 0)
    (folder / "broken.jpg").write_bytes(b"not an image")
    _image_folders(folder)
    _lists_and_tables(folder)
    _prompts(folder)
    (folder / "wrong").mkdir()
    for name in ("x.hgbundle", "x.onnx", "x.xml", "x.pth", "x.safetensors", "x.json", "x.pem"):
        (folder / "wrong" / name).write_bytes(b"something else")
    (folder / "wrong" / "zip.pth").write_bytes(b"PK damaged")
    _bundles(folder / "tiny")
    fit = f"fit --backbone tiny --sources none --data {folder / 'many'}"
    run(*fit.split(), "--output", str(folder / "tiny" / "many.hgbundle"))
    _devices(folder / "device")
    _keys(folder / "keys")


def _image_folders(folder: Path) -> None:
    class_folders(folder / "mine", 5)
    class_folders(folder / "others", 4)
    photo(folder / "flat" / "a.jpg", 0, 0)
    class_folders(folder / "lonely", 4)
    photo(folder / "lonely" / "alone" / "a.jpg", 1, 1)
    class_folders(folder / "unreadable", 4)
    for name in ("2.jpg", "3.jpg"):
        (folder / "unreadable" / PETS[0] / name).write_bytes(b"not an image")
    class_folders(folder / "hollow", 4)
    (folder / "hollow" / "nothing").mkdir()
    for index in range(5):
        photo(folder / "one" / "only" / f"{index}.jpg", 0, index)
    for label in range(17):
        for index in range(4):
            photo(
                folder / "many" / f"kind{label:02}" / f"{index}.jpg", label % 3, 4 * label + index
            )


def _lists_and_tables(folder: Path) -> None:
    (listed(folder / "missing", 4) / "images" / "test" / "000002.png").unlink()
    listed(folder / "outside", 5)
    (listed(folder / "data" / "vtab-1k" / "dmlab", 6) / "test.txt").unlink()
    table = pyarrow.table({"text": ["a", "b"] * 9, "label": [0, 1] * 9})
    for name in ("texts", "rows", "damaged", "archive"):
        (folder / name).mkdir()
    write_table(table, folder / "texts" / "train.parquet")
    write_parquet(folder / "rows" / "train.parquet", [0, 1, 2] * 6, names=("a", "b"))
    (folder / "damaged" / "train.parquet").write_bytes(b"PAR1")
    (folder / "archive" / "images.zip").write_bytes(png(0, 0))
    (folder / "archive" / "labels.csv").write_text("image,label\na.png,a\n")


def _prompts(folder: Path) -> None:
    bank = small_bank(folder / "bank", 1)
    whole = next(bank.iterdir()).read_bytes()
    tokens = np.full((8, 2, 192), np.nan, np.float32)
    flat = np.zeros((8, 192), np.float32)
    for name in ("truncated", "gigabyte", "nan", "large", "flat-prompt", "unnamed", "newer"):
        (folder / name).mkdir()
    (folder / "truncated" / "a.safetensors").write_bytes(whole[:1000])
    (folder / "gigabyte" / "a.safetensors").write_bytes(struct.pack("<Q", 3 << 30) + b"{}")
    write_safetensors(folder / "nan" / "a.safetensors", {"prompt": tokens}, PROMPT)
    large = np.full((8, 2, 192), 1e5, np.float32)
    write_safetensors(folder / "large" / "a.safetensors", {"prompt": large}, PROMPT)
    write_safetensors(folder / "flat-prompt" / "a.safetensors", {"prompt": flat}, PROMPT)
    write_safetensors(folder / "unnamed" / "a.safetensors", {"weights": flat}, PROMPT)
    newer = {"format": "hgprompt.prompt/99"}
    write_safetensors(folder / "newer" / "a.safetensors", {"prompt": tokens}, newer)
    narrow = torch.ones(8, 3, 100)
    torch.save({"shallow_prompt": narrow[:1], "deep_prompt": narrow[1:]}, folder / "narrow.pth")
    good = torch.ones(8, 50, 192)
    torch.save({"shallow_prompt": good[:1], "deep_prompt": good[1:]}, folder / "good.pth")
    torch.save({"something": good}, folder / "unknown.pth")
    (folder / "half.pth").write_bytes((folder / "narrow.pth").read_bytes()[:2000])
    torch.save({"shallow_prompt": Code()}, folder / "code.pth")


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class Code:
    """Pickled, it asks for a command when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def _bundles(folder: Path) -> None:
    """Bundles of the backbone tiny, and what devices sent home for one of them."""
    backbone = load_backbone("tiny")
    tokens = np.random.default_rng(3).normal(size=(2, backbone.depth, 4, backbone.embed_dim))
    pets = replace(make_bundle(backbone), source_tokens=tokens.astype(np.float16))
    folder.mkdir()
    write_bundle(folder / "pets.hgbundle", pets)
    write_bundle(folder / "gone.hgbundle", replace(pets, data=str(folder / "deleted")))
    write_bundle(folder / "no-sources.hgbundle", replace(pets, source_tokens=None))
    write_bundle(folder / "other-weights.hgbundle", replace(pets, backbone_sha256="00" * 32))
    unsaved = replace(pets, checkpoint=str(folder / "own.safetensors"))
    write_bundle(folder / "no-checkpoint.hgbundle", unsaved)
    second = FoldedPrompt(None, pets.weights, pets.head, "none")
    write_bundle(folder / "folded.hgbundle", replace(pets, choice="folded", more=(second,)))
    whole = (folder / "pets.hgbundle").read_bytes()
    (folder / "truncated.hgbundle").write_bytes(whole[:5000])
    sent = folder / "sent"
    sent.mkdir()
    for number, first in enumerate((0.6, 0.62)):
        _send(sent / f"device{number}.json", pets, [first, 1 - first])
    (folder / "foreign").mkdir()
    _send(folder / "foreign" / "device.json", replace(pets, classes=("a", "b", "c", "d")), [1, 0])
    (folder / "cut").mkdir()
    (folder / "cut" / "device.json").write_text('{"format"')


def _send(path: Path, bundle: Bundle, weights: list[float]) -> None:
    version = Version(2, 1, 5.0, "labelled", np.array(weights, np.float32), None, None, 20, {})
    write_update(path, version, bank_sha256(bundle), classes=bundle.classes)


def _devices(folder: Path) -> None:
    """Models that adapt, that do not, that lost a file, and images that a device has seen."""
    folder.mkdir()
    planted = Planted(folder)  # pets.onnx
    for number, (image, label) in enumerate(zip(planted.images, planted.labels, strict=True)):
        _save(folder / "seen" / planted.predictor.classes[label] / f"{number}.png", image)
    for name in planted.predictor.classes[:2]:
        _save(folder / "strange" / name / "0.png", planted.images[0])
        _save(folder / "strange" / "no class" / "0.png", planted.images[0])
    _save(folder / "single" / planted.predictor.classes[0] / "0.png", planted.images[0])
    _save(folder / "single" / planted.predictor.classes[0] / "1.png", planted.images[1])
    for name, good in (("unreadable", 3), ("broken", 0)):
        own = folder / name / planted.predictor.classes[0]
        for number in range(good):
            _save(own / f"{number}.png", planted.images[number])
        own.mkdir(parents=True, exist_ok=True)
        for number in (8, 9):
            (own / f"{number}.png").write_bytes(b"no image")
    backbone = planted.backbone
    write_bundle(folder / "pets.hgbundle", planted.bundle)
    export_onnx(make_bundle(backbone), backbone, folder / "fixed.onnx")
    folded = of(backbone, TWO)
    export_onnx(folded, backbone, folder / "folded.onnx", runtime_weights=True, adapt=True)
    none = np.zeros(0, np.float32)
    plain = replace(make_bundle(backbone, "none"), sources=(), weights=none, learned_weights=none)
    export_onnx(plain, backbone, folder / "plain.onnx", runtime_weights=True, adapt=True)
    _device_folders(folder, planted)
    whole = (folder / "fixed.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: len(whole) // 2])
    model = onnx.load(folder / "fixed.onnx")
    record = model.metadata_props.add()
    record.key, record.value = "hgprompt.training_images", '{"count": 1}'
    onnx.save(model, folder / "bad-record.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "nameless.onnx")
    for name, bank in (("no-bank", None), ("no-graph", "pets"), ("other-bank", "plain")):
        (folder / name).mkdir()
        shutil.copy(folder / "pets.onnx", folder / name)
        if bank is not None:
            of_bank = folder / f"{bank}.bank.safetensors"
            shutil.copy(of_bank, folder / name / "pets.bank.safetensors")
    (folder / "foreign.state").mkdir()
    (folder / "foreign.state" / "history.sqlite").write_bytes(b"something else")
    (folder / "first.state").mkdir()


def _device_folders(folder: Path, planted: Planted) -> None:
    """Folders of two tasks with the same classes, that adapt and that do not, and a state."""
    tasks = [
        Source(Path(f"{name}.hgbundle"), replace(planted.bundle, task=name))
        for name in ("pets", "cars")
    ]
    export_device(tasks, planted.backbone, folder / "two", adapt=True)
    export_device(tasks, planted.backbone, folder / "two-fixed")
    pets = Predictor(folder / "two" / "pets.hgtask")
    open_history(folder / "two" / "pets.state", pets.require_bank(), pets.metadata).close()
    shutil.copytree(folder / "two", folder / "two-lost")
    (folder / "two-lost" / "bank.safetensors").unlink()
    (folder / "two-lost" / "default.onnx").unlink()
    shutil.copytree(folder / "two-fixed", folder / "two-broken")
    (folder / "two-broken" / "cars.hgtask").write_bytes(b"broken")


def _keys(folder: Path) -> None:
    """Key pairs of a kind that signs and of kinds that do not, and files that hold no key."""
    folder.mkdir()
    kinds = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(65537, 1024),
        "koblitz": ec.generate_private_key(ec.SECP256K1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }
    spki, pkcs8 = PublicFormat.SubjectPublicKeyInfo, PrivateFormat.PKCS8
    for name, key in kinds.items():
        pem = key.private_bytes(Encoding.PEM, pkcs8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(pem)
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, spki))
    locked = kinds["ec"].private_bytes(Encoding.PEM, pkcs8, BestAvailableEncryption(b"secret"))
    (folder / "locked.pem").write_bytes(locked)
    (folder / "empty.pub").write_bytes(b"")
    damaged = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    (folder / "damaged.pub").write_text(damaged)
    (folder / "certificate.pub").write_text("-----BEGIN CERTIFICATE-----\n")
