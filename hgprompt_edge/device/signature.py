"""Signatures of models, by the OpenSSF's `model-signing`, with a key of one's own.

A signature covers the files of one model, by name, and stands beside them as `NAME.sig`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hgprompt_edge.errors import CheckError, UserError
from hgprompt_edge.files import atomic_path


def signature_path(model: Path) -> Path:
    """Return where the signature of a model lies."""
    return model.with_name(f"{model.name}.sig")


def sign(model: Path, key: Path) -> Path:
    """Sign a model's files with a private key (PEM, elliptic curve); returns the signature's path.

    Raises
    ------
    UserError
        `model-signing` is not installed, or the key cannot be used.
    """
    signer = check_signer(key)
    path = signature_path(model)
    with _folder_of(model) as folder, atomic_path(path) as temporary:
        signer.sign(folder, temporary)
    return path


def check_signer(key: Path) -> Any:
    """Return what signs with a private key, or refuse the key before anything is written."""
    signing = _library("signing")
    check_key(key, "--sign")
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--sign {key}: not a private key of an elliptic curve in PEM; make one with "
            "`openssl ecparam -name prime256v1 -genkey -noout`"
        ) from error


def check_signature(model: Path, key: Path) -> str:
    """Check a model's files against its signature with a public key (PEM).

    Returns the name of the signature.

    Raises
    ------
    UserError
        `model-signing` is not installed, or signature or key are missing or unusable.
    CheckError
        The signature is not of this key, or a file has changed; says which.
    """
    verifying = _library("verifying")
    check_key(key, "--key")
    path = signature_path(model)
    if not path.is_file():
        raise UserError(f"{path}: no such signature; make one with `hgedge export --sign KEY`")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError) as error:
        raise UserError(f"--key {key}: not a public key of an elliptic curve in PEM") from error
    with _folder_of(model) as folder:
        try:
            verifier.verify(folder, path)
        except Exception as error:  # whatever is wrong with a signature, it does not hold
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise CheckError(f"{path.name} does not hold: {reason[:300]}") from error
    return path.name


def model_files(model: Path) -> list[Path]:
    """Return the files that a model is made of: itself, and the weights that IR keeps beside it."""
    return [model, model.with_suffix(".bin")] if model.suffix == ".xml" else [model]


def check_key(key: Path, option: str) -> None:
    """Refuse a key file that is not there."""
    if not key.is_file():
        raise UserError(f"{option} {key}: no such key file; check the path")


def _library(part: str) -> Any:
    if find_spec("model_signing") is None:
        raise UserError(
            "signatures need model-signing, which is not installed; "
            "run `pip install 'hgprompt-edge[sign]'`"
        )
    from importlib import import_module

    return import_module(f"model_signing.{part}")


@contextmanager
def _folder_of(model: Path) -> Iterator[Path]:
    """Yield a folder that holds the files of one model alone, as the library wants it."""
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".signing-") as name:
        for path in model_files(model):
            if not path.is_file():
                raise UserError(f"{path}: no such file, and the model needs it; copy both files")
            try:
                os.link(path, Path(name) / path.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, Path(name) / path.name)
        yield Path(name)
