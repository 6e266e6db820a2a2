"""Pages of the console: templates, navigation, and messages. The only importer of Jinja2.

Owns how a page is rendered, what every page has, and how values are written for a person. Pages of
one subject are in a file of their own, which adds its routes in ``role``. Must not know what a page
is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from fraudsvc.console.person import ANALYST, LEAD, NOBODY, OPERATOR, VIEWER, Person
from fraudsvc.decision_spans import outcome_of, rung_of

_HERE = Path(__file__).parent
_THEMES = ("dark", "light")
_BACK = ("/queue", "Back to the queue")
_EXPONENTS = {"JPY": 0, "KRW": 0, "ISK": 0, "CLP": 0, "VND": 0, "BHD": 3, "KWD": 3, "OMR": 3}


class Section(NamedTuple):
    """A place in the navigation; ``keys`` go there after ``g``, ``role`` is who sees it."""

    path: str
    title: str
    keys: str
    role: str = VIEWER


SECTIONS: tuple[tuple[str, tuple[Section, ...]], ...] = (
    ("Cases", (
        Section("/queue", "Queue", "q"),
        Section("/verdicts", "Verdicts", "v"),
        Section("/agreement", "Agreement", "y"),
    )),
    ("Operations", (
        Section("/health", "Health", "h"),
        Section("/models", "Models", "m"),
        Section("/drift", "Drift", "d"),
        Section("/rules", "Rules", "r"),
        Section("/what-if", "What if", "w"),
        Section("/dead-letters", "Dead letters", "l"),
        Section("/audit", "Audit", "a"),
    )),
)  # fmt: skip


def person_of(request: Request) -> Person:
    """Return who asks; NOBODY, who may nothing, where nobody signed in."""
    found = getattr(request.state, "person", NOBODY)
    return found if isinstance(found, Person) else NOBODY


def money(minor: int | float, currency: str) -> str:
    """Return an amount with its decimals, such as ``1,234.50 EUR``."""
    exponent = _EXPONENTS.get(currency, 2)
    return f"{minor / 10**exponent:,.{exponent}f} {currency}".rstrip()


def number(value: float | None) -> str:
    """Return a number with as many digits as it is worth reading; a dash where unknown."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "—"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.3g}"


def span_text(seconds: float) -> str:
    """Return a length of time in its two largest units' worth, such as ``3 h 20 min``."""
    whole = abs(int(seconds))
    days, hours, minutes = whole // 86_400, whole % 86_400 // 3_600, whole % 3_600 // 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{whole} s"


def utc(ms: float) -> str:
    """Return a time (ms since 1970) as RFC 3339."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00Z"


def _digest_of_static() -> str:
    files = sorted((_HERE / "static").iterdir())
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:12]


class Templates:
    """Renders templates of this package; everything is escaped."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True,
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters.update(
            money=lambda pair: money(*pair), number=number, span=span_text, utc=utc,
            outcome=outcome_of, rung=rung_of,
        )  # fmt: skip
        self._environment.globals.update(sections=SECTIONS, static=_digest_of_static())

    def page(
        self, request: Request, template: str, status: int = 200, /, **values: Any
    ) -> HTMLResponse:
        """Answer with a page: ``values`` and what all pages have (person, csrf, theme, path)."""
        theme = request.cookies.get("theme", "")
        told = {
            "person": person_of(request), "csrf": getattr(request.state, "csrf", ""),
            "theme": theme if theme in _THEMES else "", "path": request.url.path, **values,
        }  # fmt: skip
        body = self._environment.get_template(template).render(told)
        return HTMLResponse(body, status, {"cache-control": "no-store"})

    def message(
        self, request: Request, status: int, title: str, what: str, action: tuple[str, str]
    ) -> Response:
        """Answer that something cannot be shown or done, and what to do: a page, or JSON to code.

        ``action`` is where to go, and what that is called.
        """
        if wants_json(request):
            return JSONResponse({"error": {"title": title, "message": what}}, status)
        values = {"title": title, "what": what, "action": action}
        return self.page(request, "message.html", status, **values)

    def refusal(self, request: Request, status: int, reason: str, message: str) -> Response:
        """Answer that who asks may not, before any page was asked; ``reason`` is for machines."""
        ways = {401: (f"/sign-in?next={quote(_came_from(request))}", "Sign in")}
        title = reason.replace("_", " ").capitalize()
        return self.message(request, status, title, message, ways.get(status, _BACK))


def _came_from(request: Request) -> str:
    """Return the page of ours that a form was on; the sign-in page judges what it is given."""
    told = urlsplit(request.headers.get("referer", ""))
    is_ours = told.netloc == request.headers.get("host", "")
    return told.path + (f"?{told.query}" if told.query else "") if is_ours else _BACK[0]


def wants_json(request: Request) -> bool:
    """Return whether a script asks, which shows what comes of it by itself."""
    return "application/json" in request.headers.get("accept", "")


def see(path: str) -> RedirectResponse:
    """Answer a form that was done: look there."""
    return RedirectResponse(path, 303)


def refuse_role(templates: Templates, request: Request, role: str) -> Response | None:
    """Return a refusal where who asks lacks a role, None where not."""
    if person_of(request).may(role):
        return None
    what = f"This needs the role {role}. Ask a lead for it, or sign in as somebody who has it."
    return templates.message(request, 403, "Not allowed", what, ("/queue", "Back to the queue"))


def static_routes() -> Sequence[BaseRoute]:
    """Return where style and scripts are served from."""
    return [Mount("/static", StaticFiles(directory=_HERE / "static"), name="static")]


__all__ = [
    "ANALYST", "LEAD", "OPERATOR", "SECTIONS", "VIEWER", "Section", "Templates", "money", "number",
    "person_of", "refuse_role", "see", "span_text", "static_routes", "utc", "wants_json",
]  # fmt: skip
