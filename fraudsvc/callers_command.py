"""Owns the options of `serve` and `up` that say who may call, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fraudsvc.callers.certificates import TlsFiles

_LOOPBACK = ("127.", "localhost:", "[::1]:", "unix:", "unix-abstract:")
# Flag, environment variable, meaning.
FILES = (
    ("--tls-cert", "FRAUD_TLS_CERT", "certificate of the gRPC port; without, no TLS"),
    ("--tls-key", "FRAUD_TLS_KEY", "its key"),
    ("--client-ca", "FRAUD_CLIENT_CA", "who signs the certificates of callers (mutual TLS)"),
    ("--callers", "FRAUD_CALLERS", "file of who may call what; without, anyone anything"),
)


class CallerOptions(NamedTuple):
    """Which files say who may call; None for none."""

    tls: TlsFiles | None = None
    callers: Path | None = None


def add_caller_options(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add the options; defaults are in the environment's variables."""
    for flag, variable, meaning in FILES:
        default = environment.get(variable, "")
        parser.add_argument(flag, default=default, help=f"{meaning} ({variable})")
    parser.add_argument(
        "--plaintext", action="store_true", default=environment.get("FRAUD_PLAINTEXT", "") == "1",
        help="no TLS beyond this machine, as the network is private (FRAUD_PLAINTEXT=1)",
    )  # fmt: skip


def caller_options(args: argparse.Namespace) -> CallerOptions:
    """Return what the options say. Raises ValueError where they cannot be together."""
    if bool(args.tls_cert) != bool(args.tls_key):
        raise ValueError("--tls-cert and --tls-key go together")
    if args.client_ca and not args.tls_cert:
        raise ValueError("--client-ca wants --tls-cert and --tls-key")
    if args.callers and not args.tls_cert:
        raise ValueError("--callers wants TLS: without, nobody's name is proved")
    if not args.tls_cert and not args.plaintext and not args.address.startswith(_LOOPBACK):
        raise ValueError(
            f"{args.address} is open to others: give --tls-cert and --tls-key, or say --plaintext"
        )
    if not args.tls_cert:
        return CallerOptions()
    client_ca = Path(args.client_ca) if args.client_ca else None
    tls = TlsFiles(Path(args.tls_cert), Path(args.tls_key), client_ca)
    return CallerOptions(tls, Path(args.callers) if args.callers else None)


def caller_arguments(args: argparse.Namespace) -> list[str]:
    """Return the options once more, for a child."""
    given = [(flag, getattr(args, flag[2:].replace("-", "_"))) for flag, _, _ in FILES]
    found = [part for flag, value in given if value for part in (flag, value)]
    return [*found, "--plaintext"] if args.plaintext else found
