"""Owns keys and signatures (Ed25519, RFC 8032). Must not know what is signed."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

KEY_BYTES_MAX = 16_384
SIGNATURE_BYTES = 64


class SigningError(Exception):
    """A key cannot be read or made, or a signature is not the key's."""


def public_path(key_path: Path) -> Path:
    """Return where the public half of a key lies."""
    return key_path.with_name(key_path.name + ".pub")


def create_key(key_path: Path) -> None:
    """Make a key: the private half in ``key_path`` (PEM, mode 0600), the public half beside it.

    Raises SigningError, with nothing replaced, where a file is there or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(key_path, private, 0o600)
    _write_new(public_path(key_path), public, 0o644)


def sign(key_path: Path, data: bytes) -> bytes:
    """Return the signature of ``data`` under a private key's file. Raises SigningError."""
    try:
        key = load_pem_private_key(read_key(key_path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{key_path} is no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{key_path} is no Ed25519 key")
    return key.sign(data)


def verify(public_key: bytes, data: bytes, signature: bytes) -> None:
    """Raise SigningError where ``signature`` is not that of ``data`` under the PEM key."""
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(f"no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError("the public key is no Ed25519 key")
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise SigningError("the signature is not the key's") from error


def read_key(path: Path) -> bytes:
    """Return a key file's bytes. Raises SigningError where there is none or it is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(KEY_BYTES_MAX + 1)
    except OSError as error:
        raise SigningError(f"cannot read the key {path}: {error.strerror}") from error
    if len(data) > KEY_BYTES_MAX:
        raise SigningError(f"{path} is larger than any key ({KEY_BYTES_MAX} bytes)")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    # Opened with its mode: at no moment can others read a private key.
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SigningError(f"cannot make the key {path}: {error.strerror}") from error
