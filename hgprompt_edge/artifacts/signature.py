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

from hgprompt_edge.artifacts.ir_weights import ir_weights
from hgprompt_edge.artifacts.keys import check_private_key, check_public_key
from hgprompt_edge.errors import CheckError, FileError, MissingPackageError
from hgprompt_edge.files import atomic_path


def signature_path(model: Path) -> Path:
    """Return where the signature of a model lies."""
    return model.with_name(f"{model.name}.sig")


def sign(model: Path, private_key: Path) -> Path:
    """Sign a model's files with a private key (PEM, elliptic curve); returns the signature's path.

    The passphrase of a key that has one is in the environment, see `keys.PASSPHRASE`.

    Raises
    ------
    UserError
        `model-signing` is not installed, or the key cannot be used.
    """
    signer = check_signer(private_key)
    path = signature_path(model)
    with _folder_of(model, model.name) as folder, atomic_path(path) as temporary:
        signer.sign(folder, temporary)
    return path


def check_signer(private_key: Path) -> Any:
    """Return what signs with a private key, or refuse the key before anything is written."""
    signing = _library("signing")
    passphrase = check_private_key(private_key)
    return signing.Config().use_elliptic_key_signer(private_key=private_key, password=passphrase)


def check_signature(model: Path, key: Path) -> str:
    """Check a model's files against its signature with a public key (PEM).

    A model that is a link is checked under its own name or, where that is another one, under that
    of the file that it leads to; its signature lies beside the link or beside that file. Returns
    the name of the signature.

    Raises
    ------
    UserError
        `model-signing` is not installed, or signature or key are missing or unusable.
    CheckError
        The signature is not of this key, or a file has changed; says which.
    """
    verifying = _library("verifying")
    check_public_key(key)
    path = find_signature(model)
    if path is None:
        raise FileError(
            signature_path(model),
            "no such signature; make one with `hgedge export` and `private_key='KEY'`",
        )
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    names = dict.fromkeys((model.name, model.resolve().name))
    first = None
    for name in names:
        with _folder_of(model, name) as folder:
            try:
                verifier.verify(folder, path)
                return path.name
            except Exception as error:  # whatever is wrong with a signature, it does not hold
                first = first or error
    reason = next(iter(str(first).strip().splitlines()), repr(first))
    raise CheckError(f"{path.name} does not hold: {reason[:300]}") from first


def find_signature(model: Path) -> Path | None:
    """Return the signature of a model, beside it or beside the file that it is a link to."""
    places = (signature_path(model), signature_path(model.resolve()))
    return next((path for path in places if path.is_file()), None)


def model_files(model: Path) -> list[Path]:
    """Return the files that a model is made of: itself, and the weights that IR keeps beside it."""
    return [model, ir_weights(model)] if model.suffix == ".xml" else [model]


def _library(part: str) -> Any:
    if find_spec("model_signing") is None:
        raise MissingPackageError("signing", "model-signing", "sign")
    from importlib import import_module

    return import_module(f"model_signing.{part}")


@contextmanager
def _folder_of(model: Path, name: str) -> Iterator[Path]:
    """Yield a folder that holds the files of one model alone, as the library wants it.

    The model has a `name` there. The library refuses links, so what they lead to is in it.
    """
    files = model_files(model)
    for path in files:
        if not path.is_file():
            raise FileError(path, "no such file, and the model needs it; copy both files")
    with _temporary_folder(model.parent) as folder:
        for path in files:
            place = folder / (name if path == model else Path(name).with_suffix(path.suffix))
            try:
                os.link(path.resolve(), place)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, place)
        yield folder


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, where files need not be copied, or else where one can be."""
    try:
        made = tempfile.TemporaryDirectory(dir=parent, prefix=".signing-")
    except OSError:  # a device's models may lie where nothing can be written
        made = tempfile.TemporaryDirectory(prefix="hgedge-signing-")
    with made as name:
        yield Path(name)
