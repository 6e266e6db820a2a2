"""Owns `client` of the command line: its options, and what it sends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from fraudsvc.cardnumbers import looks_like_card_number
from fraudsvc.client.attempts import ClientError, ClientSettings, Failure
from fraudsvc.client.channels import Tls
from fraudsvc.client.documents import documents, transaction_of
from fraudsvc.client.score_report import Told, write_json, write_table
from fraudsvc.client.sync import FraudClient

NO_TRANSACTION = "NOT_A_TRANSACTION"


def add_client(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environment: Mapping[str, str]
) -> None:
    """Add the command; defaults are in the environment's variables."""
    parser = commands.add_parser("client", help="ask a scorer, as a payment service does")
    parser.add_argument("action", choices=("score",))
    parser.add_argument("--file", required=True, help="transactions as JSON; - is standard input")
    parser.add_argument("--address", default=environment.get("FRAUD_ADDRESS", "127.0.0.1:50051"))
    parser.add_argument("--deadline-ms", type=float, default=1_000.0, help="of all attempts")
    parser.add_argument("--attempts", type=int, default=4, help="at most, of a call")
    parser.add_argument("--channels", type=int, default=1, help="connections, taken in turn")
    parser.add_argument("--validate-only", action="store_true", help="decide, but write nothing")
    parser.add_argument("--format", choices=("json", "table"), help="a terminal gets a table")
    parser.add_argument(
        "--ca", type=Path, help="who signs the server's certificate; without, no TLS"
    )
    parser.add_argument("--cert", type=Path, help="certificate of one's own, for mutual TLS")
    parser.add_argument("--key", type=Path, help="its key")
    parser.add_argument("--server-name", default="", help="that the server's certificate names")
    parser.add_argument("--token-file", type=Path, help="holds a JWT; read for each call")
    parser.set_defaults(run=_client)


def _client(args: argparse.Namespace) -> int:
    shown = args.format or ("table" if sys.stdout.isatty() else "json")
    write = write_json if shown == "json" else write_table
    with _open(args) as client:
        if args.file == "-":
            return 0 if write(_answers(client, sys.stdin, args)) else 1
        with Path(args.file).open(encoding="utf-8") as file:
            return 0 if write(_answers(client, file, args)) else 1


def _open(args: argparse.Namespace) -> FraudClient:
    if args.ca is None and (args.cert or args.key):
        raise ValueError("--cert and --key want --ca")
    tls = None if args.ca is None else Tls(args.ca, args.cert, args.key, args.server_name)
    settings = ClientSettings(
        deadline_ms=args.deadline_ms, attempts_max=args.attempts, channels=args.channels
    )
    return FraudClient(args.address, settings, tls=tls, token=_token(args.token_file))


def _token(path: Path | None) -> Callable[[], str] | None:
    return None if path is None else lambda: path.read_text().strip()


def _answers(client: FraudClient, file: TextIO, args: argparse.Namespace) -> Iterator[Told]:
    for number, document in enumerate(documents(file), 1):
        try:
            transaction = transaction_of(document)
        except ValueError as error:
            yield Told(number, "", None, Failure("INVALID_ARGUMENT", NO_TRANSACTION, str(error)))
            continue
        shown = (
            "" if looks_like_card_number(transaction.transaction_id) else transaction.transaction_id
        )
        try:
            answer = client.score(transaction, validate_only=args.validate_only)
        except ClientError as error:
            yield Told(number, shown, None, error.failure)
        else:
            yield Told(number, shown, answer)
