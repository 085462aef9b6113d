"""Keys that models are signed with: which kinds are taken, and what is wrong with others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hgprompt_edge.errors import ParameterError, os_reason
from hgprompt_edge.paths import why_not

PASSPHRASE = "HGEDGE_KEY_PASSPHRASE"
"""Environment variable with the passphrase of a private key. An option would show it to everybody
who can list processes."""
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""Those of `model-signing`, by their names in `cryptography`."""
TAKEN = f"an elliptic-curve key ({', '.join(CURVES.values())})"
PRIVATE, PUBLIC = "private_key", "key"
"""The parameters that take them."""
MAKE = "`openssl ecparam -name prime256v1 -genkey -noout`"
MAKE_PUBLIC = "`openssl pkey -in PRIVATE -pubout`"


def check_private_key(path: Path) -> bytes | None:
    """Refuse a file that cannot sign; returns the passphrase that it needs, None for none.

    Raises
    ------
    UserError
        No PEM, another kind of key than `TAKEN`, or a passphrase that is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path, PRIVATE)
    passphrase = os.environ.get(PASSPHRASE, "").encode() or None
    needed = None
    try:
        try:
            key = load_pem_private_key(pem, None)
        except TypeError:  # it has a passphrase
            if passphrase is None:
                raise ParameterError(
                    PRIVATE,
                    path,
                    f"this key has a passphrase; give it in the environment variable {PASSPHRASE}",
                ) from None
            needed = passphrase
            key = load_pem_private_key(pem, needed)
    except UnsupportedAlgorithm as error:
        raise ParameterError(PRIVATE, path, f"an unknown kind of key; give {TAKEN}") from error
    except ValueError as error:
        if needed is not None:
            raise ParameterError(
                PRIVATE,
                path,
                f"the passphrase in {PASSPHRASE} does not open this key; correct it, or the file "
                "is damaged",
            ) from error
        raise ParameterError(
            PRIVATE, path, f"not a private key in PEM; give {TAKEN}, made with {MAKE}"
        ) from error
    _check_kind(key, PRIVATE, path, f"make one with {MAKE}")
    return needed


def check_public_key(path: Path) -> None:
    """Refuse a file that cannot check a signature.

    Raises
    ------
    UserError
        No PEM, a private key or a certificate, or another kind of key than `TAKEN`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    pem = _read(path, PUBLIC)
    for word, what in ((b"PRIVATE KEY", "a private key"), (b"CERTIFICATE", "a certificate")):
        if b"-----BEGIN " in pem and word in pem:
            raise ParameterError(
                PUBLIC,
                path,
                f"{what}, not a public key; write the public key of a private one with "
                f"{MAKE_PUBLIC}",
            )
    try:
        key = load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ParameterError(PUBLIC, path, f"an unknown kind of key; give {TAKEN}") from error
    except ValueError as error:
        raise ParameterError(
            PUBLIC, path, f"not a public key in PEM; write one with {MAKE_PUBLIC}"
        ) from error
    _check_kind(key, PUBLIC, path, "give the public key of the one that signed")


def _read(path: Path, parameter: str) -> bytes:
    if not path.is_file():
        raise ParameterError(parameter, path, f"{why_not(path, 'key file')}; check the path")
    try:
        return path.read_bytes()
    except OSError as error:
        reason = os_reason(error)
        raise ParameterError(parameter, path, f"cannot be read ({reason}); check it") from error


def _check_kind(key: Any, parameter: str, path: Path, advice: str) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        # `Ed25519PrivateKey`, `_RSAPublicKey` and the like name their kind.
        name = type(key).__name__.lstrip("_")
        kind = name.removesuffix("PrivateKey").removesuffix("PublicKey")
        found = f"an elliptic-curve key on {curve}" if curve else f"a key of type {kind}"
        raise ParameterError(parameter, path, f"{found}, and signatures take {TAKEN}; {advice}")
