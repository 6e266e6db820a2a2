"""Forms that are posted: their texts, read once, then handled beside the loop that serves others.

Owns how a form becomes texts. Must not know what a form is for.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Form = Callable[[str], str]  # a field's text by its name, "" where the form has none
Handler = Callable[[Request, Form], Response]


def posted(path: str, handle: Handler) -> Route:
    """Return the route of a form; ``handle`` runs in a thread, as it may wait for files."""

    async def answer(request: Request) -> Response:
        async with request.form() as form:
            texts = {name: value for name, value in form.items() if isinstance(value, str)}
        return await run_in_threadpool(handle, request, lambda name: texts.get(name, "").strip())

    return Route(path, answer, methods=["POST"])
