"""The queue: open cases by expected loss, filtered, with who holds which; and what is new, live.

Owns the queue's page and the stream of events. Must not know SQL.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from fraud.v1 import decision_pb2, transaction_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fraudsvc.console.case_facts import channel_of
from fraudsvc.console.desk import Desk, Form, posted
from fraudsvc.console.pages import person_of, see, wants_json
from fraudsvc.console.person import ANALYST
from fraudsvc.console.readmodel import ReadModelError
from fraudsvc.console.readmodel_queue import Filter
from fraudsvc.console.sheets import Column, Sheet, exported
from fraudsvc.decision_spans import rung_of

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
EXPORTED_MAX = 50_000
_KEY = re.compile(r"[0-9.e+-]{1,32}:[0-9a-f-]{1,36}")
_FIELDS = ("rung", "channel", "code", "merchant", "model", "from", "until", "age", "holder")
_AGES = {
    "1h": (HOUR_MS, None), "4h": (4 * HOUR_MS, None), "1d": (DAY_MS, None),
    "older": (None, DAY_MS),
}  # fmt: skip

COLUMNS = (
    Column("decision_id", "Case"), Column("transaction_id", "Transaction"),
    Column("receive_time_ms", "Decided", "time"),
    Column("expected_loss", "Expected loss", "number"), Column("score", "Score", "number"),
    Column("amount_minor", "Amount, minor units", "count"), Column("currency_code", "Currency"),
    Column("customer_id", "Customer"), Column("merchant_id", "Merchant"),
    Column("channel", "Channel"), Column("rung", "Rung"), Column("codes", "Reasons"),
    Column("model_version", "Model"), Column("holder", "Held by"),
)  # fmt: skip


class Asked(NamedTuple):
    """What an address asks for: the filter, its plain values, and what was not understood."""

    wanted: Filter
    plain: dict[str, str]
    faults: list[str]


def asked(values: Mapping[str, str], person: str, now_ms: int) -> Asked:
    """Return the filter of a query; what makes no sense is left out, and said."""
    plain = {name: values.get(name, "").strip() for name in _FIELDS}
    plain = {name: value for name, value in plain.items() if value}
    faults: list[str] = []

    def number(name: str, kind: type[float] | type[int]) -> Any:
        try:
            return kind(plain[name]) if name in plain else None
        except ValueError:
            faults.append(f"{name}: {plain.pop(name)} is no number")
            return None

    newest, oldest = _AGES.get(plain.get("age", ""), (None, None))
    holder = {"me": person, "nobody": "-", "anybody": "*"}.get(plain.get("holder", ""), "")
    wanted = Filter(
        rung=number("rung", int), channel=number("channel", int), code=plain.get("code", ""),
        merchant=plain.get("merchant", ""), model=plain.get("model", ""),
        amount_from=number("from", float), amount_until=number("until", float),
        since_ms=None if newest is None else now_ms - newest,
        until_ms=None if oldest is None else now_ms - oldest, holder=holder,
    )  # fmt: skip
    return Asked(wanted, plain, faults)


def _choices(kind: Any, say: Any) -> list[tuple[str, str]]:
    return [(str(number), say(number)) for number in kind.values() if number]


class QueuePages:
    """What the queue's paths answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._choices = {
            "rung": _choices(decision_pb2.Rung, rung_of),
            "channel": _choices(transaction_pb2.Channel, channel_of),
        }

    def routes(self) -> list[BaseRoute]:
        """Return the paths."""
        return [
            Route("/queue", self.queue),
            Route("/queue/next", posted(self.take_next), methods=["POST"]),
            Route("/events", self.events),
        ]

    def queue(self, request: Request) -> Response:
        """Show a page of the queue."""
        desk, person, now_ms = self._desk, person_of(request), self._desk.now_ms()
        told = asked(request.query_params, person.name, now_ms)
        if "format" in request.query_params:
            answer = exported(request, self._sheet(told.wanted, now_ms), desk.trail)
            if answer is not None:
                return answer
        try:
            after = _opened(request.query_params.get("after", ""))
            with desk.model.reading():
                page = desk.queue.page(told.wanted, now_ms, after)
                counts = desk.queue.counts(person.name, now_ms, now_ms - now_ms % DAY_MS)
                is_filtered = told.wanted != Filter()
                matching = desk.queue.matching(told.wanted, now_ms) if is_filtered else counts.open
        except ValueError:
            what = "The link to this page of the queue is cut short. Begin at the top."
            begin = ("/queue", "Go to the queue")
            return desk.templates.message(request, 400, "Not a page of the queue", what, begin)
        rows = [self._row(row, now_ms) for row in page.rows]
        following = {**told.plain, "after": _sealed(page.after)}
        desk.trail.audit(person, "list cases", "queue", new=urlencode(told.plain))
        return desk.templates.page(
            request, "queue.html", rows=rows, counts=counts, plain=told.plain, faults=told.faults,
            query=urlencode(told.plain), matching=matching,
            following=urlencode(following) if page.after else "",
            is_first=not after, choices=self._choices, capacity=desk.options.capacity,
            now_ms=now_ms, codes=_codes(rows), behind=desk.health(),
            oldest=self._left(counts.oldest_ms, now_ms),
            may_claim=person.may(ANALYST),
        )  # fmt: skip

    def _sheet(self, wanted: Filter, now_ms: int) -> Sheet:
        """Return the cases that a filter shows, to be taken away."""
        rows = self._desk.queue.page(wanted, now_ms, limit=EXPORTED_MAX).rows
        told = [
            {
                **row, "channel": channel_of(row["channel"]), "rung": rung_of(row["rung"]),
                "codes": ", ".join(json.loads(row["codes"])),
            }
            for row in rows
        ]  # fmt: skip
        return Sheet("queue", COLUMNS, told)

    def _row(self, row: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
        codes = json.loads(row["codes"])
        left = self._left(row["receive_time_ms"], now_ms)
        return {**row, "codes": codes, "channel_text": channel_of(row["channel"]), "left": left}

    def _left(self, since_ms: int | None, now_ms: int) -> float | None:
        """Return the seconds left until the review objective, below 0 where it has passed."""
        return None if since_ms is None else (since_ms + self._desk.review_ms - now_ms) / 1000

    def take_next(self, request: Request, form: Form) -> Response:
        """Claim the dearest case that nobody holds, of those that a filter shows."""
        desk, person, now_ms = self._desk, person_of(request), self._desk.now_ms()
        values = {name: form[name] for name in _FIELDS if name != "holder"}
        wanted = asked(values, person.name, now_ms).wanted
        found = desk.queue.claim_next(wanted, person.name, now_ms, desk.claim_ms, form["but"])
        if found is None:
            what = "Nobody waits: every open case that the filter shows is held by somebody."
            back = ("/queue", "Back to the queue")
            return desk.templates.message(request, 404, "No case is free", what, back)
        desk.trail.audit(person, "claim case", found, new=person.name)
        path = f"/cases/{found}"
        return JSONResponse({"path": path}) if wants_json(request) else see(path)

    def events(self, request: Request) -> Response:
        """Stream how many cases are new, and whether a case changed; only where it is news."""
        try:
            since_ms = int(request.query_params.get("since", "0"))
        except ValueError:
            return JSONResponse({"error": {"title": "Bad link", "message": "since"}}, 400)
        case = request.query_params.get("case", "")
        return self._desk.streams.answer(lambda: self._look(since_ms, case))

    def _look(self, since_ms: int, case: str) -> dict[str, Any]:
        desk = self._desk
        try:
            told: dict[str, Any] = {"new": desk.queue.newer(since_ms), "status": "ok"}
            if case:
                labels = desk.model.labels(case)
                held = desk.queue.held_by([case], desk.now_ms())
                told |= {"labels": len(labels), "holder": held.get(case, "")}
        except ReadModelError:
            return {"status": "unavailable"}
        status = desk.health()["status"]
        return told if status == "ok" else {**told, "status": "unavailable"}


def _codes(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({code for row in rows for code in row["codes"]})


def _sealed(after: str) -> str:
    return base64.urlsafe_b64encode(after.encode()).decode()


def _opened(text: str) -> str:
    """Return the key in an address. Raises ValueError."""
    after = base64.urlsafe_b64decode(text.encode()).decode()
    if text and not _KEY.fullmatch(after):
        raise ValueError("no key of a page")
    return after
