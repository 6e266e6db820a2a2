"""Owns the options of access, and the commands that make a one-time link and a machine's token."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featurizer.adapters import directory_of
from featurizer.kafka_settings import kafka_settings
from fraudsvc.console.person import ROLES, VIEWER, Person

if TYPE_CHECKING:
    from fraudsvc.console.gate import GateOptions
    from fraudsvc.console.operations import OperationsOptions


def add_access(console: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Add the options of access to the console's."""
    env = environment.get
    _add_home(console, environment)
    told = (
        ("--public-url", "FRAUD_CONSOLE_URL", "address that people come by, such as https://…"),
        ("--oidc-issuer", "FRAUD_OIDC_ISSUER", "OpenID provider; without it, one-time links"),
        ("--oidc-client", "FRAUD_OIDC_CLIENT", "id of this console at the provider"),
        ("--oidc-secret-file", "FRAUD_OIDC_SECRET_FILE", "file with the client's secret"),
        ("--oidc-roles", "FRAUD_OIDC_ROLES", "the provider's words: analyst=WORD,lead=WORD"),
        ("--oidc-name-claim", "FRAUD_OIDC_NAME_CLAIM", "claim that names a person"),
    )
    for flag, variable, meaning in told:
        console.add_argument(flag, default=env(variable, ""), help=f"{meaning} ({variable})")
    console.add_argument(
        "--oidc-roles-claim", default=env("FRAUD_OIDC_ROLES_CLAIM", "roles"),
        help="claim with the roles, names within one another by dots (FRAUD_OIDC_ROLES_CLAIM)",
    )  # fmt: skip
    console.add_argument("--oidc-scope", default="openid profile email", help="asked for")
    console.add_argument(
        "--second-person", choices=("yes", "no"), default=env("FRAUD_SECOND_PERSON", "yes"),
        help="whether a policy goes live by another person than who made it (FRAUD_SECOND_PERSON)",
    )  # fmt: skip
    console.add_argument(
        "--kafka", default=env("FRAUD_KAFKA", ""), help="URL of further dead letters (FRAUD_KAFKA)"
    )
    console.add_argument("--what-if-seconds", type=float, default=300.0, help="a backtest may take")
    console.add_argument("--idle-minutes", type=float, default=30.0, help="until a session ends")
    console.add_argument("--session-hours", type=float, default=12.0, help="that one lasts in all")
    console.add_argument("--tries-a-minute", type=int, default=10, help="to sign in, an address")


def _add_home(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    parser.add_argument(
        "--home", default=environment.get("FRAUD_CONSOLE_HOME", ""),
        help="folder of sessions, links and proposals; `console` beside the log"
        " (FRAUD_CONSOLE_HOME)",
    )  # fmt: skip


def home_of(args: argparse.Namespace) -> Path:
    """Return the folder of sessions, links and proposals."""
    return Path(args.home or directory_of(args.log).parent / "console")


def gate_options(args: argparse.Namespace, environment: Mapping[str, str]) -> GateOptions:
    """Return the options of access. Raises ValueError, OSError."""
    from fraudsvc.console.gate import CALLBACK, GateOptions  # noqa: PLC0415 - a web server's
    from fraudsvc.console.oidc import OidcSettings, roles_of  # noqa: PLC0415 - as above

    oidc = None
    if args.oidc_issuer:
        if not args.public_url:
            raise ValueError("OpenID Connect wants --public-url, where the provider sends people")
        secret = environment.get("FRAUD_OIDC_SECRET", "")
        if args.oidc_secret_file:
            secret = Path(args.oidc_secret_file).read_text().strip()
        oidc = OidcSettings(
            args.oidc_issuer, args.oidc_client, secret, args.public_url.rstrip("/") + CALLBACK,
            args.oidc_scope, args.oidc_roles_claim, args.oidc_name_claim,
            roles_of(args.oidc_roles),
        )  # fmt: skip
    return GateOptions(
        home_of(args), args.public_url, oidc, args.idle_minutes * 60, args.session_hours * 3600,
        tries_a_minute=args.tries_a_minute,
    )  # fmt: skip


def operations_options(args: argparse.Namespace) -> OperationsOptions:
    """Return the options of the operations pages."""
    from fraudsvc.console.operations import OperationsOptions  # noqa: PLC0415 - as above

    return OperationsOptions(
        home_of(args), args.log, args.data, args.policy, args.capacity, args.what_if_seconds,
        args.second_person == "yes", kafka_settings(args.kafka) if args.kafka else None,
    )  # fmt: skip


def add_keys(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environment: Mapping[str, str]
) -> None:
    """Add `console-link` and `console-token`; ``run`` of both returns the text to print."""
    link = commands.add_parser("console-link", help="make a link that lets a person in once")
    token = commands.add_parser("console-token", help="make a token by which a machine asks")
    for each in (link, token):
        each.add_argument("--log", default=environment.get("FRAUD_LOG", "file://data/log"))
        _add_home(each, environment)
    link.add_argument("--name", default="", help="of the person; who runs this")
    link.add_argument("--role", choices=ROLES, default=ROLES[-1], help="with those below it")
    link.add_argument("--minutes", type=float, default=15.0, help="within which to open it")
    link.add_argument("--next", default="", help="path to go to")
    link.set_defaults(text=_link)
    token.add_argument("--name", required=True, help="of the machine, in the audit trail")
    token.add_argument("--role", choices=ROLES, default=VIEWER, help="with those below it")
    token.set_defaults(text=_token)


def _person(name: str, role: str) -> Person:
    return Person(name, frozenset(ROLES[: ROLES.index(role) + 1]))


def _link(args: argparse.Namespace) -> str:
    from fraudsvc.console.gate import new_link, user_name  # noqa: PLC0415 - as above

    person = _person(args.name or user_name(), args.role)
    return new_link(home_of(args), person, round(args.minutes * 60), args.next)


def _token(args: argparse.Namespace) -> str:
    from fraudsvc.console.credentials import Credentials  # noqa: PLC0415 - as above

    return Credentials(home_of(args)).new_token(_person(args.name, args.role))
