"""Server-sent events: what changed, told to pages that stay open.

Owns how often is looked, how long a stream lasts, and how many there may be at once. Must not know
what is told.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

STREAMS_MAX = 128
LASTS_S = 300.0  # then the browser asks again, and whose session ended is not let in
CLOSING_S = 0.2  # between two looks at whether the console closes
QUIET_S = 15.0  # after which the same is told again, so that a dead connection is found
EVENTS = "text/event-stream"


class Streams:
    """All streams of a console; ``close`` ends them."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._open = 0

    def answer(self, look: Callable[[], Any], every_s: float = 1.0) -> Response:
        """Answer with what ``look`` returns, as JSON, now and whenever it is something else.

        It is called in a thread, every ``every_s``.
        """
        if self._open >= STREAMS_MAX:
            return JSONResponse({"error": {"title": "Busy", "message": "too many streams"}}, 503)
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(self._events(look, every_s), media_type=EVENTS, headers=headers)

    def live(self, page: Callable[[Request], Response], every_s: float) -> Callable[..., Any]:
        """Return an endpoint that answers a part of a page, or a stream of it to who asks so."""

        async def endpoint(request: Request) -> Response:
            if EVENTS not in request.headers.get("accept", ""):
                return await run_in_threadpool(page, request)
            return self.answer(lambda: bytes(page(request).body).decode(), every_s)

        return endpoint

    def close(self) -> None:
        """End all of them."""
        self._closing.set()

    async def _events(self, look: Callable[[], Any], every_s: float) -> AsyncIterator[str]:
        self._open += 1
        try:
            yield "retry: 3000\n\n"
            before, told_s = "", 0.0
            end_s = time.monotonic() + LASTS_S
            while not self._closing.is_set() and (now_s := time.monotonic()) < end_s:
                now = json.dumps(await run_in_threadpool(look))
                if now != before or now_s - told_s >= QUIET_S:
                    yield f"data: {now}\n\n"
                    before, told_s = now, now_s
                while not self._closing.is_set() and time.monotonic() < now_s + every_s:
                    await asyncio.sleep(min(CLOSING_S, every_s))
        finally:
            self._open -= 1
