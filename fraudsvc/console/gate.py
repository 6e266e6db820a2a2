"""What the console's access is made of, from its options: sessions, links, provider and gate.

Owns the wiring. Must not know a page.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from fraudsvc.console.access import LOOPBACK, Access, AccessSettings
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.credentials import Credentials
from fraudsvc.console.oidc import Oidc, OidcSettings
from fraudsvc.console.pages import Templates
from fraudsvc.console.person import ROLES, Person
from fraudsvc.console.sessions import Sessions
from fraudsvc.console.sign_in import Doors, SignIn, Tries

PORT_FILE = "address"
CALLBACK = "/sign-in/callback"
_ANY_HOST = ("0.0.0.0", "::", "")  # noqa: S104 - compared with  # nosec B104


@dataclass(frozen=True, slots=True)
class GateOptions:
    """Where secrets are kept, by which address people come, and how long things last.

    ``home`` is for the owner alone. Without ``oidc`` one-time links let people in.
    """

    home: Path
    public_url: str = ""
    oidc: OidcSettings | None = None
    idle_s: float = 1_800.0
    absolute_s: float = 43_200.0
    link_s: int = 900
    tries_a_minute: int = 10


class Gate:
    """Everything before the pages. Raises OSError, SessionsError, ValueError."""

    def __init__(
        self, options: GateOptions, address: str, templates: Templates, trail: AuditTrail
    ) -> None:
        self._options, self._templates = options, templates
        self._credentials = Credentials(options.home)
        self._sessions = Sessions(
            options.home / "sessions.sqlite", options.idle_s, options.absolute_s
        )
        self._doors = Doors(
            self._sessions, self._credentials,
            None if options.oidc is None else Oidc(options.oidc),
            Tries(options.tries_a_minute), options.absolute_s,
        )  # fmt: skip
        bound, public = address.rpartition(":")[0].strip("[]"), urlsplit(options.public_url)
        hosts = {public.hostname, *(() if bound in _ANY_HOST else (bound,))} - {None}
        self._settings = AccessSettings(
            LOOPBACK | {str(each) for each in hosts}, secure=public.scheme == "https"
        )
        self._sign_in = SignIn(templates, self._doors, self._settings, trail)

    def routes(self) -> list[BaseRoute]:
        """Return the paths by which people come and go."""
        return self._sign_in.routes()

    def before(self, application: ASGIApp) -> Access:
        """Return the gate before an application."""
        return Access(application, self._doors, self._settings, self._templates.refusal)

    def opened(self, port: int) -> str:
        """Note the address for ``console-link``; return a first link, "" with a provider."""
        url = self._options.public_url.rstrip("/") or f"http://127.0.0.1:{port}"
        (self._options.home / PORT_FILE).write_text(url)
        self._credentials.drop_links()
        if self._options.oidc is not None:
            return ""
        return new_link(self._options.home, Person(user_name(), frozenset(ROLES)), self.link_s)

    @property
    def link_s(self) -> int:
        """How long a link lasts."""
        return self._options.link_s

    def close(self) -> None:
        """Let go of the files."""
        self._sessions.close()


def user_name() -> str:
    """Return who runs this process; "local" where the system has no name for them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "local"


def new_link(home: Path, person: Person, seconds: int, there: str = "") -> str:
    """Return a link that lets a person in once. Raises ValueError where no console was here."""
    try:
        url = (home / PORT_FILE).read_text()
    except OSError as error:
        raise ValueError(f"no console keeps its files in {home}: start it, or name --home") from (
            error
        )
    token = Credentials(home).new_link(person, seconds)
    return f"{url}/sign-in/link?token={token}" + (f"&next={quote(there)}" if there else "")
