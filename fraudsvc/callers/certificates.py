"""The certificate of the gRPC port, taken up again when its files change.

Owns which files make a pair that can be used. gRPC asks before each handshake, so a look costs two
calls of stat; the files are read only where these differ. A pair that cannot be used is refused
and told, and the one in use stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

FILE_BYTES_MAX = 1 << 20


class CertificateError(ValueError):
    """The files are no certificate with its key."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM. With ``client_ca`` a caller must have a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that there is."""
        return tuple(each for each in (self.certificate, self.key, self.client_ca) if each)


class Pair(NamedTuple):
    """What the files held: chain, key, signers of callers, and until when it is good."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    until_s: float


def read_pair(files: TlsFiles) -> Pair:
    """Return what the files hold, if it can be used. Raises CertificateError."""
    chain, key, *more = [_read(path) for path in files.all]
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        private = load_pem_private_key(key, None)
        for signers in more:
            x509.load_pem_x509_certificates(signers)
    except (ValueError, TypeError) as error:  # TypeError: a key that wants a password
        raise CertificateError(f"not PEM that can be used: {type(error).__name__}") from None
    leaf = certificates[0]
    if leaf.public_key() != private.public_key():
        raise CertificateError(f"{files.key} is not the key of {files.certificate}")
    until_s = leaf.not_valid_after_utc.timestamp()
    return Pair(chain, key, more[0] if more else None, until_s)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise CertificateError(f"{path}: more than {FILE_BYTES_MAX} bytes")
    return data


class Certificates:
    """Gives gRPC the pair in use. Raises CertificateError for a first one that cannot be used."""

    def __init__(self, files: TlsFiles, on_change: Callable[[str], object]) -> None:
        self._files = files
        self._on_change = on_change
        self._seen = _marks(files)
        self._pair = read_pair(files)

    @property
    def until_s(self) -> float:
        """Until when the certificate in use is good, in seconds since 1970."""
        return self._pair.until_s

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that look at the files before each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._pair),
            self.look,  # type: ignore[arg-type]  # None is for no change, as grpc's own text says
            self._files.client_ca is not None,
        )

    def look(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is new, None where nothing is."""
        marks = _marks(self._files)
        if marks == self._seen:
            return None
        self._seen = marks
        try:
            pair = read_pair(self._files)
        except CertificateError as error:
            self._on_change(f"certificate refused, the one in use stays: {error}")
            return None
        self._pair = pair
        self._on_change("a new certificate is in use")
        return _configuration(pair)


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.chain)], root_certificates=pair.client_ca
    )


def _marks(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """Return what changes when a file is written or replaced, also through a link."""
    found = []
    for path in files.all:
        try:
            told = os.stat(path)  # noqa: PTH116 - one call, before each handshake
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((told.st_mtime_ns, told.st_ino, told.st_size))
    return tuple(found)
