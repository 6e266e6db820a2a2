"""Signing in and out: by a one-time link on this machine, or at an OpenID Connect provider.

Owns the pages of both and the bound on tries. Must not know what a provider says (``oidc``).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.access import AccessSettings
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.credentials import Credentials
from fraudsvc.console.oidc import Attempt, Oidc, OidcError
from fraudsvc.console.pages import Templates
from fraudsvc.console.person import Person
from fraudsvc.console.sessions import Session, Sessions

ATTEMPT_S = 600  # to come back from the provider
ADDRESSES_MAX = 4_096
WINDOW_S = 60.0
HOME = "/queue"


class Tries:
    """Bounds tries an address, and of all, within WINDOW_S. Keeps ADDRESSES_MAX addresses."""

    def __init__(self, per_address: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._max, self._clock_s = per_address, clock_s
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=10 * per_address)

    def wait_s(self, address: str) -> float:
        """Count a try; return how long to wait where it is one too many, 0.0 where not."""
        now_s = self._clock_s()
        with self._lock:
            own = self._tries.setdefault(address, deque(maxlen=self._max))
            self._tries.move_to_end(address)
            if len(self._tries) > ADDRESSES_MAX:
                self._tries.popitem(last=False)
            for tries in (own, self._all):
                if len(tries) == tries.maxlen and now_s - tries[0] < WINDOW_S:
                    return WINDOW_S - (now_s - tries[0])
            own.append(now_s)
            self._all.append(now_s)
        return 0.0


@dataclass(frozen=True, slots=True)
class Doors:
    """Who keeps sessions and links, the provider where there is one, and how long each lasts."""

    sessions: Sessions
    credentials: Credentials
    oidc: Oidc | None
    tries: Tries
    absolute_s: float

    def of_session(self, session_id: str) -> Session | None:
        """Return a session by its cookie. Raises SessionsError."""
        return self.sessions.find(session_id)

    def of_token(self, token: str) -> Person | None:
        """Return the machine that a bearer token is of."""
        return self.credentials.of_token(token)


class SignIn:
    """The pages by which people come and go."""

    def __init__(
        self, templates: Templates, doors: Doors, settings: AccessSettings, trail: AuditTrail
    ) -> None:
        self._templates, self._doors = templates, doors
        self._settings, self._trail = settings, trail
        # Of this process: a sign-in that a restart falls into is begun again.
        self._signer = URLSafeTimedSerializer(secrets.token_bytes(32), salt="sign-in")

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/sign-in", self.page),
            Route("/sign-in/link", self.link),
            Route("/sign-in/oidc", self.begin),
            Route("/sign-in/callback", self.callback),
            Route("/sign-out", self.sign_out, methods=["POST"]),
        ]

    def page(self, request: Request) -> Response:
        """Say how to sign in."""
        return self._page(request, 200, "ended" if "ended" in request.query_params else "")

    def link(self, request: Request) -> Response:
        """Let in who has a one-time link."""
        late = self._late(request)
        if late is not None:
            return late
        token = request.query_params.get("token", "")
        person = self._doors.credentials.use_link(token)
        if person is None:
            return self._page(request, 403, "used")
        return self._let_in(request, person, "link", request.query_params.get("next", HOME))

    def begin(self, request: Request) -> Response:
        """Send the browser to the provider."""
        late = self._late(request)
        if late is not None:
            return late
        if self._doors.oidc is None:
            return self._page(request, 404, "")
        try:
            attempt = self._doors.oidc.begin()
        except OidcError as error:
            return self._page(request, 502, "failed", str(error))
        answer = RedirectResponse(attempt.url, 303)
        kept = [attempt.state, attempt.nonce, attempt.verifier, _next(request)]
        self._set(answer, self._attempt_cookie, str(self._signer.dumps(kept)), ATTEMPT_S)
        return answer

    def callback(self, request: Request) -> Response:
        """Let in whom the provider vouches for."""
        late = self._late(request)
        if late is not None:
            return late
        if self._doors.oidc is None:
            return self._page(request, 404, "")
        cookie = request.cookies.get(self._attempt_cookie, "")
        try:
            state, nonce, verifier, there = self._signer.loads(cookie, max_age=ATTEMPT_S)
            person = self._doors.oidc.finish(
                Attempt("", state, nonce, verifier), dict(request.query_params)
            )
        except BadSignature:
            return self._page(request, 400, "failed", "it took too long, or began elsewhere")
        except OidcError as error:
            return self._page(request, 403, "failed", str(error))
        answer = self._let_in(request, person, "OpenID Connect", there)
        answer.delete_cookie(self._attempt_cookie, "/")
        return answer

    def sign_out(self, request: Request) -> Response:
        """End the session."""
        self._doors.sessions.end(request.cookies.get(self._settings.cookie, ""))
        self._trail.audit(request.state.person, "sign out", "session")
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(self._settings.cookie, "/", secure=self._settings.secure)
        return answer

    @property
    def _attempt_cookie(self) -> str:
        return "__Host-fraud_sign_in" if self._settings.secure else "fraud_sign_in"

    def _let_in(self, request: Request, person: Person, way: str, there: str) -> Response:
        self._trail.audit(person, "sign in", "session", new=way)
        old = request.cookies.get(self._settings.cookie, "")
        if old:
            self._doors.sessions.end(old)
        answer = RedirectResponse(_own_path(there), 303)
        made = self._doors.sessions.begin(person)
        self._set(answer, self._settings.cookie, made, round(self._doors.absolute_s))
        return answer

    def _set(self, answer: Response, name: str, value: str, seconds: int) -> None:
        answer.set_cookie(
            name, value, max_age=seconds, path="/", secure=self._settings.secure, httponly=True,
            samesite="lax",
        )  # fmt: skip

    def _late(self, request: Request) -> Response | None:
        """Refuse one try too many."""
        address = request.client.host if request.client else ""
        wait_s = self._doors.tries.wait_s(address)
        if not wait_s:
            return None
        answer = self._page(request, 429, "late", f"{wait_s:.0f}")
        answer.headers["retry-after"] = f"{wait_s:.0f}"
        return answer

    def _page(self, request: Request, status: int, what: str, detail: str = "") -> Response:
        values: dict[str, Any] = {
            "what": what, "detail": detail, "next": _next(request),
            "by_provider": self._doors.oidc is not None,
        }  # fmt: skip
        return self._templates.page(request, "sign_in.html", status, **values)


def _next(request: Request) -> str:
    return _own_path(request.query_params.get("next", HOME))


def _own_path(there: str) -> str:
    """Return a path of this console, HOME for what could lead elsewhere."""
    is_own = there.startswith("/") and not there.startswith(("//", "/\\", "/sign-"))
    return there if is_own and there.isprintable() else HOME
