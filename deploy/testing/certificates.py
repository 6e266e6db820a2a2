"""A throw-away certificate authority for tests of TLS, and for drills.

Owns a CA and what it signs, for 127.0.0.1 and localhost, valid for a day. Must not be used for
anything but a test: no key has a password. `python -m deploy.testing.certificates FOLDER` makes
what a drill needs.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALID = datetime.timedelta(days=1)
_Builder = x509.CertificateBuilder
HOSTS = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


class Certificates(NamedTuple):
    """Where the files are: the CA's certificate, and a server's key with its certificate."""

    authority: Path
    server: Path


class Pair(NamedTuple):
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates, for servers and for callers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("throw-away test CA")
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        path.write_bytes(_pem(certificate))

    def issue(self, common_name: str, hosts: Sequence[x509.GeneralName] = HOSTS) -> bytes:
        """Return a key and a certificate for it, one after the other as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name(common_name), self._name, key.public_key())
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _key_pem(key) + _pem(certificate)

    def write(
        self, pair: Pair, common_name: str, hosts: Sequence[x509.GeneralName] = HOSTS
    ) -> Pair:
        """Issue a certificate and write it and its key to files of their own."""
        key, mark, rest = self.issue(common_name, hosts).partition(b"-----BEGIN CERTIFICATE")
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(key)
        pair.certificate.write_bytes(mark + rest)
        return pair


def write_certificates(directory: Path) -> Certificates:
    """Make a CA and a certificate that it signs; write both as PEM."""
    files = Certificates(directory / "ca.pem", directory / "server.pem")
    authority = Authority(files.authority)
    files.server.touch(mode=0o600)
    files.server.write_bytes(authority.issue("localhost"))
    return files


def write_set(folder: Path, servers: int) -> None:
    """Make two authorities, certificates for a server that is renewed, and a caller of each.

    `authority.pem` signs `server-0` on and `caller`; `other.pem` signs `stranger`. A pair is a
    `.crt` and a `.key`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours, other = Authority(folder / "authority.pem"), Authority(folder / "other.pem")
    signed = {"caller": ours, "stranger": other}
    signed |= {f"server-{number}": ours for number in range(servers)}
    for name, authority in signed.items():
        authority.write(Pair(folder / f"{name}.crt", folder / f"{name}.key"), name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> _Builder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as PKCS #8, the only form that the broker reads."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def main() -> None:
    """Make the files."""
    parser = argparse.ArgumentParser(prog="python -m deploy.testing.certificates")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--servers", type=int, default=2, help="certificates of the server")
    options = parser.parse_args()
    write_set(options.folder, options.servers)


if __name__ == "__main__":
    main()
