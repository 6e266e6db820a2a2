"""The console's site: which parts it is made of, and what it answers when something is wrong.

Owns the wiring of routes, middleware and messages. Must not know what a page shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ExceptionHandler

from featurizer.eventlog import LogError
from fraudsvc.console.http import app
from fraudsvc.console.pages import Templates, see, static_routes
from fraudsvc.console.proposals import ProposalsError
from fraudsvc.console.readmodel import ReadModelError
from fraudsvc.console.sessions import SessionsError

_SAID = {
    404: ("Not found", "There is no such page. The link may be cut short, or of an older version."),
    405: ("Not possible", "This address takes no such request."),
    500: ("Something broke", "The cause is in the log of the console. Tell an operator."),
}
_BACK = ("/queue", "Go to the queue")
_GONE = (
    "The read model, which is what this console reads, does not answer ({error}). Nothing was"
    " changed, and decisions go on without it. Try again in a moment; if it stays like this, tell"
    " an operator."
)
_FILE_GONE = (
    "A file of the console's own does not answer ({error}). Nothing was changed. Try again in a"
    " moment, and tell an operator."
)
_LOG_GONE = (
    "The log takes no entry ({error}), so what you wanted was not done: whatever is done here must"
    " stand in the audit trail. Try again in a moment, and tell an operator."
)


def site(
    templates: Templates, routes: Sequence[BaseRoute], middleware: Sequence[Middleware] = ()
) -> Starlette:
    """Return the application of all parts' ``routes``, with the messages for what goes wrong."""
    handlers: dict[type[Exception] | int, ExceptionHandler] = {
        ReadModelError: _telling(templates, "READ_MODEL_UNAVAILABLE", _GONE),
        LogError: _telling(templates, "LOG_UNAVAILABLE", _LOG_GONE),
        ProposalsError: _telling(templates, "WHAT_IFS_UNAVAILABLE", _FILE_GONE),
        SessionsError: _telling(templates, "SESSIONS_UNAVAILABLE", _FILE_GONE),
        HTTPException: _status(templates),
        Exception: _status(templates),
    }
    home = Route("/", lambda _: see("/queue"))
    return app([home, *routes, *static_routes()], middleware, handlers)


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def _telling(templates: Templates, reason: str, text: str) -> ExceptionHandler:
    def answer(request: Request, error: Exception) -> Response:
        if _is_api(request):
            return JSONResponse({"error": {"reason": reason, "message": str(error)}}, 503)
        again = (request.url.path if request.method == "GET" else "/queue", "Try again")
        what = text.format(error=error)
        return templates.message(request, 503, "Not available right now", what, again)

    return answer


def _status(templates: Templates) -> ExceptionHandler:
    def answer(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        title, what = _SAID.get(status, ("Refused", getattr(error, "detail", "")))
        if _is_api(request):
            return JSONResponse({"error": {"reason": "HTTP", "message": what}}, status)
        return templates.message(request, status, title, what, _BACK)

    return answer
