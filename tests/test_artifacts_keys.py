"""Keys of other kinds and with a passphrase, and signatures of models that are links."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from command_line import run
from small_vits import make_backbone, make_bundle

pytest.importorskip("model_signing")  # cryptography comes with it

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hgprompt_edge.artifacts.keys import PASSPHRASE
from hgprompt_edge.artifacts.signature import check_signature, sign
from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.export.onnx_file import export_onnx

OTHERS = {
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, "a key of type Ed25519,"),
    "Ed448": (ed448.Ed448PrivateKey.generate, "a key of type Ed448,"),
    "X25519": (x25519.X25519PrivateKey.generate, "a key of type X25519,"),
    "RSA": (lambda: rsa.generate_private_key(65537, 1024), "a key of type RSA,"),
    "DSA": (lambda: dsa.generate_private_key(1024), "a key of type DSA,"),
    "secp256k1": (
        lambda: ec.generate_private_key(ec.SECP256K1()),
        "an elliptic-curve key on secp256k1,",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    export_onnx(make_bundle(make_backbone()), make_backbone(), path)
    return path


def write_pair(folder: Path, key: object, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """Write a private and its public key, PEM."""
    how = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    spki = PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, spki))
    return private, public


def sentence(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize("kind", OTHERS)
def test_keys_of_other_kinds_are_named(tmp_path: Path, model: Path, kind: str) -> None:
    make, name = OTHERS[kind]
    private, public = write_pair(tmp_path, make())
    takes = "signatures take an elliptic-curve key (P-256, P-384, P-521); "
    text = sentence("export", "any.hgbundle", "--sign", str(private))
    assert f"--sign {private}: {name} and {takes}make one with `openssl" in text
    signed = shutil.copy(model, tmp_path)
    (tmp_path / "m.onnx.sig").write_text("{}")
    text = sentence("verify", str(signed), "--key", str(public))
    assert f"--key {public}: {name} and {takes}give the public key of" in text


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_every_curve_that_is_named_signs(
    tmp_path: Path, model: Path, curve: ec.EllipticCurve
) -> None:
    private, public = write_pair(tmp_path, ec.generate_private_key(curve))
    copied = Path(shutil.copy(model, tmp_path))
    assert sign(copied, private) == tmp_path / "m.onnx.sig"
    assert check_signature(copied, public) == "m.onnx.sig"


def test_a_passphrase_comes_from_the_environment(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()), b"s\xc3\xa4")
    export = ("export", "any.hgbundle", "--sign", str(private))
    monkeypatch.delenv(PASSPHRASE, raising=False)
    text = sentence(*export)
    assert f"{private}: this key has a passphrase; give it in" in text
    assert "HGEDGE_KEY_PASSPHRASE" in text
    monkeypatch.setenv(PASSPHRASE, "wrong")
    assert "the passphrase in HGEDGE_KEY_PASSPHRASE does not open this key" in sentence(*export)
    monkeypatch.setenv(PASSPHRASE, "sä")
    copied = Path(shutil.copy(model, tmp_path))
    sign(copied, private)
    assert check_signature(copied, public) == "m.onnx.sig"


def test_a_passphrase_that_is_not_needed_does_no_harm(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "for another key")
    private, public = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    copied = Path(shutil.copy(model, tmp_path))
    sign(copied, private)
    assert check_signature(copied, public) == "m.onnx.sig"


@pytest.fixture
def signed(tmp_path: Path, model: Path) -> tuple[Path, Path]:
    """A signed model in a folder of its own, and the public key."""
    private, public = write_pair(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "v3").mkdir()
    copied = Path(shutil.copy(model, tmp_path / "v3"))
    sign(copied, private)
    return copied, public


def test_a_model_that_is_a_link_verifies(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    model, key = signed
    current = tmp_path / "current"
    current.mkdir()
    for file in (model, model.with_name("m.onnx.sig")):
        (current / file.name).symlink_to(file)
    assert run("verify", str(current / "m.onnx"), "--key", str(key)).exit_code == 0
    # The link alone, under another name: the file that it leads to has its signature beside it.
    (tmp_path / "latest.onnx").symlink_to(model)
    assert run("verify", str(tmp_path / "latest.onnx"), "--key", str(key)).exit_code == 0
    # A link to the folder.
    (tmp_path / "folder").symlink_to(model.parent)
    assert run("verify", str(tmp_path / "folder" / "m.onnx"), "--key", str(key)).exit_code == 0


def test_a_link_into_a_store_that_names_files_by_content_verifies(
    tmp_path: Path, signed: tuple[Path, Path]
) -> None:
    model, key = signed
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    shutil.copy(model, blobs / "0123abcd")
    shutil.copy(model.with_name("m.onnx.sig"), tmp_path / "m.onnx.sig")
    (tmp_path / "m.onnx").symlink_to(blobs / "0123abcd")
    assert run("verify", str(tmp_path / "m.onnx"), "--key", str(key)).exit_code == 0


def test_a_link_to_other_bytes_fails(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    model, key = signed
    other = tmp_path / "other.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    other.write_bytes(data)
    current = tmp_path / "current"
    current.mkdir()
    (current / "m.onnx").symlink_to(other)
    shutil.copy(model.with_name("m.onnx.sig"), current)
    result = run("verify", str(current / "m.onnx"), "--key", str(key))
    assert result.exit_code == 1
    assert "m.onnx.sig does not hold" in result.stdout
    with pytest.raises(CheckError):
        check_signature(current / "m.onnx", key)


def test_a_folder_that_cannot_be_written_verifies(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, key = signed
    honest = tempfile.TemporaryDirectory

    def refuse(**options: object) -> object:
        if options.get("dir") == model.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return honest(**options)

    monkeypatch.setattr("hgprompt_edge.artifacts.signature.tempfile.TemporaryDirectory", refuse)
    assert check_signature(model, key) == "m.onnx.sig"


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    model, key = signed
    link = tmp_path / "gone.onnx"
    link.symlink_to(tmp_path / "nowhere.onnx")
    shutil.copy(model.with_name("m.onnx.sig"), tmp_path / "gone.onnx.sig")
    with pytest.raises(UserError, match=r"gone\.onnx: no such file"):
        check_signature(link, key)
