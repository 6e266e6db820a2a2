"""Who may ask for what: roles, a table of paths, and the gate that every request passes.

Owns what is refused before a page is asked, and the headers of every answer. Must not know how
somebody signs in (``sign_in``), nor what a page does.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fraudsvc.cardnumbers import holds_card_number, looks_like_card_number
from fraudsvc.console.person import (
    ANALYST,
    LEAD,
    NOBODY,
    OPERATOR,
    ROLES,
    VIEWER,
    Person,
)
from fraudsvc.console.sessions import Session, SessionsError

EVERYONE = ""
NAME_MAX = 200  # characters
BODY_BYTES_MAX = 1 << 20
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Rule(NamedTuple):
    """Who may ask for what begins with ``path``; the first that fits counts."""

    methods: str  # "read", "write" or "all"
    path: str
    role: str


RULES = (
    Rule("all", "/healthz", EVERYONE),
    Rule("all", "/metrics", EVERYONE),
    Rule("all", "/static/", EVERYONE),
    Rule("all", "/sign-in", EVERYONE),
    Rule("write", "/sign-out", VIEWER),
    Rule("write", "/models", OPERATOR),
    Rule("write", "/dead-letters", LEAD),
    Rule("read", "/audit", LEAD),
    Rule("write", "/what-if/proposals", LEAD),
    Rule("write", "/", ANALYST),
    Rule("read", "/", VIEWER),
)
_MACHINES = ("/healthz", "/metrics")  # asked for by whatever name a host has for them

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def is_name(text: str) -> bool:
    """Return whether a text can be a person's name."""
    return 0 < len(text) <= NAME_MAX and text.isprintable() and text == text.strip()


def roles_up_to(roles: Collection[str]) -> frozenset[str]:
    """Return roles with those below them: who may more may what is less. Raises ValueError."""
    return frozenset(ROLES[: max((ROLES.index(each) for each in roles), default=-1) + 1])


def role_of(method: str, path: str) -> str:
    """Return the least role that may ask, EVERYONE for nobody in particular."""
    kind = "read" if method in _SAFE else "write"
    return next(r.role for r in RULES if r.methods in (kind, "all") and path.startswith(r.path))


class People(Protocol):
    """Tells who asks."""

    def of_session(self, session_id: str) -> Session | None:
        """Return a session by its cookie. Raises SessionsError."""
        ...

    def of_token(self, token: str) -> Person | None:
        """Return the machine that a bearer token is of."""
        ...


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """By which names the console is asked for, and whether only by TLS."""

    hosts: frozenset[str] = LOOPBACK
    secure: bool = False

    @property
    def cookie(self) -> str:
        """The session cookie's name; a browser takes the first from TLS alone."""
        return "__Host-fraud_session" if self.secure else "fraud_session"


Refuse = Callable[[Request, int, str, str], Response]


def refused(request: Request, status: int, reason: str, message: str) -> Response:
    """Return a refusal for a machine."""
    del request
    title = reason.replace("_", " ").capitalize()
    told = {"reason": reason, "title": title, "message": message}
    return JSONResponse({"error": told}, status)


class Access:
    """The gate before ``app``; ``page`` makes a refusal that a person reads.

    A page finds ``request.state.person`` and, for its forms, ``request.state.csrf``.
    """

    def __init__(
        self, app: ASGIApp, people: People, settings: AccessSettings, page: Refuse = refused
    ) -> None:
        self._app, self._people, self._settings, self._page = app, people, settings, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        send = _with_headers(send, scope["path"])
        answer = self._wrong_host(request) or self._card_number(request, _url_holds(request))
        answer = answer or await self._identify(request)
        if answer is None and scope["method"] not in _SAFE:
            body = await _body(receive)
            receive = _again(body, receive)
            answer = self._wrong_body(request, body)
        await (answer or self._app)(scope, receive, send)

    def _wrong_host(self, request: Request) -> Response | None:
        """Refuse what was asked for by a name that is not ours: another site's, made to be us."""
        name = urlsplit("//" + request.headers.get("host", "")).hostname
        if request.url.path in _MACHINES or name in self._settings.hosts:
            return None
        message = "the console is not called that; say its address with --public-url"
        return refused(request, 421, "UNKNOWN_HOST", message)

    async def _identify(self, request: Request) -> Response | None:
        """Find out who asks; return the refusal of who may not."""
        scope = request.scope
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        needed = role_of(scope["method"], scope["path"])
        try:
            person, session = await run_in_threadpool(self._who, request)
        except SessionsError as error:
            return self._refuse(request, 503, "SESSIONS_UNAVAILABLE", str(error))
        state["person"] = person or NOBODY
        if session is not None:
            state["csrf"] = session.csrf
        if needed == EVERYONE:
            state.pop("csrf", None)
            return None
        if person is None:
            return self._stranger(request)
        if not person.may(needed):
            message = f"this wants the role {needed}, which {person.name} has not"
            return self._refuse(request, 403, "ROLE_MISSING", message)
        return None

    def _who(self, request: Request) -> tuple[Person | None, Session | None]:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._people.of_token(token.strip()), None
        cookie = request.cookies.get(self._settings.cookie, "")
        session = self._people.of_session(cookie) if cookie else None
        return (None, None) if session is None else (session.person, session)

    def _stranger(self, request: Request) -> Response:
        """Bring a person to where they sign in, and back after it."""
        path = request.url.path
        if request.method in _SAFE and _wants_page(request):
            there = quote(path + (f"?{request.url.query}" if request.url.query else ""))
            ended = "&ended=1" if self._settings.cookie in request.cookies else ""
            return RedirectResponse(f"/sign-in?next={there}{ended}", 303)
        message = "sign in, then repeat this: nothing was changed"
        answer = self._refuse(request, 401, "SIGN_IN_NEEDED", message)
        answer.headers["www-authenticate"] = "Bearer"
        return answer

    def _wrong_body(self, request: Request, body: bytes | None) -> Response | None:
        """Refuse what is too long, not of a form of ours, or holds a card number."""
        if body is None:
            return self._refuse(request, 413, "TOO_LONG", f"at most {BODY_BYTES_MAX} bytes")
        forged = self._forged(request, body) if "csrf" in request.scope["state"] else None
        return forged or self._card_number(request, _body_holds(request.headers, body))

    def _card_number(self, request: Request, is_held: bool) -> Response | None:
        """Refuse a card number before a page shows it or keeps it."""
        if not is_held:
            return None
        message = "it holds what looks like a card number: nothing was kept or changed"
        return self._refuse(request, 400, "CARD_NUMBER_REFUSED", message)

    def _forged(self, request: Request, body: bytes) -> Response | None:
        """Refuse what no form of ours has sent."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        given = request.headers.get(CSRF_HEADER, "") or _field(request.headers, body)
        ours = origin is None or urlsplit(origin).netloc == host
        if ours and hmac.compare_digest(given.encode(), request.state.csrf.encode()):
            return None
        message = "the form was not of this session: load the page again and repeat"
        return self._refuse(request, 403, "FORM_NOT_OURS", message)

    def _refuse(self, request: Request, status: int, reason: str, message: str) -> Response:
        refuse = self._page if _wants_page(request) else refused
        return refuse(request, status, reason, message)


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get(
        "accept", ""
    )


def _url_holds(request: Request) -> bool:
    """Return whether a path or a query holds what looks like a card number."""
    return _path_holds(request.url.path) or _query_holds(request.url.query)


def _path_holds(path: str) -> bool:
    return any(map(looks_like_card_number, path.split("/")))  # an id that is a part is seen as one


def _query_holds(query: str) -> bool:
    pairs = parse_qsl(query, keep_blank_values=True)
    return any(_path_holds(unquote(text)) for pair in pairs for text in pair)


def _body_holds(headers: Headers, body: bytes) -> bool:
    if _is_form(headers):
        return _query_holds(body.decode(errors="replace"))
    return holds_card_number(body)


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith("application/x-www-form-urlencoded")


def _field(headers: Headers, body: bytes) -> str:
    if not _is_form(headers):
        return ""
    try:
        return parse_qs(body.decode()).get(CSRF_FIELD, [""])[0]
    except ValueError:
        return ""


def _with_headers(send: Send, path: str) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if not path.startswith("/static/"):
                headers["cache-control"] = "no-store"
        await send(message)

    return with_headers


async def _body(receive: Receive) -> bytes | None:
    """Return a request's body, None where it is too long."""
    parts, length = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes | None, later: Receive) -> Receive:
    """Return what gives a body that was read already, and then what comes later."""
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            return await later()
        told = True
        return {"type": "http.request", "body": body or b"", "more_body": False}

    return receive
