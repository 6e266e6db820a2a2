"""The analysts' desk: what its pages share, and how a form is read.

Must not know what is shown on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.limits import LimitsFinder
from fraudsvc.console.pages import Templates
from fraudsvc.console.readmodel import ReadModel
from fraudsvc.console.readmodel_case import CaseFiles
from fraudsvc.console.readmodel_queue import CaseQueue
from fraudsvc.console.replays import Replays
from fraudsvc.console.scorer_client import ScorerClient
from fraudsvc.console.streams import Streams

MINUTE_MS = 60_000
FIELDS_MAX = 2_000


class Form:
    """A form that was sent, with each value as text; one that is missing is ""."""

    def __init__(self, values: Mapping[str, list[str]]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        """Return the first value."""
        return self._values.get(name, [""])[0].strip()

    def all(self, name: str) -> list[str]:
        """Return every value."""
        return [each.strip() for each in self._values.get(name, ())]


def posted(handler: Callable[[Request, Form], Response]) -> Callable[[Request], Any]:
    """Return an endpoint that reads the form and then calls ``handler`` in a thread."""

    async def endpoint(request: Request) -> Response:
        body = (await request.body()).decode(errors="replace")
        form = Form(parse_qs(body, keep_blank_values=True, max_num_fields=FIELDS_MAX))
        return await run_in_threadpool(handler, request, form)

    return endpoint


@dataclass(frozen=True)
class Desk:
    """What every page of the desk needs."""

    model: ReadModel
    templates: Templates
    trail: AuditTrail
    options: DeskOptions
    log: str
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    health: Callable[[], Mapping[str, Any]] = lambda: {"status": "ok", "behind_seconds": 0.0}
    queue: CaseQueue = field(init=False)
    files: CaseFiles = field(init=False)
    scorer: ScorerClient = field(init=False)
    replays: Replays = field(init=False)
    limits: LimitsFinder = field(init=False)
    streams: Streams = field(default_factory=Streams)

    def __post_init__(self) -> None:
        """Open what is asked of others."""
        for name, value in (
            ("queue", CaseQueue(self.model)), ("files", CaseFiles(self.model)),
            ("scorer", ScorerClient(self.options.scorer)),
            ("replays", Replays(self.log, self.options)),
            ("limits", LimitsFinder(self.options.data)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def claim_ms(self) -> int:
        """How long a claim lasts."""
        return round(self.options.claim_minutes * MINUTE_MS)

    @property
    def undo_ms(self) -> int:
        """How long a verdict can be undone."""
        return round(self.options.undo_minutes * MINUTE_MS)

    @property
    def review_ms(self) -> int:
        """By when a case should be decided."""
        return round(self.options.review_minutes * MINUTE_MS)

    def close(self) -> None:
        """End the streams of events, and let go of the connection to the scorer."""
        self.streams.close()
        self.scorer.close()
